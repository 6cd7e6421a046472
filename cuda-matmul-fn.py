#!/usr/bin/env python3
"""Kernel: the square of a matrix on an NVIDIA GPU, by numba-cuda. Run as a script: ./cuda-matmul-fn.py [N].

The paper's kernel: 16 x 16 tiles in shared memory, float32 accumulation over float64 input. Importing it selects the
GPU, creates the context and compiles, so that a worker that is ready has all of that behind it.
"""

import os
import sys

from numba import cuda, float32

from kaas import cli, matrices
from kaas.matrices import Matrix

TILE = 16

if not cuda.is_available():
    sys.exit(
        "cuda-matmul-fn.py needs an NVIDIA GPU and its driver, and finds none; without one, take cuda-matmul-cpu.py"
    )
cuda.select_device(int(os.environ.get("WORKER_GPU", "0")))


@cuda.jit(["void(float64[:,::1], float64[:,::1])", "void(float32[:,::1], float32[:,::1])"])
def multiply_tiles(a: Matrix, c: Matrix) -> None:
    """Store a @ a in c; each thread computes one element, each block of TILE x TILE threads one tile."""
    left = cuda.shared.array((TILE, TILE), float32)
    right = cuda.shared.array((TILE, TILE), float32)
    n = a.shape[0]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    column, row = cuda.grid(2)
    total = float32(0)
    for begin in range(0, n, TILE):
        # Beyond the matrix's edge the tiles hold zeros, so N need be no multiple of TILE.
        left[y, x] = a[row, begin + x] if row < n and begin + x < n else 0
        right[y, x] = a[begin + y, column] if begin + y < n and column < n else 0
        cuda.syncthreads()
        for k in range(TILE):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < n and column < n:
        c[row, column] = total


def multiply(a: Matrix, c: Matrix) -> None:
    """Upload a, store a @ a in c on the GPU, download c."""
    blocks = -(-len(a) // TILE)
    on_gpu = cuda.to_device(a)
    product = cuda.device_array_like(on_gpu)
    multiply_tiles[(blocks, blocks), (TILE, TILE)](on_gpu, product)
    product.copy_to_host(c)


def call(payload: bytes) -> bytes:
    """Serve one invocation: a matrix task (kaas.matrices)."""
    return matrices.answer(payload, multiply)


if __name__ == "__main__":
    cli.run(lambda: matrices.run_kernel_alone(multiply))
