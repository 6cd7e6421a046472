#!/usr/bin/env python3
"""How fast are the GPU kernels? The paper's and the fast one beside cuBLAS, in one run, in rounds that alternate.

Measured for each N: the time on the GPU alone (float32 matrices that are there already; the fast kernel's with the copy
that pads them), by CUDA events; and the time of a whole call as a worker makes it (float64 matrices in shared memory:
upload, kernel, download), with the segments pageable, as the kernels have them, and pinned for this one call. Medians.
cuBLAS's time has no whole call. Every product is checked.
"""

import contextlib
import ctypes
import ctypes.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import cuda  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from kaas import cli, kernels, machine, matrices  # noqa: E402
from kaas.errors import KaasError, UsageError  # noqa: E402
from kaas.matrices import Matrix  # noqa: E402

SIZES = (1024, 2048, 4096, 8192)
LEAST_ROUNDS = 5
PAPER, FAST, CUBLAS = "paper", "fast", "cuBLAS"
WAYS = ("gpu", "pageable", "pinned")

Measure = Callable[[], float]
"""Do it once and tell the milliseconds that it took."""


class Cublas:
    """cuBLAS's SGEMM by ctypes, in the current CUDA context and its default stream, where Numba launches, too.

    Raises:
        OSError: the library is not there.
        KaasError: it cannot be used.
    """

    def __init__(self) -> None:
        self._library = _load_cublas()
        self._handle = ctypes.c_void_p()
        self._check("cublasCreate_v2", self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        version = ctypes.c_int()
        self._check("cublasGetVersion_v2", self._library.cublasGetVersion_v2(self._handle, ctypes.byref(version)))
        self.version = version.value

    def square(self, a: Any, c: Any) -> None:
        """Store a @ a in c; both are float32 and on the GPU. Returns before it is done.

        cuBLAS takes matrices by columns, ours are by rows: it sees both transposed, and the square of the transpose is
        the transpose of the square.
        """
        n = ctypes.c_int(len(a))
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        left, product = (ctypes.c_void_p(matrix.__cuda_array_interface__["data"][0]) for matrix in (a, c))
        as_it_is = ctypes.c_int(0)  # CUBLAS_OP_N
        code = self._library.cublasSgemm_v2(
            *(self._handle, as_it_is, as_it_is, n, n, n, ctypes.byref(one)),
            *(left, n, left, n, ctypes.byref(zero), product, n),
        )
        self._check("cublasSgemm_v2", code)

    @staticmethod
    def _check(name: str, code: int) -> None:
        if code:
            raise KaasError(f"cuBLAS: {name} failed with status {code}")


def _load_cublas() -> ctypes.CDLL:
    """Load the newest cuBLAS of pip's packages, the CUDA toolkit, or wherever the system's loader looks."""
    folders = [Path(path) / "nvidia" for path in sys.path]
    found = [file for folder in folders for file in folder.glob("*/lib/libcublas.so.*")]
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        found += Path(home).glob("lib64/libcublas.so.*") if home else ()
    names = [str(file) for file in sorted(found, key=lambda file: file.name, reverse=True)]
    listed = ctypes.util.find_library("cublas")
    for name in [*names, *([listed] if listed else []), *(f"libcublas.so.{major}" for major in (13, 12, 11))]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no libcublas.so")


def seconds_to_prepare(kernel: ModuleType) -> dict[str, float]:
    """Have a kernel prepare itself; give the seconds of each phase."""
    seconds = {}

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - begun

    kernel.prepare(phase)
    return seconds


def measures_on_gpu(
    n: int, paper: ModuleType, fast: ModuleType, cublas: Cublas | None
) -> tuple[dict[str, Measure], dict[str, bool]]:
    """Make what measures each kernel's time on the GPU, and tell of each whether its product is right."""
    matrix = matrices.random_matrix(n)
    a = cuda.to_device(matrix.astype(np.float32))
    c = cuda.device_array((n, n), np.float32)
    size = fast.padded_size(n)
    padded = cuda.device_array((size, size), np.float32)
    launches: dict[str, Callable[[], None]] = {
        PAPER: lambda: paper.launch(a, c),
        FAST: lambda: fast.launch(a, padded, c),
    }
    if cublas is not None:
        launches[CUBLAS] = lambda: cublas.square(a, c)

    right = {}
    for name, launch in launches.items():
        c.copy_to_device(np.zeros((n, n), np.float32))
        launch()
        right[name] = matrices.is_square_of(c.copy_to_host().astype(np.float64), matrix)
    # A launch takes microseconds to arrive: so many at once that this does not count.
    repeats = max(1, min(20, (4096 // n) ** 3))
    return {name: _timed_by_events(launch, repeats) for name, launch in launches.items()}, right


def _timed_by_events(launch: Callable[[], None], repeats: int) -> Measure:
    def measure() -> float:
        begin, end = cuda.event(), cuda.event()
        begin.record()
        for _ in range(repeats):
            launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / repeats

    return measure


def measures_of_calls(kernel: ModuleType, a: Matrix, c: Matrix) -> dict[str, Measure]:
    """Make what measures a whole call, with pageable and with pinned buffers."""

    def pageable() -> float:
        begun = time.perf_counter_ns()
        kernel.multiply(a, c)
        return (time.perf_counter_ns() - begun) / 1e6

    def pinned() -> float:
        begun = time.perf_counter_ns()
        with cuda.pinned(a), cuda.pinned(c):  # to register the pages is part of it, as it would be in a worker
            kernel.multiply(a, c)
        return (time.perf_counter_ns() - begun) / 1e6

    return {"pageable": pageable, "pinned": pinned}


def medians(measures: dict[tuple[str, str], Measure], rounds: int) -> dict[tuple[str, str], float]:
    """Measure all of them in each round, every other round in the opposite order; give each one's median."""
    for measure in measures.values():
        measure()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in measures}
    for number in range(rounds):
        for key in list(measures) if number % 2 == 0 else reversed(measures):
            times[key].append(measures[key]())
    return {key: statistics.median(values) for key, values in times.items()}


def measure_size(
    n: int, rounds: int, paper: ModuleType, fast: ModuleType, cublas: Cublas | None
) -> list[dict[str, object]]:
    """Measure one N; give a row for each kernel, times in milliseconds."""
    on_gpu, right = measures_on_gpu(n, paper, fast, cublas)
    measures = {(name, "gpu"): measure for name, measure in on_gpu.items()}
    matrix = matrices.random_matrix(n)
    with matrices.shared_matrix(n) as a, matrices.shared_matrix(n) as c:
        a.matrix[:] = matrix
        for name, kernel in (PAPER, paper), (FAST, fast):
            c.matrix[:] = 0
            kernel.multiply(a.matrix, c.matrix)
            right[name] = right[name] and matrices.is_square_of(c.matrix, matrix)
            for way, measure in measures_of_calls(kernel, a.matrix, c.matrix).items():
                measures[name, way] = measure
        found = medians(measures, rounds)
        measures.clear()  # they hold the matrices, which hold the segments
    return [
        {
            "n": n,
            "kernel": name,
            **{f"{way}_ms": found.get((name, way)) for way in WAYS},
            "gflops": 2 * n**3 / found[name, "gpu"] / 1e6,
            "share_of_cublas": found[CUBLAS, "gpu"] / found[name, "gpu"] if cublas is not None else None,
            "right": right[name],
        }
        for name in on_gpu
    ]


def show(rows: list[dict[str, object]], cublas: Cublas | None) -> None:
    """Print the rows as a table."""
    table = Table(title="A matrix squared: medians" + ("" if cublas else "; cuBLAS is missing: not found here"))
    for heading in ("N", "kernel", "GPU only, ms", "GFLOP/s", "of cuBLAS", "call, pageable, ms", "call, pinned, ms"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")
    table.add_column("product")
    for row in rows:
        share = row["share_of_cublas"]
        table.add_row(
            str(row["n"]),
            str(row["kernel"]),
            _number(row["gpu_ms"]),
            f"{row['gflops']:,.0f}",
            f"{share:.0%}" if isinstance(share, float) else "-",
            _number(row["pageable_ms"]),
            _number(row["pinned_ms"]),
            "right" if row["right"] else "WRONG",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


def main() -> int:
    """Measure, print, and write the file that is asked for; 1 if a product is wrong."""
    parser = cli.parser(__doc__)
    parser.add_argument("sizes", type=cli.positive_int, nargs="*", default=SIZES, metavar="N", help=f"default: {SIZES}")
    parser.add_argument("--rounds", type=cli.positive_int, default=LEAST_ROUNDS, help="default and least: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        raise UsageError(f"--rounds is {options.rounds}: a median of less than {LEAST_ROUNDS} says little")

    paper = kernels.load(ROOT / "cuda-matmul-fn.py", kernels.KERNEL_FUNCTION)
    fast = kernels.load(ROOT / "cuda-matmul-fast-fn.py", kernels.KERNEL_FUNCTION)
    boot = {PAPER: seconds_to_prepare(paper), FAST: seconds_to_prepare(fast)}
    try:
        cublas = Cublas()
    except OSError:
        cublas = None

    about = {
        "card": _card(),
        "cublas": cublas.version if cublas else None,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rounds": options.rounds,
        "prepare_seconds": boot,
        "machine": machine.describe(),
    }
    rows: list[dict[str, object]] = []
    for n in options.sizes:
        found = measure_size(n, options.rounds, paper, fast, cublas)
        show(found, cublas)
        rows += found
        if options.json:  # at once: of a run that is cut off, what there is shall be left
            options.json.write_text(json.dumps(about | {"results": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["right"] for row in rows) else 1


def _card() -> str:
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}"


if __name__ == "__main__":
    cli.run(main)
