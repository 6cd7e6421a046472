"""The server's account of what it was asked and what it answered. It must close; this is the one place that says how.

    accepted == the invocations of each outcome + in flight         at any time; after a drain, none is in flight
    replies == all statuses together                                at any time

An invocation's outcome is its reply's status (`ANSWERS`), or `abandoned` if its client had gone before it had one, or
only a part of a large reply, which ends its connection. The statuses of `REFUSALS` end a connection, too: they answer
bytes that are no invocation, or come from who shows no token.
`replies` counts the answers that were given to an open connection: that none was made for a client that had gone, and
none got lost on its way there. Whether the client took it, only the client knows. Answers to status queries are not in
the account.
"""

from collections import Counter

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
