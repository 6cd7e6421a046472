"""A copy of the project for tests that run its scripts, and stand-ins for NVIDIA's programs beside it."""

import csv
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from support import Marked

from kaas import ROOT, results
from kaas.row import Row

NOTEBOOK = "plot-autoscaling.ipynb"
NOT_COPIED = (".venv*", ".git", "results-*", ".*_cache", ".hypothesis")
NOT_RUN = ("tests", "docs", "benchmarks")

MAX_LATE = "1000"
"""On a busy machine clients come late, which would make a run exit with 3; tests/load tries that."""
PLAIN: dict[str, Any] = {"FN": "plain", "CLIENT": "plain-client", "N": "x"}
"""For what a script does around any kernel: one that idles, so long that calls of two clients meet; no libraries."""
MATRICES: dict[str, Any] = {"FN": "cuda-matmul-blas", "CLIENT": "cuda-matmul-client", "N": 100}
"""For what a script does about shared memory, or the libraries; nothing has to be compiled."""
PLAIN_KERNEL = "import time\ndef call(payload):\n    time.sleep(0.02)\n    return payload\n"
PLAIN_CLIENT = """
from kaas.client import Connection
from kaas.outcome import Outcome
kaas = Connection()
def run_client(arg):
    reply = kaas.invoke(arg.encode())
    error = "" if reply.status == "ok" else reply.payload.decode()
    return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status, gpu=reply.gpu, worker=reply.worker, error=error)
"""
IMPORTS_NUMBA, IMPORTS_NOTHING = '"-c", load, ', """"-c", "print('a stand-in')", """
NO_REPORT = "#!/bin/sh\necho 'No report: a stand-in is here in its place'\n"


class Project:
    """A copy of the project in a folder of its own, for the Python that runs the tests.

    Args:
        folder: where to; it must not be there yet.
        script: what `start` and `run` run unless told otherwise.
        results: name of the folder that the script writes to.
        without: the folders that no script of the test looks into; most of the files are in these.
    """

    def __init__(self, folder: Path, script: str, results: str, without: Sequence[str] = NOT_RUN) -> None:
        self.folder = folder
        self.script = script
        self.results = folder / results
        self.port = free_port()
        self.marked = Marked({"COLUMNS": "200", "KAAS_PYTHON": sys.executable, "MAX_LATE": MAX_LATE})
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED, *without))
        self._report = folder / "scripts" / "report"
        self._report.write_text(NO_REPORT)
        self._preflight = folder / "scripts" / "preflight.py"
        text = self._preflight.read_text()
        assert text.count(IMPORTS_NUMBA) == 1
        self._preflight.write_text(text.replace(IMPORTS_NUMBA, IMPORTS_NOTHING))
        (folder / "plain.py").write_text(PLAIN_KERNEL)
        (folder / "plain-client.py").write_text(PLAIN_CLIENT)

    def draw_the_report(self, *pictures: str) -> Self:
        """Have the real scripts/report draw what a run has found: it takes longer than all else of a short run.

        Args:
            pictures: the names of those of the gallery that it draws.
        """
        shutil.copy(ROOT / "scripts" / "report", self._report)
        draw_only(self.folder / NOTEBOOK, *pictures)
        return self

    def check_numba(self) -> Self:
        """Have the real preflight import numba.cuda: it takes longer than all else of the check."""
        shutil.copy(ROOT / "scripts" / "preflight.py", self._preflight)
        return self

    def start(self, *command: str, cwd: Path | None = None, **settings: Any) -> "subprocess.Popen[str]":
        """Start a script, by default this project's, with some settings."""
        return self._start(["bash", *(command or (self.script,))], cwd, settings)

    def _start(self, line: Sequence[str], cwd: Path | None, settings: Mapping[str, Any]) -> "subprocess.Popen[str]":
        given: dict[str, Any] = {"PORT": self.port, **settings}
        return subprocess.Popen(
            line,
            cwd=cwd or self.folder,
            env=self.marked.environment | {name: str(value) for name, value in given.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal's Ctrl-C goes to a whole group; this is it.
            start_new_session=True,
        )

    def run(self, *command: str, cwd: Path | None = None, **settings: Any) -> tuple[int, str]:
        """Run a script to its end; return its exit code and all that it said."""
        process = self.start(*command, cwd=cwd, **settings)
        said, _ = process.communicate()
        return process.returncode, said

    def run_line(self, line: Sequence[str], **settings: Any) -> tuple[int, str]:
        """Run a whole command line, of a program that starts a script, to its end; return what `run` does."""
        process = self._start(line, None, settings)
        said, _ = process.communicate()
        return process.returncode, said

    def rows(self) -> list[Row]:
        """Read the rows of the one repeat."""
        return results.read_rows(self._file(".csv"))

    def events(self) -> list[dict[str, str]]:
        """Read the server's events of the one repeat."""
        return _read(self._file("-serverlogs.csv"))

    def utilization(self) -> list[dict[str, str]]:
        """Read the monitor's samples of the one repeat."""
        return _read(self._file("-gpu-monitoring.csv"))

    def has_rows(self) -> bool:
        """Tell whether a request has been finished."""
        files = list(self.results.glob("*-1.csv"))
        return bool(files) and bool(results.read_rows(files[0]))

    def _file(self, ending: str) -> Path:
        (path,) = (path for path in self.results.glob(f"*-1{ending}"))
        return path


class StandIns:
    """Stand-ins for nvidia-smi and nvidia-cuda-mps-control, to be put on a script's PATH; tests/stand_ins has them."""

    def __init__(self, folder: Path, gpus: int) -> None:
        self.state = folder / "state"
        self._bin = folder / "bin"
        (self.state / "modes").mkdir(parents=True)
        self._bin.mkdir()
        for gpu in range(gpus):
            self.set("modes", gpu, "Default")
        for name, program in (("nvidia-smi", "nvidia_smi.py"), ("nvidia-cuda-mps-control", "mps_control.py")):
            script = self._bin / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{ROOT}/tests/stand_ins/{program}" "$@"\n')
            script.chmod(0o755)
        self.pipe = folder / "users-pipe"
        self.machine = folder / "var-tmp"
        self.machine.mkdir()
        self.environment = {
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "STAND_INS": str(self.state),
            # Where a user's own daemon would be; nothing of the real machine's is asked.
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "KAAS_GPU_STATE": str(self.machine),
        }

    def set(self, *path_and_text: object) -> None:
        """Write a file of the state: its path, and its text last."""
        *path, text = map(str, path_and_text)
        self.state.joinpath(*path).write_text(text)

    def modes(self) -> list[str]:
        """Tell each GPU's compute mode."""
        return [path.read_text() for path in sorted((self.state / "modes").iterdir())]

    def calls(self, program: str = "") -> list[str]:
        """List the calls of a program, in order."""
        path = self.state / "calls"
        return [line for line in path.read_text().splitlines() if line.startswith(program)] if path.exists() else []

    def unset(self, *path: object) -> None:
        """Remove a file of the state."""
        self.state.joinpath(*map(str, path)).unlink()

    def folders_left(self) -> list[Path]:
        """List the folders of the daemons that a guard started, as far as they are still there."""
        pipes = self.state / "pipes"
        started = [Path(line) for line in pipes.read_text().splitlines()] if pipes.exists() else []
        return [pipe.parent for pipe in started if pipe != self.pipe and pipe.parent.exists()]

    def control(self, order: str) -> int:
        """Give the user's daemon an order, or start it (`-d`); return the exit code."""
        return subprocess.run(
            [self._bin / "nvidia-cuda-mps-control", *(["-d"] if order == "-d" else [])],
            input=order,
            text=True,
            env=os.environ | self.environment,
            capture_output=True,
            check=False,
        ).returncode


def draw_only(notebook: Path, *pictures: str) -> None:
    """Let a copy of the notebook draw no others of the gallery than those of these names."""
    text = notebook.read_text()
    assert text.count("in figures.GALLERY:") == 1
    chosen = "".join(f"'{name}', " for name in pictures)
    notebook.write_text(
        text.replace("in figures.GALLERY:", f"in [one for one in figures.GALLERY if one.name in ({chosen})]:")
    )


def free_port() -> int:
    """Find a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
