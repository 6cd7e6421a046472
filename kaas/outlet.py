"""Lines for a stream that perhaps nobody reads: a thread of its own writes them, and the program goes on.

A pipe whose reader sleeps, or a terminal after Ctrl-S, stops whoever writes to it. A file does not: its lines are
written at once, and are there before anything else happens.
"""

import atexit
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

from kaas.clock import Clock

_MOST = 10_000
"""Lines that may wait to be written."""

PATIENCE = 2.0
"""Seconds that who reads has to take the last lines."""


def _ignore(error: Exception, line: str) -> None:
    """Whoever writes a log has nowhere to say that it fails."""


def log_handler() -> logging.Handler:
    """Make a handler that logs to stderr without waiting for it; its last lines are waited for for some seconds."""
    if sys.stderr is None:  # closed
        return logging.NullHandler()
    outlet = Outlet(sys.stderr)
    atexit.register(outlet.close, PATIENCE)
    handler = logging.StreamHandler(outlet)
    handler.addFilter(_by_the_clock_of_the_run(Clock.of_run()))
    return handler


def _by_the_clock_of_the_run(clock: Clock) -> Callable[[logging.LogRecord], bool]:
    def stamp(record: logging.LogRecord) -> bool:
        record.created = now = clock.now()
        record.msecs = now % 1 * 1000
        return True

    return stamp


class Outlet:
    """Writes whole lines past Python's buffers: one is there, torn or left out, and nobody waits for it.

    Args:
        stream: where to.
        failed: is told why a line could not be written, or not all of it; perhaps in the thread.
    """

    def __init__(self, stream: TextIO, failed: Callable[[Exception, str], None] = _ignore) -> None:
        self._stream = stream
        self._failed = failed
        self._may_block = not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
        self._lines: deque[Callable[[], str]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._left_out = 0
        self._torn = False

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._lines)

    @property
    def has_room(self) -> bool:
        """Whether one more line may wait."""
        return len(self._lines) < _MOST

    def write(self, text: str) -> None:
        """Write a line, given with its end; leave it out, and say so later, if too many wait."""
        if not self._may_block:
            self._write(text)
        elif self.has_room:
            self.write_later(lambda: text)
        else:
            self._left_out += 1

    def write_later(self, line: Callable[[], str]) -> None:
        """Write what a function gives when its turn has come; it is called in the thread, and may take its time."""
        with self._changed:
            self._lines.append(line)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
                self._thread.start()

    def close(self, patience: float) -> int:
        """Return once all is written, or after so many seconds; tell how many lines are not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, patience)
            return len(self._lines) + self._left_out

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
            self._write(self._lines[0]())
            if self._left_out:
                number, self._left_out = self._left_out, 0
                self._write(f"({number} lines are left out here: nobody read those before)\n")
            with self._changed:
                self._lines.popleft()
                self._changed.notify_all()

    def _write(self, text: str) -> None:
        rest = ("\n" * self._torn + text).encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[os.write(self._stream.fileno(), rest) :]
            self._torn = False
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            self._torn = True
            self._failed(error, text)
