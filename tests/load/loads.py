"""load.py as a real process, on a client module given as source."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from support import Marked

from kaas import ROOT, results
from kaas.row import Row

RESTS = """
if "run_client" in globals():
    _run_client = run_client
    def run_client(arg):
        outcome = _run_client(arg)
        __import__("time").sleep(0.002)
        return outcome
    run_client.__wrapped__ = _run_client
"""
"""What is added to each client: one that asks again at once takes a core for itself, and tells no more."""

NO_ROOM = """
    from kaas.errors import ResultsError
    from kaas.results import RowWriter
    def no_room(self, row):
        raise ResultsError("no room for the rows of requests")
    def run_client(arg):
        RowWriter.append = no_room
        return 1.0, 1.0, 0.0, False
"""
"""A client whose rows cannot be written."""


class Load:
    """Runs load.py in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows_file = folder / "results-test" / "task.csv"
        self.marked = Marked()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, client: str, *arguments: str, first: str = "") -> "subprocess.Popen[str]":
        """Start it with some options, with their values; `first` is run in its process before all else."""
        (self.folder / "client.py").write_text(textwrap.dedent(client) + RESTS)
        given = {
            "--client": "client",
            "--input": "7",
            "--experiment-name": "test",
            "--task-name": "task",
            "--min-parallel": "1",
            "--max-parallel": "1",
            "--interval": "0.5",
            "--server": "none",
        }
        flags = [argument for argument in arguments if argument == "--keep-going"]
        valued = [argument for argument in arguments if argument not in flags]
        given |= dict(zip(valued[::2], valued[1::2], strict=True))
        script = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(first)}\n"
        script += f"runpy.run_path({str(ROOT / 'load.py')!r}, run_name='__main__')"
        process = subprocess.Popen(
            [
                sys.executable,
                *(["-c", script] if first else [ROOT / "load.py"]),
                *(word for pair in given.items() for word in pair),
                *flags,
            ],
            cwd=self.folder,
            env=self.marked.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, client: str, *arguments: str, first: str = "") -> tuple[int, str]:
        """Run it to its end; return its exit code and all that it said of its own run.

        It removes what runs of other tests, at the same time, left when they were killed, and says so.
        """
        process = self.start(client, *arguments, first=first)
        said, _ = process.communicate()
        return process.returncode, re.sub(r"^removed what runs .* had left: .*\n", "", said, flags=re.MULTILINE)

    def end(self) -> None:
        """Check at the end of a test that nothing of it runs any more."""
        try:
            if all(process.poll() is not None for process in self._processes):  # else the test has failed
                self.marked.assert_nothing_left()
        finally:
            self.marked.kill()
            for process in self._processes:
                with process:  # which closes what we read of it, and waits
                    pass

    def rows(self) -> list[Row]:
        """Read the rows so far."""
        return results.read_rows(self.rows_file)

    def has_rows(self) -> bool:
        """Tell whether a request has been finished."""
        return self.rows_file.exists() and bool(self.rows())
