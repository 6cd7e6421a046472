"""Kernels and client modules that give work to processes of their own, whichever way these are started."""

from pathlib import Path

import pytest
from support import StartServer, eventually

METHODS = ["spawn", "forkserver", "fork"]
WAYS = [f"multiprocessing.get_context({method!r}).Pool(2)" for method in METHODS]
WAYS += [f"ProcessPoolExecutor(2, multiprocessing.get_context({method!r}))" for method in METHODS[:2]]

SUM = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from helper_of_its_own import doubled

class Number:
    def __init__(self, value):
        self.value = value

def double(number):
    return Number(doubled(number.value))

def sum_of_doubled(count):
    with {pool} as pool:
        return sum(number.value for number in pool.map(double, map(Number, range(count))))
"""
KERNEL = (
    SUM
    + """
def call(payload):
    return str(sum_of_doubled(len(payload))).encode()
"""
)
BY_JOBLIB = """
import os
os.environ["JOBLIB_TEMP_FOLDER"] = os.path.dirname(__file__)
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from helper_of_its_own import doubled

class Number:
    def __init__(self, value):
        self.value = value

def double(number):
    return Number(doubled(number.value))

def call(payload):
    made = Parallel(n_jobs=2)(delayed(double)(Number(number)) for number in range(len(payload)))
    get_reusable_executor().shutdown()  # else its semaphores are left, for whoever would remove them is killed with us
    assert all(type(number) is Number for number in made)
    return str(sum(number.value for number in made)).encode()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the module lies with a file of its own: neither the server's folder nor on anybody's path."""
    folder = tmp_path / "modules of my own"
    folder.mkdir()
    (folder / "helper_of_its_own.py").write_text("def doubled(value):\n    return 2 * value\n")
    return folder


def answer(start_server: StartServer, kernel: Path) -> bytes:
    server = start_server(kernel, "-m", "1")
    with server.connection() as kaas:
        reply = kaas.invoke(b"four", timeout=60.0)
    assert reply.status == "ok", reply.payload
    return reply.payload


@pytest.mark.parametrize("pool", WAYS)
def test_a_kernel_gives_work_to_processes_of_its_own(start_server: StartServer, folder: Path, pool: str) -> None:
    kernel = folder / "with-its-own-processes.py"  # whose name no import statement could have
    kernel.write_text(KERNEL.format(pool=pool))
    assert answer(start_server, kernel) == b"12"


@pytest.mark.parametrize("name", ["with_joblib", "with-joblib"])
def test_a_kernel_gives_work_to_joblib(start_server: StartServer, folder: Path, name: str) -> None:
    kernel = folder / f"{name}.py"
    kernel.write_text(BY_JOBLIB)
    assert answer(start_server, kernel) == b"12"


@pytest.mark.parametrize(
    "source", [*(KERNEL.format(pool=pool) for pool in WAYS[:2]), BY_JOBLIB], ids=[*METHODS[:2], "joblib"]
)
def test_a_kernel_that_is_named_like_one_of_the_projects_gives_work_to_processes_of_its_own(
    start_server: StartServer, folder: Path, source: str
) -> None:
    kernel = folder / "cuda-matmul-cpu.py"
    kernel.write_text(source)
    assert answer(start_server, kernel) == b"12"


def test_of_a_kernel_that_is_named_like_a_library_one_line_says_what_it_cannot_do(
    start_server: StartServer, folder: Path
) -> None:
    kernel = folder / "json.py"
    kernel.write_text("def call(payload):\n    return payload\n")
    server = start_server(kernel, "-m", "4")
    with server.connection() as kaas:
        assert kaas.invoke(b"").status == "ok"
    eventually(lambda: len(server.workers("idle")) == 4)
    assert server.stderr().count("processes that it starts cannot import it") == 1


def test_what_processes_of_a_kernel_import_is_compiled_code_of_the_kernels(
    start_server: StartServer, folder: Path, tmp_path: Path
) -> None:
    kernel = folder / "compiled_in_all.py"
    kernel.write_text("""
import multiprocessing
import numba

@numba.njit("int64(int64)", cache=True)
def double(value):
    return 2 * value

def in_a_process(value):
    return double(value), sum(double.stats.cache_misses.values())

def call(payload):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return str(pool.map(in_a_process, [4])).encode()
""")
    server = start_server(kernel, "-m", "1", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    with server.connection() as kaas:  # whose first worker has taken what the kernel's trial compiled
        assert kaas.invoke(b"", timeout=60.0).payload == b"[(8, 0)]"
