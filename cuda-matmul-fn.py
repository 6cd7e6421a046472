#!/usr/bin/env python3
"""Kernel: the square of a matrix on an NVIDIA GPU, by numba-cuda. Run as a script: ./cuda-matmul-fn.py [N].

The paper's kernel: 16 x 16 tiles in shared memory, float32 accumulation over float64 input. Importing it touches no
GPU; `prepare` selects it, creates the context and compiles, so that a worker that is ready has all of that behind it.

Fresh segments, two of which come with every request, are pageable for the driver, on purpose. To pin them is to
register all of their pages for a single copy and to release them afterwards: at N = 10000 these are 390625 pages. Nor
would a pinned buffer of the worker's own help: the copy into it is what the driver does for pageable memory by itself,
piece by piece and while it transfers. `benchmarks/gpu_kernels.py` measures a call either way. Segments that stay
(SEGMENTS=kept) are registered, once.
"""

from kaas import cli  # first: it says what is missing, and answers --help before the libraries are imported

if __name__ == "__main__":
    size = cli.matrix_size()

from numba import cuda, float32

from kaas import gpu, matrices
from kaas.gpu import Phase
from kaas.matrices import DTYPES, Matrix

TILE = 16


# Without signatures here, so that it compiles, or is read from the disk, in `prepare` and not when this is imported.
@cuda.jit(cache=True)
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
        # A plain 0 would be an integer, and have float32 input go through float64.
        left[y, x] = a[row, begin + x] if row < n and begin + x < n else float32(0)
        right[y, x] = a[begin + y, column] if begin + y < n and column < n else float32(0)
        cuda.syncthreads()
        for k in range(TILE):
            total += left[y, k] * right[k, x]
        cuda.syncthreads()
    if row < n and column < n:
        c[row, column] = total


def compile_kernels() -> None:
    """Have the kernel compiled for either dtype, or read from the disk, where it is kept by compute capability."""
    for dtype in DTYPES:
        multiply_tiles.compile(f"void({dtype}[:,::1], {dtype}[:,::1])")


def launch(a: Matrix, c: Matrix) -> None:
    """Store a @ a in c; both are on the GPU. Returns before it is done."""
    blocks = -(-len(a) // TILE)
    multiply_tiles[(blocks, blocks), (TILE, TILE)](a, c)


@gpu.within_memory(lambda a: 2 * a.nbytes)
def multiply(a: Matrix, c: Matrix) -> None:
    """Upload a, store a @ a in c on the GPU, download c.

    Raises:
        TaskError: the GPU has not enough free memory.
        WorkerUnusable: the CUDA context is lost.
    """
    on_gpu = cuda.to_device(a)
    product = cuda.device_array(a.shape, a.dtype)
    launch(on_gpu, product)
    product.copy_to_host(c)


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
