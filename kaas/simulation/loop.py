"""An event loop in virtual time: it never waits, but goes on to the time at which the next thing is due."""

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from itertools import count
from typing import Any, Protocol, TypeVarTuple

_NEVER = float("inf")
_Ts = TypeVarTuple("_Ts")


class Timeline(Protocol):
    """What the model knows of time, in seconds: virtual, or as it passes (kaas.simulation.emulator)."""

    def time(self) -> float:
        """Tell the time."""

    def at(self, when: float, deed: Callable[..., object], *values: Any) -> None:
        """Do something at a time."""

    def create_future(self) -> "asyncio.Future[Any]":
        """Make what can be waited for."""


class VirtualLoop(asyncio.BaseEventLoop):
    """For what waits by timers and futures only: there are no sockets, processes or threads in it.

    Its time begins at 0.0 seconds. Things that are due at the same time happen in the order in which they were asked
    for, so that what is deterministic stays so; those of `at` before the timers of the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # the base class asks it for events, with the time until the next timer
        self._agenda: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = count()
        self._touched = False

    def time(self) -> float:
        """Tell the virtual time, in seconds."""
        return self._now

    def at(self, when: float, deed: Callable[..., object], *values: Any) -> None:
        """Do something at a time, never to be cancelled: a `call_at` that costs a tenth of one.

        What it raises ends the loop.
        """
        heapq.heappush(self._agenda, (when, next(self._numbers), deed, values))

    # What the base class is asked for while the agenda is worked off

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Do something next."""
        self._touched = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do something at a time; it can be cancelled."""
        self._touched = True
        return super().call_at(when, callback, *args, context=context)

    def select(self, timeout: float | None) -> list[Any]:
        """Let that much time pass, and do what the agenda has until then; return early if that is to be thought over.

        Raises:
            RuntimeError: nothing is due, now or ever, and somebody waits all the same.
        """
        agenda, pop, until = self._agenda, heapq.heappop, _NEVER if timeout is None else self._now + timeout
        self._touched = False
        while agenda and agenda[0][0] <= until:
            when, _, deed, values = pop(agenda)
            self._now = max(self._now, when)
            deed(*values)
            if self._touched:
                return []
        if timeout is None:
            raise RuntimeError("nothing will ever happen any more, and something is waited for")
        self._now = max(self._now, until)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody has to be woken."""
