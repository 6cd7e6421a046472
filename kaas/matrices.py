"""Matrices in shared memory: create, attach, and who unlinks.

The client creates two segments for a request, one with its N x N matrix and one for the product, and always unlinks
both. The kernel attaches to them by name and never unlinks. What travels is a `Task`, as JSON. Where client and worker
share no memory, the matrix itself travels (kaas.inline); a kernel sees a matrix either way.

    client   with shared_matrix(n) as a, shared_matrix(n) as c: ... Task(a.name, c.name, n)
    kernel   def call(payload): return answer(payload, multiply)
"""

import contextlib
import fcntl
import functools
import json
import mmap
import os
import re
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from math import isqrt
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng  # else imported when it is first asked for, in each process after the fork

from kaas import inline, segments
from kaas.errors import TaskError, UsageError

Matrix = npt.NDArray[np.float64]
Multiply = Callable[[Matrix, Matrix], None]
"""`multiply(a, c)` stores the product of the N x N matrix `a` with itself in `c`."""

DTYPES = ("float64", "float32")
_LARGEST_N = 10**6
_MOST_ATTACHED = 32
"""Segments that a worker keeps attached: those of the 16 clients that it served last."""
_BLOCK = 2**17  # elements of a matrix that are checked at a time
_OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Task(NamedTuple):
    """What the client asks of a matrix kernel: the product of segment `a` with itself, in segment `c`."""

    a: str
    c: str
    n: int
    dtype: str = "float64"

    def encode(self) -> bytes:
        """Write it as an invocation's payload."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Task":
        """Read it from an invocation's payload.

        Raises:
            TaskError: it is no such payload.
        """
        try:
            task = cls(**json.loads(payload))
        except (ValueError, TypeError, RecursionError):
            raise TaskError('not a matrix task: send {"a": segment, "c": segment, "n": N, "dtype": name}') from None
        if not all(isinstance(name, str) and segments.NAME.fullmatch(name) for name in (task.a, task.c)):
            raise TaskError("a segment's name is not one of ours: kaas_ and 20 hexadecimal digits")
        _bytes_of(task.n, task.dtype)
        return task


class Segment:
    """A shared-memory segment seen as an N x N matrix."""

    def __init__(self, name: str, buffer: memoryview | mmap.mmap, n: int, dtype: str) -> None:
        self.name = name
        self._buffer = buffer
        self._n = n
        self._dtype = np.dtype(dtype)

    @property
    def matrix(self) -> Matrix:
        """The matrix itself, not a copy: let go of it before the segment is closed."""
        # frombuffer, unlike ndarray(buffer=...), holds the mapping: a matrix that is kept stays readable.
        flat = np.frombuffer(self._buffer, self._dtype, count=self._n * self._n)
        return flat.reshape(self._n, self._n)


@contextlib.contextmanager
def shared_matrix(n: int, dtype: str = "float64", content: Matrix | None = None) -> Iterator[Segment]:
    """Create a segment for an N x N matrix, zero or equal to `content`; it is closed and unlinked on every way out.

    Raises:
        UsageError: there is no room for it.
    """
    assert content is None or (content.shape, content.dtype) == ((n, n), np.dtype(dtype))
    memory = segments.create(n * n * np.dtype(dtype).itemsize, None if content is None else content.data.cast("B"))
    try:
        assert memory.buf is not None
        yield Segment(memory.name, memory.buf, n, dtype)
    finally:
        segments.close(memory)
        segments.unlink(memory)


@contextlib.contextmanager
def attached_matrix(
    name: str, n: int, dtype: str, attachments: segments.Attachments | None = None
) -> Iterator[Segment]:
    """Attach to the segment that somebody else created and will unlink; `attachments` keep it attached.

    Raises:
        TaskError: there is none, or it is smaller than such a matrix.
    """
    try:
        mapping = attachments.attach(name) if attachments else segments.attach(name)
    except (OSError, ValueError) as error:
        raise TaskError(f"segment {name}: {error}") from None
    try:
        wanted = n * n * np.dtype(dtype).itemsize
        if len(mapping) < wanted:
            raise TaskError(f"segment {name} has {len(mapping)} bytes, but {n} x {n} of {dtype} need {wanted}")
        yield Segment(name, mapping, n, dtype)
    finally:
        if not attachments:
            with contextlib.suppress(BufferError):  # a matrix that somebody holds; the mapping ends with it
                mapping.close()


def answer(payload: bytes, multiply: Multiply, hold: segments.Hold = contextlib.nullcontext) -> bytes:
    """Serve a matrix task: attach, multiply, and report the time that `multiply` took; or the same with a message.

    Args:
        payload: the task.
        multiply: computes.
        hold: is entered for a segment that stays attached, as long as it does.

    Raises:
        TaskError: the payload is no task, or its segments do not fit it.
        UsageError: SEGMENTS says neither `fresh` nor `kept`.
        Exception: whatever `multiply` raises.
    """
    if payload.startswith(inline.PREFIX):
        return _answer_inline(payload, multiply)
    task, attachments = Task.decode(payload), _attachments(hold)
    with contextlib.ExitStack() as attached:
        a = attached.enter_context(attached_matrix(task.a, task.n, task.dtype, attachments))
        c = attached.enter_context(attached_matrix(task.c, task.n, task.dtype, attachments))
        try:
            inner_ms = _milliseconds(multiply, a.matrix, c.matrix)
        except Exception as error:
            # The frames of the traceback hold the matrices, and while they are held no segment can be closed.
            traceback.clear_frames(error.__traceback__)
            raise
        answer = _Answer(json.dumps({"inner_time_ms": inner_ms}).encode())
        answer.attached = attached.pop_all()
        return answer


def _answer_inline(payload: bytes, multiply: Multiply) -> bytes:
    n, dtype, elements = inline.read(payload)
    wanted = _bytes_of(n, dtype)
    if len(elements) != wanted:
        raise TaskError(f"the message has {len(elements)} bytes of a matrix, but {n} x {n} of {dtype} are {wanted}")
    flat = np.frombuffer(elements, str(dtype)).copy()  # aligned, and to be written to: kernels demand it
    a = flat.reshape(isqrt(len(flat)), -1)
    c = np.zeros_like(a)
    return inline.reply(_milliseconds(multiply, a, c), c)


@functools.cache
def _attachments(hold: segments.Hold) -> segments.Attachments | None:
    return segments.Attachments(_MOST_ATTACHED, hold) if segments.are_kept() else None


def let_go(hold: segments.Hold) -> None:
    """Detach what stays attached and is held in this way."""
    if attachments := _attachments(hold):
        attachments.let_go()


class _Answer(bytes):
    """Bytes that keep the segments attached as long as they are there: a worker detaches once its reply is sent."""

    attached: contextlib.ExitStack


def run_kernel_alone(multiply: Multiply, size: str) -> None:
    """Be a kernel's script: multiply one matrix of so many rows, in this process, without a server."""
    n = matrix_size(size)
    matrix = random_matrix(n)
    product = np.zeros_like(matrix)
    multiply(random_matrix(1), np.zeros((1, 1)))  # whatever the first call has to set up is not the kernel's time
    elapsed_ms = _milliseconds(multiply, matrix, product)
    if not is_square_of(product, matrix):
        raise TaskError(f"the kernel's product of a {n} x {n} matrix is wrong")
    print(f"@@@ Elapsed inner time (ms): {elapsed_ms:.4g}")  # noqa: T201


def matrix_size(text: str) -> int:
    """Read N, as a user gave it.

    Raises:
        UsageError: it is no whole number of at least 1.
    """
    n = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= n <= _LARGEST_N:
        raise UsageError(f"N is {text[:40]!r}: give the matrix's size, a whole number from 1 to {_LARGEST_N}")
    return n


def random_matrix(n: int) -> Matrix:
    """Make the N x N matrix that every client uses: uniform in [0, 1), seed 0.

    Raises:
        UsageError: there is no memory for it.
    """
    try:
        return default_rng(0).random((n, n))
    except MemoryError:
        raise UsageError(f"no memory for a {n} x {n} matrix ({n * n * 8} bytes): take a smaller N") from None


def is_square_of(product: Matrix, matrix: Matrix) -> bool:
    """Check by Freivalds' algorithm that `product` is `matrix` times itself, in O(N^2) steps and little memory.

    With x of random signs, `product @ x` is compared with `matrix @ (matrix @ x)`. A GPU kernel accumulates N terms in
    float32, so that each element is off by some sqrt(N) units of rounding; the signs make the errors of a row add up as
    a root, to no more than that many units of the row's Euclidean norm. The tolerance is 8 times as much. Meant for
    matrices like `random_matrix`, where the terms of a sum do not cancel each other.
    Source: R. Freivalds, "Probabilistic machines can use less running time", IFIP Congress 1977.
    """
    n = len(matrix)
    # A block of rows at a time: what has to be converted, or squared, is never the whole of a matrix.
    blocks = [slice(begin, begin + max(1, _BLOCK // n)) for begin in range(0, n, max(1, _BLOCK // n))]
    x = default_rng().choice((-1.0, 1.0), n)
    y = np.concatenate([matrix[rows] @ x for rows in blocks])
    units = 8 * np.sqrt(n) * np.finfo(np.float32).eps
    with np.errstate(invalid="ignore", over="ignore"):  # in a product that is wrong
        for rows in blocks:
            block = np.asarray(product[rows], np.float64)
            tolerance = units * np.sqrt(np.einsum("ij,ij->i", block, block))
            difference = np.abs(block @ x - matrix[rows] @ y)
            if not np.all((difference <= tolerance) & np.isfinite(tolerance)):
                return False
    return True


def matrix_file(n: int, folder: Path) -> Path:
    """Write the N x N matrix to a file in `folder`, unless another process has; return its path (NumPy's .npy).

    The file is its user's alone. Its name can be guessed, so nobody else may be able to put one there.

    Raises:
        UsageError: there is no room for it, or others can write to `folder`.
    """
    path = folder / f"matrix-{n}.npy"
    try:
        about = folder.stat()
        if about.st_uid != os.geteuid() or about.st_mode & _OTHERS_CAN_WRITE:
            raise UsageError(f"{folder} is no place for the matrix file: take a folder that only you can write to")
        with _private(path.with_suffix(".lock")) as lock:
            # Whoever comes while it is being written waits for it, and finds it whole. Where there are no locks each
            # writes its own, and all are alike.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = path.with_suffix(f".{os.getpid()}.part.npy")
                try:
                    with _private(part) as file:
                        np.save(file, random_matrix(n), allow_pickle=False)
                    part.rename(path)
                finally:
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"the matrix file {path} cannot be written: {error.strerror or error}") from None
    return path


def _private(path: Path) -> BinaryIO:
    """Open a file for writing that only its user can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _bytes_of(n: object, dtype: object) -> int:
    """Give the size of such a matrix, or raise `TaskError` if there is none."""
    if type(n) is not int or not 1 <= n <= _LARGEST_N:  # JSON's true is an int, too
        raise TaskError(f"n is {_shown(n)}: give a whole number from 1 to {_LARGEST_N}")
    if dtype not in DTYPES:
        raise TaskError(f"dtype is {_shown(dtype)}: give one of {', '.join(DTYPES)}")
    return n * n * np.dtype(str(dtype)).itemsize


def _shown(value: object) -> str:
    """Show a value of somebody else's JSON, which may be of any size and depth."""
    return repr(value)[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _milliseconds(multiply: Multiply, a: Matrix, c: Matrix) -> float:
    """Call `multiply`; return how long it took."""
    begun = time.perf_counter_ns()
    multiply(a, c)
    return (time.perf_counter_ns() - begun) / 1e6
