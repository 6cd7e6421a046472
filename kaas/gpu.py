"""What matrix kernels on an NVIDIA GPU share: select it, prepare it, see that there is memory. For kernels only.

Nothing else in kaas/ imports this: the server's own process never loads CUDA's driver, and the one that its workers
are forked from never initialises it (importing numba.cuda may load it, which a fork survives).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
from numba import config, cuda

from kaas import matrices
from kaas.errors import TaskError, UsageError
from kaas.matrices import DTYPES, Matrix, Multiply

Phase = Callable[[str], AbstractContextManager[None]]
"""`with phase("context"): ...` has what is done in it timed under that name."""


def prepare_gpu(phase: Phase, compile_kernels: Callable[[], None], multiply: Multiply) -> None:
    """Select the GPU and create its context, compile, and launch once: the first launch still loads and sets up much.

    Raises:
        UsageError: there is no GPU, or it cannot be used.
    """
    with phase("context"):
        _select_gpu()
    with phase("compile"):
        if not config.ENABLE_CUDASIM:  # type: ignore[attr-defined] # the simulator compiles nothing
            compile_kernels()
    with phase("first_launch"):
        for dtype in DTYPES:
            multiply(np.ones((1, 1), dtype), np.empty((1, 1), dtype))


def close_gpu() -> None:
    """Close the context, after the last invocation: MPS wants its clients to leave in order."""
    cuda.close()


def run_alone(prepare: Callable[[Phase], None], multiply: Multiply) -> None:
    """Be a GPU kernel's script: prepare, and multiply one matrix (N from the command line)."""
    prepare(lambda _: contextlib.nullcontext())
    matrices.run_kernel_alone(multiply)


@contextlib.contextmanager
def gpu_memory(a: Matrix, needed: int) -> Iterator[None]:
    """Check that `needed` bytes are free on the GPU to square `a`, before any are taken, and let none lie idle after.

    Raises:
        TaskError: they are not, or another process was faster and took them.
    """
    _free_at_once()
    if needed > cuda.current_context().get_memory_info().free:
        raise _too_large(a, needed)
    try:
        yield
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        raise _too_large(a, needed) from None
    finally:
        _free_at_once()


def _too_large(a: Matrix, needed: int) -> TaskError:
    free = cuda.current_context().get_memory_info().free
    return TaskError(
        f"to square a {len(a)} x {len(a)} matrix of {a.dtype} takes {needed} bytes on the GPU, and {free} are free: "
        "take a smaller N, or fewer workers for each GPU"
    )


def _free_at_once() -> None:
    """Free what Numba has put by to be freed later: until then no other worker can have it, and it counts as taken."""
    manager = getattr(cuda.current_context(), "memory_manager", None)  # the simulator has none
    if manager is not None:
        manager.deallocations.clear()


def _select_gpu() -> None:
    """Select the device that WORKER_GPU names and create its context."""
    if not cuda.is_available():
        why = " ".join(str(cuda.cuda_error() or "CUDA's compiler library NVVM is missing").split())
        raise UsageError(
            "this kernel needs an NVIDIA GPU, its driver and numba-cuda (scripts/setup --gpu), and cannot use them: "
            f"{why[:200].rstrip('.')}; without a GPU, take cuda-matmul-cpu.py"
        )
    ordinal = os.environ.get("WORKER_GPU", "0")
    try:
        cuda.select_device(int(ordinal))
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"GPU {ordinal} (WORKER_GPU) cannot be used: {why[:300]}") from None
