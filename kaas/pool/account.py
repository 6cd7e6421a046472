"""The server's account of what it was asked and what it answered. It must close; this is the one place that says how.

    accepted == the invocations of each outcome + in flight         at any time; after a drain, none is in flight
    replies == all statuses together                                at any time

An invocation's outcome is its reply's status (`ANSWERS`), or `abandoned` if its client had gone before it had one. The
statuses of `REFUSALS` end a connection: they answer bytes that are no invocation, or come from who shows no token.
`replies` counts the answers that were given to an open connection: that none was made for a client that had gone, and
none got lost on its way there. Whether the client took it, only the client knows. Answers to status queries are not in
the account.
"""

import logging
from collections import Counter
from collections.abc import Callable

from kaas import wire

REFUSALS = ("bad_request", "unauthorized")
ANSWERS = tuple(status for status in wire.STATUSES if status not in REFUSALS)
OUTCOMES = (*ANSWERS, "abandoned")


class Account(Counter[str]):
    """Counts from 0; read it like a dict."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("accepted", *OUTCOMES, *REFUSALS, "replies", "cold_starts"), 0))

    def __str__(self) -> str:
        outcomes, refusals = (
            ", ".join(f"{name} {self[name]}" for name in names if self[name]) for names in (OUTCOMES, REFUSALS)
        )
        text = f"accepted {self['accepted']}: {outcomes}" if outcomes else f"accepted {self['accepted']}"
        return f"{text}; connections refused: {refusals}" if refusals else text


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
