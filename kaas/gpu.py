"""What matrix kernels on an NVIDIA GPU share: select it, prepare it, see that there is memory. For kernels only.

Nothing else in kaas/ imports this: the server's own process never loads CUDA's driver, and the one that its workers
are forked from never initialises it (importing numba.cuda may load it, which a fork survives).
"""

import contextlib
import functools
import mmap
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np

if not hasattr(np, "row_stack"):
    # NumPy 2.5 has removed this, and numba-cuda up to 0.30.4 asks for it when it first compiles or loads anything.
    setattr(np, "row_stack", np.vstack)  # noqa: B010 - NumPy's types do not know it

from numba import config, cuda

from kaas import matrices
from kaas.errors import KaasError, TaskError, TemporarilyUnavailable, UsageError, WorkerUnusable
from kaas.forkserver import say
from kaas.matrices import DTYPES, Matrix, Multiply

Phase = Callable[[str], AbstractContextManager[None]]
"""`with phase("context"): ...` has what is done in it timed under that name."""

REAL = getattr(cuda, "implementation", "") == "NVIDIA" and not config.ENABLE_CUDASIM  # type: ignore[attr-defined]
"""Whether kernels are compiled by numba-cuda, and not interpreted by Numba's simulator."""

PATIENCE = 30.0
"""Seconds that a GPU may be refused for a reason that passes by itself, before the boot fails."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_PASSING = ("CUDA_ERROR_MPS_SERVER_NOT_READY", "CUDA_ERROR_MPS_CONNECTION_FAILED")
"""807 and 805: a fresh MPS server is still initialising, or one recovers from the fault of a client."""

_HINTS = {
    "CUDA_ERROR_MPS_SERVER_NOT_READY": "the MPS server is starting, or recovers as soon as all its clients have ended",
    "CUDA_ERROR_MPS_CONNECTION_FAILED": "see that the MPS control daemon runs, for this user, where "
    "CUDA_MPS_PIPE_DIRECTORY says, or run without MPS and unset that",
    "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED": "take fewer workers for each GPU",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has it for itself: nvidia-smi shows which, and its compute mode",
    "CUDA_ERROR_SYSTEM_NOT_READY": "a service of the driver is not up yet, on NVSwitch machines nvidia-fabricmanager "
    "(systemctl status nvidia-fabricmanager): start it, in the driver's version",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated and its old kernel module still runs: restart the "
    "machine",
}
"""What a person can do about an error, by the name that stands in its text. NVIDIA's documentation: CUresult."""

# Numba would have every launch of few blocks be a mistake; a small matrix is none.
warnings.filterwarnings("ignore", message=".*Grid size .* low occupancy")


def preload() -> None:
    """Set up once what each process forked later would have to before its first kernel, compiled or read from the disk.

    That is what numba-cuda knows of types and functions, and the compiler's library. It starts no thread and calls no
    function of CUDA's driver.
    """
    if REAL:
        from numba.cuda.cudadrv.runtime import runtime  # noqa: PLC0415 - only numba-cuda has these
        from numba.cuda.descriptor import cuda_target  # noqa: PLC0415

        cuda_target.typing_context.refresh()
        cuda_target.target_context.refresh()
        with contextlib.suppress(Exception):  # whoever lacks it is told so when a GPU is selected
            runtime.get_version()


def prepare_gpu(phase: Phase, compile_kernels: Callable[[], None], multiply: Multiply) -> None:
    """Select the GPU and create its context, compile, and launch once: the first launch still loads and sets up much.

    Raises:
        UsageError: there is no GPU, or it cannot be used.
        TemporarilyUnavailable: it cannot be used for now, not even after `PATIENCE`.
    """
    with phase("context"):
        _select_gpu()
    with phase("compile"):
        if REAL:
            compile_kernels()
    with phase("first_launch"):
        for dtype in DTYPES:
            multiply(np.ones((1, 1), dtype), np.empty((1, 1), dtype))


@contextlib.contextmanager
def registered(segment: mmap.mmap) -> Iterator[None]:
    """Register a segment that stays with the driver: copies then need no staging. They work without, too."""
    with contextlib.suppress(Exception), contextlib.ExitStack() as known:
        with contextlib.suppress(Exception):
            known.enter_context(cuda.pinned(np.frombuffer(segment, np.uint8)))
        yield


def close_gpu() -> None:
    """Close the context, after the last invocation: MPS wants its clients to leave in order."""
    matrices.let_go(registered)
    cuda.close()


def run_alone(prepare: Callable[[Phase], None], multiply: Multiply, size: str) -> None:
    """Be a GPU kernel's script: prepare, and multiply one matrix of so many rows."""
    prepare(lambda _: contextlib.nullcontext())
    matrices.run_kernel_alone(multiply, size)


def within_memory(needed: Callable[[Matrix], int]) -> Callable[[Multiply], Multiply]:
    """Make a `multiply(a, c)` that begins only if `needed(a)` bytes are free on the GPU, and leaves none taken.

    It raises:
        TaskError: they are not, or another process was faster and took them.
        WorkerUnusable: what went wrong has cost the CUDA context, so that nothing will work in this process any more.
        Exception: whatever else goes wrong.
    """

    def decorate(multiply: Multiply) -> Multiply:
        @functools.wraps(multiply)
        def within(a: Matrix, c: Matrix) -> None:
            if needed(a) > _free_memory():
                raise _too_large(a, needed(a))
            try:
                multiply(a, c)
                _free_at_once()
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they hold what is on the GPU
                _check_context(error)
                refusal = _too_large(a, needed(a)) if "OUT_OF_MEMORY" in str(error) else None
                _free_at_once()
                if refusal is None:
                    raise
                raise refusal from None

        return within

    return decorate


def _too_large(a: Matrix, needed: int) -> TaskError:
    return TaskError(
        f"to square a {len(a)} x {len(a)} matrix of {a.dtype} takes {needed} bytes on the GPU, and {_free_memory()} "
        "are free: take a smaller N, or fewer workers for each GPU"
    )


def _free_memory() -> int:
    try:
        free: int = cuda.current_context().get_memory_info().free
    except Exception as error:
        _check_context(error)
        raise
    return free


def _check_context(error: Exception) -> None:
    """Ask the context whether it survived an error. NVIDIA's documentation: a lost one fails whatever it is asked.

    Raises:
        WorkerUnusable: it did not.
    """
    try:
        cuda.synchronize()
    except Exception:
        raise WorkerUnusable(f"the CUDA context is lost: {say(error)}") from error


def _free_at_once() -> None:
    """Free what Numba has put by to be freed later: until then no other worker can have it, and it counts as taken."""
    manager = getattr(cuda.current_context(), "memory_manager", None)  # the simulator has none
    if manager is not None:
        manager.deallocations.clear()


def _select_gpu() -> None:
    """Create the context on the GPU of WORKER_GPU; while that is refused for now, try again after growing pauses."""
    deadline, pause = time.monotonic() + PATIENCE, _FIRST_PAUSE
    while True:
        try:
            return _create_context(os.environ.get("WORKER_GPU", "0"))
        except TemporarilyUnavailable:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _create_context(ordinal: str) -> None:
    if not cuda.is_available():
        why = str(cuda.cuda_error() or "CUDA's compiler library NVVM is missing")
        _forget_failed_start()
        raise _refusal("this kernel needs an NVIDIA GPU, its driver and numba-cuda (scripts/setup --gpu)", why)
    try:
        cuda.select_device(int(ordinal))
    except Exception as error:
        raise _refusal(f"GPU {ordinal} (WORKER_GPU) cannot be used", say(error)) from None


def _refusal(what: str, why: str) -> KaasError:
    """Say in one line why there is no GPU, and what to do about it."""
    hint = next((hint for name, hint in _HINTS.items() if name in why), "without a GPU, take cuda-matmul-cpu.py")
    kind = TemporarilyUnavailable if any(name in why for name in _PASSING) else UsageError
    return kind(f"{what}: {' '.join(why.split())[:200].rstrip('.')}; {hint}")


def _forget_failed_start() -> None:
    """Have Numba, which would remember that the driver did not start, start it once more when it is next asked."""
    if REAL:
        from numba.cuda.cudadrv.driver import driver  # noqa: PLC0415 - only numba-cuda has this

        driver.is_initialized, driver.initialization_error = False, None
