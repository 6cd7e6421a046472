"""A line for those who would hold up everybody else in an event loop if they went on as long as they could."""

import asyncio
from collections import deque
from collections.abc import Callable


class Line:
    """First come, first served: one of those that wait has its turn in each turn of the running loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_due = False  # the first one's turn, in the loop's next

    def wait(self, turn: Callable[[], object]) -> None:
        """Have `turn` called when all those before have had theirs, and never at once."""
        self._waiting.append(turn)
        self._go_on_soon()

    def _go_on(self) -> None:
        self._is_due = False
        try:
            self._waiting.popleft()()
        finally:  # whatever one does with its turn, the next has its own
            self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go_on)
