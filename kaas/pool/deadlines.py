"""What is due at which time: one heap of deadlines, and one timer of the loop, for the earliest.

Most deadlines are cancelled, since what they limit is done in time. That only forgets what was to be done; a time
whose deed is forgotten stays in the heap until it has passed, or until such times are the most of the heap.
"""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

_SPARE = 64
"""Cancelled deadlines for which no heap is cleaned."""
_NEVER = float("inf")


class Deadlines:
    """Does things when they are due, and none before.

    Args:
        loop: has the timer.
        clock: tells the time, in seconds. The loop's own may be coarser: uvloop's counts milliseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[float, int]] = []  # times, and the numbers of what is due then
        self._deeds: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self._last = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    def at(self, when: float, deed: Callable[..., object], *values: Any) -> int:
        """Do something at a time of the clock; return a number, never 0, to cancel it by."""
        self._last = number = self._last + 1
        self._deeds[number] = deed, values
        heapq.heappush(self._heap, (when, number))
        if when < self._timer_at:
            self._set_timer(when)
        return number

    def cancel(self, number: int) -> None:
        """Do it not, after all; one that was done or cancelled before, or 0, is none."""
        if self._deeds.pop(number, None) is not None and len(self._heap) > 2 * len(self._deeds) + _SPARE:
            self._heap = [one for one in self._heap if one[1] in self._deeds]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._deeds)

    def _due(self) -> None:
        self._timer_at = _NEVER
        try:
            while self._heap and self._heap[0][0] <= self._clock():
                _, number = heapq.heappop(self._heap)
                if number in self._deeds:
                    deed, values = self._deeds.pop(number)
                    deed(*values)
        finally:  # also for what is due after a deed that raised
            while self._heap and self._heap[0][1] not in self._deeds:
                heapq.heappop(self._heap)
            if self._heap:
                self._set_timer(self._heap[0][0])

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(max(when - self._clock(), 0.0), self._due)
