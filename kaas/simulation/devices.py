"""What runs kernels: one after the other, or at once and each at a part of the speed."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from kaas.simulation.loop import Timeline
from kaas.simulation.sharing import Sharing


class Gpu(Protocol):
    """What runs kernels."""

    def run(self, kernel: float, done: Callable[[], object]) -> None:
        """Run a kernel of so many seconds alone; `done()` when it has ended."""

    def withdraw(self, done: Callable[[], object]) -> None:
        """Take back what was to call `done`, if it has not ended: its process was killed."""


class OneAfterTheOther:
    """Kernels first come, first served.

    Args:
        loop: tells the time.
        busy: is told when each kernel runs.
    """

    def __init__(self, loop: Timeline, busy: Callable[[float, float], object]) -> None:
        self._loop = loop
        self._busy = busy
        self._waiting: deque[tuple[float, Callable[[], object]]] = deque()
        self._done: Callable[[], object] | None = None  # of what runs
        self._turn = 0

    def run(self, kernel: float, done: Callable[[], object]) -> None:
        """Run a kernel when those before it are over."""
        self._waiting.append((kernel, done))
        if self._done is None:
            self._next()

    def withdraw(self, done: Callable[[], object]) -> None:
        """Hand its turn on, or take it out of the queue."""
        if self._done == done:
            self._next()
        else:
            self._waiting = deque(one for one in self._waiting if one[1] != done)

    def _next(self) -> None:
        self._turn += 1
        self._done = None
        if self._waiting:
            kernel, self._done = self._waiting.popleft()
            now = self._loop.time()
            self._busy(now, now + kernel)
            self._loop.at(now + kernel, self._end, self._turn)

    def _end(self, turn: int) -> None:
        if turn == self._turn:  # else it was withdrawn
            done = self._done
            assert done is not None
            self._next()
            done()


class Shared:
    """Kernels at once: what one GPU shares among its own, or cores among those of all GPUs.

    Args:
        loop: tells the time.
        busy: is told each span of time in which this GPU had any.
        sharing: what they share.
    """

    def __init__(self, loop: Timeline, busy: Callable[[float, float], object], sharing: Sharing) -> None:
        self._loop = loop
        self._busy = busy
        self._sharing = sharing
        self._number, self._since = 0, 0.0

    def run(self, kernel: float, done: Callable[[], object]) -> None:
        """Run a kernel beside the others."""
        if not self._number:
            self._since = self._loop.time()
        self._number += 1
        self._sharing.add(kernel, self._end, done)

    def withdraw(self, done: Callable[[], object]) -> None:
        """Have the others none the faster: what runs so goes on to its end."""

    def _end(self, done: Callable[[], object]) -> None:
        self._number -= 1
        if not self._number:
            self._busy(self._since, self._loop.time())
        done()
