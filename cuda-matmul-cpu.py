#!/usr/bin/env python3
"""Kernel: the square of a matrix on one CPU core, compiled by Numba. Run as a script: ./cuda-matmul-cpu.py [N]."""

from kaas import cli  # first: it says what is missing, and answers --help before the libraries are imported

if __name__ == "__main__":
    size = cli.matrix_size()

from numba import njit

from kaas import matrices
from kaas.matrices import Matrix


# Compiled when the module is imported, for either dtype, and kept on disk: only the first import ever compiles.
@njit(["void(float64[:,::1], float64[:,::1])", "void(float32[:,::1], float32[:,::1])"], cache=True)
def multiply(a: Matrix, c: Matrix) -> None:
    """Store a @ a in c, row by row: the innermost loop runs along rows, where the processor's vector unit can help."""
    n = a.shape[0]
    for row in range(n):
        for column in range(n):
            c[row, column] = 0
        for k in range(n):
            factor = a[row, k]
            for column in range(n):
                c[row, column] += factor * a[k, column]


def call(payload: bytes) -> bytes:
    """Serve one invocation: a matrix task (kaas.matrices)."""
    return matrices.answer(payload, multiply)


if __name__ == "__main__":
    cli.run(lambda: matrices.run_kernel_alone(multiply, size))
