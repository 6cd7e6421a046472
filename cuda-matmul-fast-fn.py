#!/usr/bin/env python3
"""Kernel: the square of a matrix on an NVIDIA GPU, tiled in registers. Run as a script: ./cuda-matmul-fast-fn.py [N].

As cuda-matmul-fn.py, which has the paper's kernel, but built for speed: from N = 4096 on it has some 70 % of the rate
of cuBLAS's SGEMM on an H200 (docs/gpu-results.md; `benchmarks/gpu_kernels.py` measures both). A block of 16 x 16
threads computes a tile of 128 x 128 elements, a thread 8 x 8 of them. For each step along k, a thread then reads 16
values from shared memory for 64 multiplications, where the paper's kernel reads 2 for each.

The matrix is first copied on the GPU: to float32, in rows and columns padded with zeros to whole tiles. So each element
is converted once, where the multiplication reads it N / 128 times for either operand, and many a GPU converts from
float64 at a small part of the rate at which it multiplies. It also spares the multiplication every check for the
matrix's edge, and the memory of the upload can then take the product.
"""

from typing import Any

from kaas import cli  # first: it says what is missing, and answers --help before the libraries are imported

if __name__ == "__main__":
    size = cli.matrix_size()

import numpy as np
from numba import cuda, float32

from kaas import gpu, matrices
from kaas.gpu import Phase
from kaas.matrices import DTYPES, Matrix

THREADS = 16
"""Threads of a block in either direction. This and the two below must be powers of 2."""
PER_THREAD = 8
"""Elements of the product that a thread computes, in either direction."""
DEPTH = 8
"""Columns of the left tile and rows of the right one that are in shared memory at once."""
TILE = THREADS * PER_THREAD

ALIGNED = gpu.REAL
"""Whether shared memory can be had aligned to 16 bytes, so that 4 values are read at once; only numba-cuda can."""
REGISTERS = {"max_registers": 128} if gpu.REAL else {}
"""A thread's share that leaves room for a second block on a multiprocessor: one computes while the other waits."""


def make_kernels(threads: int, per_thread: int, depth: int) -> tuple[Any, Any]:  # noqa: PLR0915 - a kernel is one piece
    """Make the two kernels, pad and multiply, for tiles of `threads * per_thread`; all three are powers of 2."""
    tile = threads * per_thread
    # A thread's elements are in four groups, two in either direction: so the threads of a warp read side by side.
    group, half = per_thread // 2, tile // 2
    loads = tile * depth // threads**2
    left_rows, right_rows = threads**2 // depth, threads**2 // tile
    # Four more in each row let the threads of a warp, which store the left tile by columns, use different banks.
    width = tile + 4
    thread_mask, depth_mask = threads - 1, depth - 1

    @cuda.jit(cache=True)
    def pad(a: Matrix, padded: Matrix) -> None:
        """Copy a into the larger square `padded`, whose size is a multiple of the tile, and fill up with zeros."""
        n = a.shape[0]
        first_row, first_column = cuda.blockIdx.y * tile, cuda.blockIdx.x * tile
        for i in range(per_thread):
            row = first_row + i * threads + cuda.threadIdx.y
            for j in range(per_thread):
                column = first_column + j * threads + cuda.threadIdx.x
                padded[row, column] = a[row, column] if row < n and column < n else float32(0)

    @cuda.jit(cache=True, fastmath=True, **REGISTERS)
    def multiply_tiles(a: Matrix, c: Matrix) -> None:  # noqa: PLR0912
        """Store in c the square of `a`, which is padded as `pad` does."""
        if ALIGNED:
            left = cuda.shared.array((2, depth, width), float32, 16)
            right = cuda.shared.array((2, depth, width), float32, 16)
        else:
            left = cuda.shared.array((2, depth, width), float32)
            right = cuda.shared.array((2, depth, width), float32)
        # Every index into these is a constant once the loops are unrolled, so they are registers, not memory.
        total = cuda.local.array((per_thread, per_thread), float32)
        from_left = cuda.local.array(per_thread, float32)
        from_right = cuda.local.array(per_thread, float32)
        next_left = cuda.local.array(loads, float32)
        next_right = cuda.local.array(loads, float32)

        # The masks change no value. They tell the compiler that an index is not negative: else it must reckon, for each
        # access, with one that counts from the end, as Python's do, and cannot see which values lie side by side.
        n = c.shape[0]
        steps = (n + depth_mask) // depth
        x, y = cuda.threadIdx.x & thread_mask, cuda.threadIdx.y & thread_mask
        first_row = (cuda.blockIdx.y * tile) & 0x7FFFFFFF
        first_column = (cuda.blockIdx.x * tile) & 0x7FFFFFFF
        number = y * threads + x
        left_k, left_row = number % depth, number // depth
        right_column, right_k = number % tile, number // tile

        for i in range(per_thread):
            for j in range(per_thread):
                total[i, j] = 0
        for i in range(loads):
            left[0, left_k, left_row + i * left_rows] = a[first_row + left_row + i * left_rows, left_k]
            right[0, right_k + i * right_rows, right_column] = a[right_k + i * right_rows, first_column + right_column]
        cuda.syncthreads()

        for step in range(steps):
            stage = step & 1
            # What the next step needs is on its way from the GPU's memory while this one computes.
            begin = ((step + 1) * depth) & 0x7FFFFFFF
            if step + 1 < steps:
                for i in range(loads):
                    next_left[i] = a[first_row + left_row + i * left_rows, begin + left_k]
                    next_right[i] = a[begin + right_k + i * right_rows, first_column + right_column]
            for count in range(depth):
                k = count & depth_mask
                for i in range(group):
                    from_left[i] = left[stage, k, y * group + i]
                for i in range(group):
                    from_left[group + i] = left[stage, k, half + y * group + i]
                for i in range(group):
                    from_right[i] = right[stage, k, x * group + i]
                for i in range(group):
                    from_right[group + i] = right[stage, k, half + x * group + i]
                for i in range(per_thread):
                    for j in range(per_thread):
                        total[i, j] += from_left[i] * from_right[j]
            # Whoever read the other stage, in the step before, has passed the barrier at that step's end.
            other = (step + 1) & 1
            if step + 1 < steps:
                for i in range(loads):
                    left[other, left_k, left_row + i * left_rows] = next_left[i]
                    right[other, right_k + i * right_rows, right_column] = next_right[i]
            cuda.syncthreads()

        for i in range(per_thread):
            row = first_row + (i // group) * half + y * group + i % group
            for j in range(per_thread):
                column = first_column + (j // group) * half + x * group + j % group
                if row < n and column < n:
                    c[row, column] = total[i, j]

    return pad, multiply_tiles


pad, multiply_tiles = make_kernels(THREADS, PER_THREAD, DEPTH)


def compile_kernels() -> None:
    """Have the kernels compiled for either dtype, or read from the disk, where they are kept by compute capability."""
    for dtype in DTYPES:
        pad.compile(f"void({dtype}[:,::1], float32[:,::1])")
        multiply_tiles.compile(f"void(float32[:,::1], {dtype}[:,::1])")


def padded_size(n: int) -> int:
    """Say how many rows and columns the padded copy of an N x N matrix has."""
    return -(-n // TILE) * TILE


def launch(a: Matrix, padded: Matrix, c: Matrix) -> None:
    """Store a @ a in c, which may be a itself; all three are on the GPU. Returns before it is done."""
    blocks = len(padded) // TILE
    pad[(blocks, blocks), (THREADS, THREADS)](a, padded)
    multiply_tiles[(blocks, blocks), (THREADS, THREADS)](padded, c)


def bytes_on_gpu(a: Matrix) -> int:
    """Say how many bytes `multiply` takes on the GPU for `a`: its copy, which takes the product, and the padded one."""
    return a.nbytes + padded_size(len(a)) ** 2 * np.dtype(np.float32).itemsize


@gpu.within_memory(bytes_on_gpu)
def multiply(a: Matrix, c: Matrix) -> None:
    """Upload a, store a @ a in c on the GPU, download c.

    Raises:
        TaskError: the GPU has not enough free memory.
        WorkerUnusable: the CUDA context is lost.
    """
    size = padded_size(len(a))
    on_gpu = cuda.to_device(a)
    launch(on_gpu, cuda.device_array((size, size), np.float32), on_gpu)
    on_gpu.copy_to_host(c)


def call(payload: bytes) -> bytes:
    """Serve one invocation: a matrix task (kaas.matrices)."""
    return matrices.answer(payload, multiply, gpu.registered)


def prepare(phase: Phase) -> None:
    """Get the GPU ready, before the first invocation.

    Raises:
        UsageError: there is no GPU, or it cannot be used.
    """
    gpu.prepare_gpu(phase, compile_kernels, multiply)


def close() -> None:
    """Let go of the GPU, after the last invocation."""
    gpu.close_gpu()


if __name__ == "__main__":
    cli.run(lambda: gpu.run_alone(prepare, multiply, size))
