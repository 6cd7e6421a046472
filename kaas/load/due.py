"""The arrivals of an open loop that no client has sent yet, each with when it is due. Pure: it is told the time."""

from collections.abc import Iterator
from heapq import heappop, heappush

from kaas.arrivals import Arrivals


class Due:
    """Gives each arrival to one client, the earliest first.

    Args:
        arrivals: in seconds from the begin.
        begun: when that was; all times here are seconds of `time.monotonic`.
    """

    def __init__(self, arrivals: Arrivals, begun: float) -> None:
        self._left = (begun + arrival for arrival in arrivals)
        self._next = next(self._left, None)
        self._back: list[float] = []

    @property
    def is_empty(self) -> bool:
        """Whether all have been taken."""
        return self._next is None and not self._back

    def take(self) -> float | None:
        """Take the next, whether it is due by now or not; None if there is none any more."""
        if self._back:
            return heappop(self._back)
        due, self._next = self._next, next(self._left, None)
        return due

    def give_back(self, due: float) -> None:
        """Have another client send one that was taken."""
        heappush(self._back, due)

    def until(self, now: float) -> Iterator[float]:
        """Take all that have been due by now."""
        while (due := self.take()) is not None and due <= now:
            yield due
