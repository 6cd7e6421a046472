"""Orders to end: signals, and the end of the process that started this one.

They are only recorded here; a program's main line takes them, one by one, and acts.
"""

import asyncio
import os
import signal

_PARENT_CHECK = 0.5
"""Seconds between two looks whether the parent process is still there."""


class Orders:
    """The orders to this process, while its asyncio loop runs.

    Args:
        supervised: leave Ctrl-C to the script in charge, and take its end for an order.
    """

    def __init__(self, supervised: bool) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._queue.put_nowait, "told to end")
        if supervised:
            # Ctrl-C goes to the whole group of processes; the script decides in which order they end.
            loop.add_signal_handler(signal.SIGINT, lambda: None)
            self._watch_parent(os.getppid())
        else:
            loop.add_signal_handler(signal.SIGINT, self._queue.put_nowait, "Ctrl-C")

    async def next(self) -> str:
        """Wait for an order; return who gave it, in words."""
        return await self._queue.get()

    def _watch_parent(self, parent: int) -> None:
        if os.getppid() == parent:
            asyncio.get_running_loop().call_later(_PARENT_CHECK, self._watch_parent, parent)
        else:
            self._queue.put_nowait("the parent process is gone")


def ignore_signals() -> None:
    """Let no late signal change the exit code of a program that has done all it had to."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
