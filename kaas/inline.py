"""A matrix in a message: a first line that says what it is, and its elements, row by row, little-endian.

request  inline {"n": 500, "dtype": "float64"}      and the matrix
reply    {"inner_time_ms": 66.5}                    and the product
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from kaas.errors import TaskError

PREFIX = b"inline "
_LONGEST_LINE = 200


def size(n: int, dtype: str = "float64") -> int:
    """Give the bytes that a message with an N x N matrix has at most, in either direction."""
    return n * n * np.dtype(dtype).itemsize + _LONGEST_LINE


def request(matrix: npt.NDArray[Any]) -> bytes:
    """Write the request for the product of a matrix with itself; this copies it."""
    about = {"n": len(matrix), "dtype": matrix.dtype.name}
    return _written(PREFIX + json.dumps(about).encode(), matrix)


def read(payload: bytes) -> tuple[object, object, memoryview]:
    """Give what a request's first line says of N and dtype, whatever that is, and the elements.

    Raises:
        TaskError: it has no such line.
    """
    line, elements = _split(payload)
    try:
        about = json.loads(line.removeprefix(PREFIX))
        return about["n"], about["dtype"], elements
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TaskError(
            'not a matrix in a message: begin it with inline {"n": N, "dtype": name} and a newline'
        ) from None


def reply(inner_ms: float, product: npt.NDArray[Any]) -> bytes:
    """Write the reply; this copies the product."""
    return _written(json.dumps({"inner_time_ms": inner_ms}).encode(), product)


def inner_ms(payload: bytes) -> float:
    """Read from a reply, with or without a product, how many milliseconds the kernel took."""
    return float(json.loads(_split(payload)[0])["inner_time_ms"])


def product(payload: bytes, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give the product in a reply, which is not copied; zeros if the reply has none of the size of `like`."""
    elements = _split(payload)[1]
    if len(elements) != like.nbytes:
        return np.zeros_like(like)
    return np.frombuffer(elements, like.dtype).reshape(like.shape)


def _written(line: bytes, matrix: npt.NDArray[Any]) -> bytes:
    return b"".join((line, b"\n", np.ascontiguousarray(matrix).data.cast("B")))


def _split(payload: bytes) -> tuple[bytes, memoryview]:
    line, newline, _ = payload[:_LONGEST_LINE].partition(b"\n")
    return line, memoryview(payload)[len(line) + len(newline) :]
