#!/usr/bin/env python3
"""Kernel: the square of a small matrix, held for as long as an emulated GPU takes. Run as a script: [N].

The product is computed for real. The worker then waits until the emulator (kaas.emulator) says that a GPU would have
it, in turn with the others of that GPU, and that the place is free. Nothing of that is measured.
"""

import os

from kaas import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # BLAS reads it when NumPy is first imported

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from kaas import cli, matrices
from kaas.emulator import Emulator
from kaas.matrices import Matrix


class Device:
    """An emulated GPU, as one worker has it; made when the worker has booted.

    Raises:
        UsageError, ConnectionFailed: there is no emulator, or it has no such GPU.
    """

    def __init__(self) -> None:
        number, gpu = (os.environ.get(name, "0") for name in ("KAAS_WORKER", "KAAS_GPU"))
        now = time.monotonic()
        self._emulator = Emulator()
        self._emulator.ask("worker", number, gpu, now - float(os.environ.get("KAAS_SPAWNED", now)))
        self._is_held = False

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Do what is done within, and then wait until upload, kernel and download would be over."""
        self.release()
        self._emulator.tell("call")
        self._is_held = True
        try:
            yield
        finally:
            self._emulator.wait()

    def release(self) -> None:
        """Wait until the place of the last call would be free."""
        if self._is_held:
            self._is_held = False
            self._emulator.wait()


_device: Device | None = None


def multiply(a: Matrix, c: Matrix) -> None:
    """Store a @ a in c."""
    assert _device is not None
    with _device.call():
        np.matmul(a, a, out=c)


def call(payload: bytes) -> bytes:
    """Serve one invocation: a matrix task (kaas.matrices)."""
    assert _device is not None
    try:
        return matrices.answer(payload, multiply)
    finally:
        _device.release()


def prepare(phase: Callable[[str], contextlib.AbstractContextManager[None]]) -> None:
    """Boot for as long as the workers of a GPU do.

    Raises:
        UsageError, ConnectionFailed: there is no emulator, or it has no such GPU.
    """
    global _device  # noqa: PLW0603 - a kernel module is one worker
    with phase("emulated"):
        _device = Device()


def run_alone() -> None:
    """Be a script."""
    size = cli.matrix_size()
    prepare(lambda name: contextlib.nullcontext())
    matrices.run_kernel_alone(multiply, size)


if __name__ == "__main__":
    cli.run(run_alone)
