"""How a client's matrix travels: by two segments, one with the matrix and one for the product, or in the messages.

`SEGMENTS=fresh`, a new pair for every request, is the paper's way; `kept` is what a user of KaaS would do. Where client
and workers share no memory, or `KAAS_TRANSPORT=inline` says so, matrix and product are in the messages. Each way copies
the matrix for each request.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kaas import inline
from kaas.matrices import Matrix, Segment, Task, shared_matrix
from kaas.segments import are_kept


class Pair(NamedTuple):
    """A segment with the matrix and one for the product."""

    a: Segment
    c: Segment

    def payload(self) -> bytes:
        """Give what is sent for it."""
        return Task(self.a.name, self.c.name, len(self.a.matrix)).encode()

    def product(self, reply: bytes) -> Matrix:
        """Give the product, once there is a reply."""
        return self.c.matrix


class Message:
    """The matrix as a message."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._payload = inline.request(matrix)

    def payload(self) -> bytes:
        """Give what is sent, which is there already."""
        return self._payload

    def product(self, reply: bytes) -> Matrix:
        """Give the product that came with the reply."""
        return inline.product(reply, self._matrix)


class Fresh:
    """A new pair for every request."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    @contextlib.contextmanager
    def filled(self) -> Iterator[Pair]:
        """Lend a segment with the matrix and one for the product, for one request; both are gone afterwards."""
        n = len(self._matrix)
        with shared_matrix(n, content=self._matrix) as a, shared_matrix(n) as c:
            yield Pair(a, c)

    def forget(self) -> None:
        """Nothing is kept."""


class Kept:
    """One pair for all requests, until it is forgotten."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._open = contextlib.ExitStack()
        self._pair: Pair | None = None

    @contextlib.contextmanager
    def filled(self) -> Iterator[Pair]:
        """Lend the pair, its first segment filled anew."""
        if self._pair is not None:
            np.copyto(self._pair.a.matrix, self._matrix)
        else:
            n = len(self._matrix)
            with contextlib.ExitStack() as made:
                a = made.enter_context(shared_matrix(n, content=self._matrix))
                self._pair = Pair(a, made.enter_context(shared_matrix(n)))
                self._open = made.pop_all()
        try:
            yield self._pair
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Free the pair. After a request that was not served, too: a worker may still be about to write to it."""
        self._pair = None
        self._open.close()


class Inline:
    """No segments: the matrix goes with the request, and the product comes with the reply."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    @contextlib.contextmanager
    def filled(self) -> Iterator[Message]:
        """Lend a message with the matrix, for one request."""
        yield Message(self._matrix)

    def forget(self) -> None:
        """Nothing is kept."""


def of(matrix: Matrix, transport: str = "shm") -> Fresh | Kept | Inline:
    """Make what lends the pairs, or messages, for a matrix, as SEGMENTS says.

    Args:
        matrix: of the client.
        transport: `shm` or `inline` (kaas.transport).

    Raises:
        UsageError: it says neither.
    """
    if transport == "inline":
        return Inline(matrix)
    return Kept(matrix) if are_kept() else Fresh(matrix)
