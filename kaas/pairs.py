"""The client's two segments for a request, one with its matrix and one for the product: new each time, or kept.

`SEGMENTS=fresh`, a new pair for every request, is the paper's way; `kept` is what a user of KaaS would do. Either
copies the matrix for each request. Another way for a matrix to travel would be one more class with these methods.
"""

import contextlib
from collections.abc import Iterator

import numpy as np

from kaas.matrices import Matrix, Segment, shared_matrix
from kaas.segments import are_kept


class Fresh:
    """A new pair for every request."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    @contextlib.contextmanager
    def filled(self) -> Iterator[tuple[Segment, Segment]]:
        """Lend a segment with the matrix and one for the product, for one request; both are gone afterwards."""
        n = len(self._matrix)
        with shared_matrix(n, content=self._matrix) as a, shared_matrix(n) as c:
            yield a, c

    def forget(self) -> None:
        """Nothing is kept."""


class Kept:
    """One pair for all requests, until it is forgotten."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._open = contextlib.ExitStack()
        self._pair: tuple[Segment, Segment] | None = None

    @contextlib.contextmanager
    def filled(self) -> Iterator[tuple[Segment, Segment]]:
        """Lend the pair, its first segment filled anew."""
        if self._pair is not None:
            np.copyto(self._pair[0].matrix, self._matrix)
        else:
            n = len(self._matrix)
            with contextlib.ExitStack() as made:
                a = made.enter_context(shared_matrix(n, content=self._matrix))
                self._pair = a, made.enter_context(shared_matrix(n))
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


def of(matrix: Matrix) -> Fresh | Kept:
    """Make what lends the pairs for a matrix, as SEGMENTS says.

    Raises:
        UsageError: it says neither.
    """
    return Kept(matrix) if are_kept() else Fresh(matrix)
