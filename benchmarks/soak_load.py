"""A run of load.py in the soak, whose clients end now and then with exit code 1: it goes on, and leaves nothing."""

import contextlib
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import common
import psutil
import serving
from support import Marked

from kaas import results
from kaas.errors import KaasError
from kaas.row import Row

CLIENTS_OF_LOAD = 3
"""How many there are at most."""
_RUN = re.compile(r'"KAAS_RUN": "([0-9a-f]{8})"')


class Load:
    """One run of load.py against the server of the matrix kernel."""

    def __init__(self, address: str, folder: Path, number: int, seconds: float) -> None:
        self._scratch = folder / f"scratch-{number}"
        self._scratch.mkdir()
        self.marked = Marked({"TMPDIR": str(self._scratch)})
        self._end = time.monotonic() + seconds
        self._rows = folder / "results-soak" / f"run-{number}.csv"
        self._said = folder / "load-said"
        self._run = ""
        line = [sys.executable, str(common.ROOT / "load.py"), "--client", str(common.MODULES / "matmul_that_ends.py")]
        line += ["--input", "64", "--experiment-name", "soak", "--task-name", f"run-{number}", "--server", address]
        line += ["--min-parallel", "1", "--max-parallel", str(CLIENTS_OF_LOAD), "--interval", "1"]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [*line, "--finish-timeout", "10"],
                cwd=folder,
                env=self.marked.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,  # a Ctrl-C is the soak's to handle
            )

    def due(self) -> bool:
        """Tell whether its time is over; on the way, note how its shared memory is called."""
        if not self._run:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children():
                    if found := _RUN.search(" ".join(child.cmdline())):
                        self._run = found[1]
        return time.monotonic() >= self._end or self.process.poll() is not None

    def clients(self) -> list[psutil.Process]:
        """Give its client processes; none before the load has begun, which it does not if one of them dies by then."""
        if not self._rows.exists():
            return []
        with contextlib.suppress(psutil.Error):
            return serving.forked(psutil.Process(self.process.pid))
        return []

    def check(self, ended_by_itself: bool) -> list[str]:
        """Wait until nothing is left of it; say what is wrong, if anything is."""
        self.process.wait(60)
        problems = []
        try:
            serving.wait_until(lambda: not self.marked.left(), "all processes of load.py have ended")
        except KaasError as error:
            problems.append(f"{error}: {self.marked.left()}")
            self.marked.kill()
        left = [*self._scratch.iterdir(), *(segments_of(self._run) if self._run else ())]
        problems += [f"load.py leaves {path}" for path in left]
        said, rows = self._said.read_text(errors="replace"), self.rows()
        file = self._rows.with_suffix(".md")
        described = file.read_text() if file.exists() else "no description"
        if ended_by_itself and "Ended: at the end of the ramp\n" not in described:
            problems.append(f"load.py ends before its time: {said} {described}")
        if len(rows) > len({(row.copy, row.timestamp) for row in rows}):
            problems.append(f"{self._rows.name}: requests have more than one row")
        # A Ctrl-C that comes while it is still importing is Python's to report.
        failed = "Traceback" in said and not said.rstrip().endswith("KeyboardInterrupt")
        return [*problems, f"load.py says: {said}"] if failed else problems

    def rows(self) -> list[Row]:
        """Read its rows; there are none if it was killed before it began."""
        return list(results.read_rows(self._rows)) if self._rows.exists() else []

    def fates(self) -> Counter[str]:
        """Count its clients that ended by themselves, or wanted to."""
        errors = Counter(row.error for row in self.rows())
        return Counter(
            {
                "client of load.py ended with exit code 1": errors["the client ended with exit code 1"],
                "client of load.py raised SystemExit": errors["SystemExit: 1"],
            }
        )


def segments_of(run: str) -> list[Path]:
    """List the segments of shared memory that a run has left."""
    return list(Path("/dev/shm").glob(f"kaas_{run}*"))
