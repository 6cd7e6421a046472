"""Log lines that may repeat for ever, logged now and then."""

import logging
from collections.abc import Callable


class Sparing:
    """Logs warnings of one kind, one in `interval` seconds at most: a fault that repeats must not fill the disk."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float], interval: float = 1.0) -> None:
        self._log = log
        self._clock = clock
        self._interval = interval
        self._next = float("-inf")
        self._left_out = 0

    def warning(self, text: str, *values: object) -> None:
        """Log it, with the number of those that were left out since the last; or leave it out."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        more = f" (and {self._left_out} more like it before)" if self._left_out else ""
        self._next, self._left_out = now + self._interval, 0
        self._log.warning(text + "%s", *values, more)
