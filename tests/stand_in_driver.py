"""NVIDIA's driver, as a stand-in, under the real numba-cuda: what tests need to run the GPU kernels without a GPU.

numba-cuda and its CUDA libraries are looked for in `.venv-gpu-*` in the project's folder, and in the Python that runs
the tests; `scripts/test --gpu-libraries` makes the former. tests/stand_ins/libcuda.c is the driver.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import LIMIT

from kaas import ROOT

SOURCE = ROOT / "tests" / "stand_ins" / "libcuda.c"
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
CONTEXT_BYTES = 300 * 2**20
"""What a context takes by itself, as the stand-in counts."""
KERNELS = {"paper": ROOT / "cuda-matmul-fn.py", "fast": ROOT / "cuda-matmul-fast-fn.py"}


@dataclass(frozen=True)
class Environment:
    """A Python that has numba-cuda, and the release of the CUDA libraries that it has with it."""

    name: str
    python: Path
    cuda: int

    @property
    def driver_version(self) -> str:
        """What a driver that fits says of itself."""
        return {12: "12080"}.get(self.cuda, f"{self.cuda}000")

    @property
    def oldest(self) -> str:
        """The lowest compute capability that its libraries compile for."""
        return "7.0" if self.cuda == 12 else "7.5"


@dataclass(frozen=True)
class Card:
    """An environment, and the compute capability of the GPUs that it shall find."""

    environment: Environment
    capability: str


def _environments() -> list[Environment]:
    pythons = {folder.name.removeprefix(".venv-gpu-"): folder / "bin" / "python" for folder in ROOT.glob(".venv-gpu-*")}
    if importlib.util.find_spec("numba_cuda") is not None:
        pythons["here"] = Path(sys.executable)
    found: dict[Path, Environment] = {}
    for name, python in sorted(pythons.items()):
        home = python.parent.parent
        bindings = next(home.glob("lib/python*/site-packages/cuda_bindings-*.dist-info"), None)
        if bindings is not None and (home / "pyvenv.cfg").exists():
            release = re.search(r"-(\d+)\.", bindings.name)
            assert release is not None
            found.setdefault(home.resolve(), Environment(name, python, int(release[1])))
    return list(found.values())


def _missing() -> str:
    if sys.platform != "linux":
        return "the stand-in of NVIDIA's driver is for Linux"
    if COMPILER is None:
        return "no C compiler for the stand-in of NVIDIA's driver"
    return "" if ENVIRONMENTS else "numba-cuda is not installed (scripts/test --gpu-libraries)"


ENVIRONMENTS = _environments()
_SKIPPED = [pytest.param(None, marks=pytest.mark.skip(reason=_missing()))] if _missing() else []

every_environment = pytest.mark.parametrize(
    "environment", _SKIPPED or [pytest.param(each, id=each.name) for each in ENVIRONMENTS]
)
one_environment = pytest.mark.parametrize(
    "environment", _SKIPPED or [pytest.param(each, id=each.name) for each in ENVIRONMENTS[-1:]]
)
every_card = pytest.mark.parametrize(
    "card",
    _SKIPPED
    or [
        pytest.param(Card(each, capability), id=f"{each.name}-{capability}")
        for each in ENVIRONMENTS
        for capability in (["7.0", "9.0"] if each.cuda == 12 else ["9.0"])
    ],
)
one_card = pytest.mark.parametrize(
    "card", _SKIPPED or [pytest.param(Card(each, "9.0"), id=each.name) for each in ENVIRONMENTS[-1:]]
)
both_kernels = pytest.mark.parametrize("kernel", KERNELS)


@dataclass
class Driver:
    """A stand-in of the driver and of some GPUs, for the processes that get its `variables`.

    Args:
        library: the folder with libcuda.so.1.
        state: a folder of its own, or that of the stand-ins of NVIDIA's programs.
        cache: where Numba keeps what it has compiled.
        environment: whose numba-cuda shall find it.
        capability: of its GPUs, "9.0"; several, with commas between them, for as many GPUs.
    """

    library: Path
    state: Path
    cache: Path
    environment: Environment
    capability: str
    variables: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        (self.state / "modes").mkdir(parents=True, exist_ok=True)
        for gpu in range(max(1, self.capability.count(",") + 1)):
            mode = self.state / "modes" / str(gpu)
            if not mode.exists():
                mode.write_text("Default")
        self.variables = {
            "LD_LIBRARY_PATH": str(self.library),
            "STAND_INS": str(self.state),
            "STAND_IN_CC": self.capability,
            "STAND_IN_CUDA": self.environment.driver_version,
            "STAND_IN_LOG": str(self.state / "driver-calls"),
            "NUMBA_CACHE_DIR": str(self.cache / f"{self.environment.name}-{self.capability}"),
            "NUMBA_ENABLE_CUDASIM": "0",
            "CUDA_MPS_PIPE_DIRECTORY": str(self.state / "no-mps"),
        }

    def fail(self, function: str, code: int, times: int = 1) -> None:
        """Have the next calls of a function return an error."""
        (self.state / "cuda-fail").write_text(f"{function} {code} {times}\n")

    def failures_left(self) -> int:
        """Say how many calls are still to fail."""
        return int((self.state / "cuda-fail").read_text().split()[-1])

    def bytes_taken(self) -> dict[int, int]:
        """Tell of each process that has a context how many bytes it has taken, on whichever GPU."""
        taken = {}
        for path in (self.state / "cuda").glob("*.*"):
            with contextlib.suppress(FileNotFoundError):
                taken[int(path.suffix[1:])] = int(path.read_text())
        return taken

    def calls(self) -> list[tuple[int, str]]:
        """List the calls of the driver's functions: process and function."""
        path = self.state / "driver-calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), function) for pid, function in map(str.split, lines)]

    def run(
        self, *arguments: str | Path, check: bool = True, limit: float = LIMIT, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run its environment's Python over it; unless told otherwise it must end well and say nothing on stderr."""
        done = subprocess.run(
            [str(self.environment.python), *map(str, arguments)],
            cwd=self.state,
            env={**os.environ, **self.variables, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        if check:
            assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done
