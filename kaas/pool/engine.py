"""What the pool knows of processes: who starts them, what they can be told, and what they tell.

An engine offers GPUs, and starts and ends worker processes on them. It knows nothing of placement, frames' contents or
clients. Everything is told in the loop, and never from within a call of the one who is told.
"""

from typing import Protocol

from kaas.passing import Passing
from kaas.wire import Pieces, ReplyFrame


class Tell(Protocol):
    """Whom a worker tells what becomes of it; of the first two nothing more once it was told to stop."""

    def ready(self, phases: dict[str, float]) -> None:
        """It has loaded the kernel; `phases` are the seconds of each part of its boot."""

    def replied(self, reply: ReplyFrame) -> None:
        """It has replied to its invocation; of a large reply, the begin has come."""

    def broken(self, reason: str) -> None:
        """It is of no more use, and the engine ends it. Without a reason, what it has said before may still come."""

    def ended(self, how: str, counts: bool) -> None:
        """It has ended, in words. Told once, and last; `counts` is false if that was not the worker's own fault."""


class Worker(Protocol):
    """One worker, from its start to its end."""

    @property
    def pid(self) -> int | None:
        """Its process, once it is ready."""

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        """Give it an invocation, and have the rest of it pass; one at a time, and only when it is ready."""

    def stop(self) -> None:
        """Have it end by itself, after the call that it may be in."""

    def kill(self) -> None:
        """End it at once, if it has not ended."""


class Roster(Protocol):
    """Whom an engine tells of GPUs that come and go; one that has the same ones for ever tells nothing."""

    def offer(self, gpus: list[int], node: str) -> None:
        """There are more of them, on a node, or they are there again."""

    def withdraw(self, gpus: list[int], why: str) -> None:
        """They are gone with their node, and so are their workers; nothing more is told of these."""


class Engine(Protocol):
    """Starts and ends workers."""

    async def start(self) -> None:
        """Make ready to start workers; UsageError if the kernel does not load, ProcessFailed if no process does."""

    def spawn(self, number: int, gpu: int, tell: Tell) -> Worker:
        """Start a worker, the `number`-th place's, on a GPU; OSError if there is no process to be had now."""

    async def close(self) -> None:
        """Start no more, and return when every worker has ended, by itself or, after some time, killed."""

    def abort(self) -> None:
        """Kill every worker, now."""
