"""Orders to end: signals, and the end of the process in charge of this one.

They are only recorded here; a program's main line takes them, one by one, and acts.
"""

import asyncio
import signal

from kaas import supervision

PARENT_CHECK = 0.5
"""Seconds between two looks whether the process in charge is still there."""


class Orders:
    """The orders to this process, while its asyncio loop runs.

    Args:
        supervisor: number of the process in charge, to which Ctrl-C and a terminal's end are left, and whose own end is
            an order; 0 if there is none.
    """

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._alone = self._closed = False
        self._told_until = 0.0
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTERM, self._told)
        if supervisor:
            # These go to the whole group of processes; the script decides in which order they end.
            self._loop.add_signal_handler(signal.SIGINT, lambda: None)
            if not supervision.is_ignored(signal.SIGHUP):
                self._loop.add_signal_handler(signal.SIGHUP, lambda: None)
            self._watch()
        else:
            self._loop.add_signal_handler(signal.SIGINT, self._queue.put_nowait, "Ctrl-C")
            if not supervision.is_ignored(signal.SIGHUP):
                self._loop.add_signal_handler(signal.SIGHUP, self._hung_up)

    async def next(self) -> str:
        """Wait for an order; return who gave it, in words."""
        return await self._queue.get()

    def give(self, order: str) -> None:
        """Give an order from within this process."""
        self._queue.put_nowait(order)

    def _told(self) -> None:
        # The system says so of a parent that has ended, too, before that is found here, or after.
        if not (self._supervisor and (self._look() or self._loop.time() < self._told_until)):
            self._queue.put_nowait("told to end")

    def _hung_up(self) -> None:
        # A shell and the system may both say it, and one after the other: that is no second order.
        if not self._closed:
            self._closed = True
            self._queue.put_nowait("the terminal was closed")

    def _watch(self) -> None:
        if not (self._alone or self._look()):
            self._loop.call_later(PARENT_CHECK, self._watch)

    def _look(self) -> bool:
        """Tell whether the process in charge was found to be gone just now, which is an order, but only once."""
        if self._alone or not supervision.is_gone(self._supervisor):
            return False
        self._alone = True
        self._told_until = self._loop.time() + PARENT_CHECK
        self._queue.put_nowait("the parent process is gone")
        return True


def ignore_signals() -> None:
    """Let no late signal change the exit code of a program that has done all it had to."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
