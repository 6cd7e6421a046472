#!/usr/bin/env python3
"""Kernel: the square of a matrix on one CPU core, by NumPy's BLAS. Run as a script: ./cuda-matmul-blas.py [N]."""

import os

from kaas import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # BLAS reads it when NumPy is first imported

import numpy as np

from kaas import cli, matrices
from kaas.matrices import Matrix


def multiply(a: Matrix, c: Matrix) -> None:
    """Store a @ a in c."""
    np.matmul(a, a, out=c)


def call(payload: bytes) -> bytes:
    """Serve one invocation: a matrix task (kaas.matrices)."""
    return matrices.answer(payload, multiply)


if __name__ == "__main__":
    cli.run(lambda: matrices.run_kernel_alone(multiply, cli.matrix_size()))
