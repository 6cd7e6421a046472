"""The GPU kernels through the real compiler, for every GPU that it knows, and what becomes of what it has compiled."""

from pathlib import Path

import pytest
from stand_in_driver import KERNELS, Driver, Environment, every_environment, one_card
from support import StartServer

COMPILE = r"""
import pathlib, re, sys
from numba import cuda
from numba.cuda.cudadrv import nvrtc
from kaas import kernels

# What a worker has compiled for its GPU: the assembly, and the machine code made of it.
for number, capability in enumerate(sys.argv[1].split(",")):
    version = tuple(map(int, capability.split(".")))
    if version not in nvrtc.get_supported_ccs():
        continue
    for path in sys.argv[2:]:
        with cuda.gpus[number]:
            kernel = kernels.load(pathlib.Path(path), "call")
            kernel.compile_kernels()
            for function in {kernel.multiply_tiles, getattr(kernel, "pad", kernel.multiply_tiles)}:
                for signature, compiled in function.overloads.items():
                    compiled._codelibrary.get_cubin(cc=version)
                    float64 = any(array.dtype.name == "float64" for array in signature)
                    used = bool(re.search(r"[.]f64\b", function.inspect_asm(signature)))
                    print(capability, pathlib.Path(path).name, function.py_func.__name__, float64, used)
"""
CAPABILITIES = ["7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.1", "10.3", "11.0", "12.0"]
ENDS = ["7.0", "7.5", "12.0"]
"""The oldest one that CUDA 12 and 13 compile for, and the newest."""


@every_environment
@pytest.mark.parametrize("capabilities", [ENDS, pytest.param(CAPABILITIES, marks=pytest.mark.slow)], ids=len)
def test_the_kernels_compile_for_every_gpu_and_use_float64_only_where_the_matrix_is(
    environment: Environment, libcuda: Path, tmp_path: Path, capabilities: list[str]
) -> None:
    driver = Driver(libcuda, tmp_path / "driver", tmp_path, environment, ",".join(capabilities))
    lines = driver.run("-c", COMPILE, driver.capability, *KERNELS.values(), limit=500).stdout.splitlines()
    found = {tuple(line.split()[:3]) for line in lines}
    names = [("cuda-matmul-fn.py", "multiply_tiles")]
    names += [("cuda-matmul-fast-fn.py", function) for function in ("pad", "multiply_tiles")]
    for capability in {environment.oldest, "12.0"}:
        assert {(capability, *name) for name in names} <= found
    assert len(lines) == 2 * len(found), "each for float64 and float32"
    assert [line for line in lines if line.split()[3] != line.split()[4]] == []


# What it has compiled


def index_files(driver: Driver) -> dict[Path, int]:
    """List what Numba has kept of the paper's kernel; a file written anew would be another one."""
    folder = Path(driver.variables["NUMBA_CACHE_DIR"])
    return {file: file.stat().st_ino for file in folder.rglob("cuda-matmul-fn.*.nb[ic]")}


@one_card
def test_good_code_is_kept_when_a_library_lacks_what_loading_it_takes(
    start_server: StartServer, driver: Driver, tmp_path: Path
) -> None:
    python, paper = driver.environment.python, KERNELS["paper"]
    driver.variables["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    start_server(paper, python=python, **driver.variables).stop()
    before = index_files(driver)
    assert any(file.suffix == ".nbc" for file in before)
    lacking = tmp_path / "lacking.py"
    lacking.write_text(f"""
from pathlib import Path
from kaas import gpu, kernels
from numba.cuda.descriptor import cuda_target

def refresh():
    raise AttributeError("module 'numpy' has no attribute 'row_stack'")

kernel = kernels.load(Path({str(paper)!r}), "call")
cuda_target.target_context.refresh = refresh
call, prepare = kernel.call, kernel.prepare
""")
    done = driver.run("-c", BOOT, lacking)
    assert done.stdout == "AttributeError False\n"
    assert index_files(driver) == before


BOOT = """
import contextlib, pathlib, sys
from kaas import compiled, kernels

kernel = kernels.load(pathlib.Path(sys.argv[1]), "call")
try:
    kernel.prepare(lambda name: contextlib.nullcontext())
except Exception as error:
    print(type(error).__name__, compiled.drop_invalid(error))
else:
    print("ready")
"""


@one_card
@pytest.mark.parametrize("damaged", ["*.nbc", "*.nbi"])
def test_code_that_cannot_be_read_is_compiled_again(driver: Driver, tmp_path: Path, damaged: str) -> None:
    driver.variables["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    boot = ("-c", BOOT, KERNELS["paper"])
    assert driver.run(*boot).stdout == "ready\n"
    for file in index_files(driver):
        if file.match(damaged):
            file.write_bytes(b"\x80damaged")
    done = driver.run(*boot, check=False)
    assert done.stdout == "ready\n"
    assert "was damaged, and is compiled again" in done.stderr
    assert driver.run(*boot).stdout == "ready\n"  # and nothing on stderr


@one_card
def test_a_numpy_that_has_dropped_what_numba_cuda_asks_for_is_mended(driver: Driver) -> None:
    # As NumPy 2.5 is. numba-cuda is imported first, as in the fork server for a kernel that imports it.
    code = """
import numpy as np
vars(np).pop("row_stack", None)
from numba import cuda
from kaas import gpu
gpu.preload()
"""
    driver.run("-c", code)
