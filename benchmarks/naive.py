"""A matrix task without KaaS: `naive.py KERNEL MATRIX` starts, imports, prepares, multiplies, and ends."""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from kaas import kernels


def main() -> None:
    """Load the kernel and square the matrix in a file, once."""
    kernel = kernels.load(Path(sys.argv[1]), kernels.KERNEL_FUNCTION)
    if hasattr(kernel, "prepare"):
        kernel.prepare(lambda _: contextlib.nullcontext())
    matrix = np.load(sys.argv[2])
    kernel.multiply(matrix, np.empty_like(matrix))


if __name__ == "__main__":
    main()
