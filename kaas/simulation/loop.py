"""An event loop in virtual time: it never waits, but goes on to the time at which the next thing is due."""

import asyncio
from typing import Any


class VirtualLoop(asyncio.BaseEventLoop):
    """For what waits by timers and futures only: there are no sockets, processes or threads in it.

    Its time begins at 0.0 seconds. Things that are due at the same time happen in the order in which they were asked
    for, so that what is deterministic stays so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # the base class asks it for events, with the time until the next timer

    def time(self) -> float:
        """Tell the virtual time, in seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Let that much time pass.

        Raises:
            RuntimeError: nothing is due, now or ever, and somebody waits all the same.
        """
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more, and something is waited for")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody has to be woken."""
