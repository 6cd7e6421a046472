import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ready_python import ReadyPython
from support import LIMIT, Server, StartServer, refusal

from kaas import ROOT
from kaas.matrices import Task, is_square_of, random_matrix, shared_matrix

KERNELS = {"paper": ROOT / "cuda-matmul-fn.py", "fast": ROOT / "cuda-matmul-fast-fn.py"}
SIMULATOR = {"NUMBA_ENABLE_CUDASIM": "1", "WORKER_GPU": "0"}
NO_GPU = {"NUMBA_ENABLE_CUDASIM": "0", "NUMBA_DISABLE_CUDA": "1"}
PHASES = ["context", "compile", "first_launch"]

both_kernels = pytest.mark.parametrize("kernel", KERNELS)

LOAD = """
import contextlib, pathlib, sys
import numpy as np
from numba import cuda
from kaas import kernels, matrices
from kaas.errors import TaskError, UsageError
from kaas.matrices import Task, random_matrix, shared_matrix

def load():
    return kernels.load(pathlib.Path(sys.argv[1]), "call")

def check(kernel, n, dtype):
    matrix = random_matrix(n).astype(dtype)
    with shared_matrix(n, dtype) as a, shared_matrix(n, dtype) as c:
        a.matrix[:] = matrix
        c.matrix[:] = 1000.0  # what is there before must not matter
        kernel.call(Task(a.name, c.name, n, dtype).encode())
        assert np.allclose(c.matrix, matrix @ matrix, rtol=1e-5 * max(1, n // 100)), (n, dtype)
        assert matrices.is_square_of(c.matrix, matrix), (n, dtype)
        assert np.array_equal(a.matrix, matrix)
"""


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def output(kernel: str, code: str, run: Callable[..., "subprocess.CompletedProcess[str]"] = python) -> str:
    """Run some code in a process of its own, after what it needs to load the kernel; return what it prints."""
    done = run("-c", LOAD + code, KERNELS[kernel])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def simulator() -> Iterator[ReadyPython]:
    with ReadyPython("from numba import cuda", SIMULATOR) as python:
        yield python


@pytest.fixture(scope="module")
def no_gpu() -> Iterator[ReadyPython]:
    with ReadyPython("from numba import cuda", NO_GPU) as python:
        yield python


def said_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1), done.stderr
    return done.stderr


# The fast kernel's arithmetic (that of the paper's is in test_matrices.py)


SMALL_TILES = """
kernel.THREADS, kernel.TILE = 4, 16
kernel.pad, kernel.multiply_tiles = kernel.make_kernels(threads=4, per_thread=4, depth=4)
"""
"""The simulator makes a thread for each of a block's, and a block has 256 of them as the kernel is."""


def test_the_fast_kernel_computes_the_product_with_the_tiles_that_it_has_and_with_others(
    simulator: ReadyPython,
) -> None:
    code = f"""
kernel = load()
check(kernel, 33, "float64")
{SMALL_TILES}
check(kernel, 1, "float64")
check(kernel, 17, "float64")
check(kernel, 5, "float32")
"""
    output("fast", code, simulator.run)


@pytest.mark.slow
def test_the_fast_kernel_computes_the_product_from_many_tiles(simulator: ReadyPython) -> None:
    code = f"""
kernel = load()
{SMALL_TILES}
for n in 1, 2, 5, 15, 16, 17, 33, 40:
    for dtype in matrices.DTYPES:
        check(kernel, n, dtype)
"""
    output("fast", code, simulator.run)


# Getting ready


@both_kernels
def test_a_gpu_kernel_touches_the_gpu_when_it_prepares_and_not_when_it_is_imported(
    simulator: ReadyPython, kernel: str
) -> None:
    code = """
did = []
available, select = cuda.is_available, cuda.select_device
cuda.is_available = lambda: did.append("looked for a GPU") or available()
cuda.select_device = lambda number: did.append(f"selected {number}") or select(number)
kernel = load()
assert not did, did

@contextlib.contextmanager
def phase(name):
    print("begin", name)
    yield
    print("end", name)

kernel.prepare(phase)
assert did == ["looked for a GPU", "selected 0"], did
"""
    assert output(kernel, code, simulator.run).split("\n") == [
        *(line for phase in PHASES for line in (f"begin {phase}", f"end {phase}")),
        "",
    ]


@both_kernels
@pytest.mark.parametrize("number", ["7", "GPU-1234"])
def test_a_gpu_that_cannot_be_used_is_named_in_one_line(simulator: ReadyPython, kernel: str, number: str) -> None:
    done = simulator.run(KERNELS[kernel], "3", WORKER_GPU=number)
    assert f"GPU {number} (WORKER_GPU) cannot be used: " in said_in_one_line(done)
    assert done.returncode == 2


@both_kernels
def test_without_a_gpu_the_script_says_so_in_one_line(no_gpu: ReadyPython, kernel: str) -> None:
    done = no_gpu.run(KERNELS[kernel], "3")
    assert "needs an NVIDIA GPU" in said_in_one_line(done)
    assert done.returncode == 2


@both_kernels
def test_without_a_gpu_the_server_says_so_in_one_line(kernel: str) -> None:
    assert "needs an NVIDIA GPU" in refusal(KERNELS[kernel], **NO_GPU)


# The programs around it


def test_the_benchmark_tells_how_to_use_it_without_a_gpu(no_gpu: ReadyPython) -> None:
    done = no_gpu.run(ROOT / "benchmarks" / "gpu_kernels.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_the_benchmark_without_a_gpu_says_so_in_one_line(no_gpu: ReadyPython) -> None:
    done = no_gpu.run(ROOT / "benchmarks" / "gpu_kernels.py")
    assert "needs an NVIDIA GPU" in said_in_one_line(done)
    assert done.returncode == 2


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Path:
    """A stand-in of nvidia-smi, on PATH: prints the file `answer` beside it, and fails without one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in = folder / "nvidia-smi"
    stand_in.write_text(f'#!/bin/sh\nexec cat "{folder}/answer"\n')
    stand_in.chmod(0o755)
    return folder


def test_the_gpu_checks_without_a_gpu_say_so_in_one_line(nvidia_smi: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "test-gpu"],
        env={**os.environ, "PATH": f"{nvidia_smi}:{os.environ['PATH']}", "KAAS_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "no NVIDIA GPU" in said_in_one_line(done)
    assert done.returncode == 2


# On a GPU


def usable_gpu() -> bool:
    """Whether there is a GPU that Numba can use; asked in another process, so that CUDA does not start in this one."""
    if shutil.which("nvidia-smi") is None:
        return False
    done = python("-c", "from numba import cuda; print(cuda.is_available())", NUMBA_ENABLE_CUDASIM="0")
    return done.stdout.strip() == "True"


@pytest.fixture(scope="session")
def gpu() -> None:
    if not usable_gpu():
        reason = "no NVIDIA GPU that numba-cuda can use (scripts/setup --gpu)"
        (pytest.fail if os.environ.get("KAAS_NEED_GPU") else pytest.skip)(reason)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@both_kernels
def test_on_a_gpu_a_kernel_computes_the_product(kernel: str) -> None:
    code = """
kernel = load()
kernel.prepare(lambda name: contextlib.nullcontext())
for n in 1, 15, 16, 17, 100, 127, 128, 129, 1000:
    for dtype in matrices.DTYPES:
        check(kernel, n, dtype)
"""
    output(kernel, code)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@both_kernels
def test_on_a_gpu_a_matrix_larger_than_its_memory_is_refused(kernel: str) -> None:
    code = """
kernel = load()
kernel.prepare(lambda name: contextlib.nullcontext())
a = np.broadcast_to(np.float64(1), (10**6, 10**6))  # 8 TB, which are nowhere
try:
    kernel.multiply(a, a)
except TaskError as error:
    print(error)
check(kernel, 100, "float64")  # and it serves on
"""
    assert re.search(
        r"1000000 x 1000000 matrix of float64 takes \d+ bytes on the GPU, and \d+ are", output(kernel, code)
    )


def serve_one(server: Server, n: int) -> None:
    with shared_matrix(n) as a, shared_matrix(n) as c, server.connection() as kaas:
        a.matrix[:] = random_matrix(n)
        reply = kaas.invoke(Task(a.name, c.name, n).encode(), timeout=60.0)
        assert reply.status == "ok", reply
        assert is_square_of(c.matrix, a.matrix)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@both_kernels
def test_on_a_gpu_workers_use_what_the_first_compiled_and_drop_what_is_damaged(
    start_server: StartServer, tmp_path: Path, kernel: str
) -> None:
    cache = tmp_path / "cache"

    def serve() -> Server:
        server = start_server(KERNELS[kernel], "--num-gpus", "1", "--max-req-per-gpu", "1", NUMBA_CACHE_DIR=str(cache))
        serve_one(server, 100)
        assert server.stop() == 0
        return server

    def compiled() -> dict[Path, int]:
        return {file: file.stat().st_ino for file in cache.rglob(f"{KERNELS[kernel].stem}.*.nb[ic]")}

    serve()
    first = compiled()
    assert any(file.suffix == ".nbc" for file in first)
    assert "damaged" not in serve().stderr()
    assert compiled() == first  # a file written anew would be another file

    for file in first:
        if file.suffix == ".nbc":
            file.write_bytes(b"damaged")
    assert "was damaged, and is compiled again" in serve().stderr()
    assert "damaged" not in serve().stderr()


def test_numbas_warning_of_few_blocks_is_not_shown_also_where_it_is_in_colour(simulator: ReadyPython) -> None:
    text = "\\x1b[1mGrid size 1 will likely result in GPU under-utilization due to low occupancy.\\x1b[0m"
    done = simulator.run("-c", f"import warnings, kaas.gpu; warnings.warn('{text}')")
    assert (done.returncode, done.stderr) == (0, "")
