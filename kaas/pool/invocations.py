"""The invocations that were accepted and are not answered yet, and those of them that wait; each is answered once."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from kaas import wire
from kaas.passing import Passing
from kaas.pool.account import Account
from kaas.pool.deadlines import Deadlines
from kaas.wire import Pieces, RequestFrame

log = logging.getLogger("kaas.server")

Observe = Callable[[str, float, int], None]
"""Is told "queue", "kernel" or "boot", how many seconds that took, and on which GPU."""


class Invocation:
    """A request by a client, accepted and to be answered once: `send` takes it back, with the reply's frame.

    `accepted` and `handed_over`, to a worker, are times of the pool's clock, 0 before. `reply` is the rest of a large
    reply once that has begun; then it is taken back again when all has passed, and only then is it answered.
    """

    accepted = handed_over = 0.0
    cold_start = waited_for_boot = answered = False
    moves = deadline = queue_deadline = 0
    reply: Passing | None = None

    def __init__(self, request: RequestFrame, send: Callable[["Invocation", Pieces], None]) -> None:
        self.request = request
        self.send = send


class Invocations:
    """All that are in flight.

    Args:
        clock: the time, in seconds.
        deadlines: by that clock.
        queue_timeout: seconds that one may wait; 0 for any.
    """

    def __init__(
        self, clock: Callable[[], float], deadlines: Deadlines, queue_timeout: float, observe: Observe | None
    ) -> None:
        self.account = Account()
        self.waiting: OrderedDict[Invocation, None] = OrderedDict()
        self._clock = clock
        self._deadlines = deadlines
        self._queue_timeout = queue_timeout
        self._observe = observe
        self._open: set[Invocation] = set()
        self._closed: asyncio.Event | None = None

    def accept(self, invocation: Invocation) -> None:
        """Take one in; it is answered `timeout` if it is not answered in time."""
        self.account["accepted"] += 1
        self._open.add(invocation)
        invocation.accepted = now = self._clock()
        if timeout := invocation.request.timeout:
            invocation.deadline = self._deadlines.at(now + timeout, self._too_late, invocation)

    def wait(self, invocation: Invocation) -> None:
        """Have one wait, behind all others."""
        self.waiting[invocation] = None
        if limit := self._queue_timeout:
            invocation.queue_deadline = self._deadlines.at(self._clock() + limit, self._waits_too_long, invocation)

    def waits_no_more(self, invocation: Invocation) -> None:
        """Take one out of those that wait, if it does."""
        self.waiting.pop(invocation, None)
        self._deadlines.cancel(invocation.queue_deadline)

    def answer(self, invocation: Invocation, status: str, text: str, gpu: int = -1, worker: int = -1) -> None:
        """Answer one with a text, unless it is answered; the worker is that which it was given to."""
        frame = wire.reply_pieces(status, text.encode(errors="backslashreplace"))
        self.send(invocation, status, frame, gpu, worker)

    def send(
        self, invocation: Invocation, status: str, frame: Pieces, gpu: int, worker: int, *, rest: Passing | None = None
    ) -> None:
        """Answer one with a reply's frame, unless it is answered; or begin to, if there is a rest that must pass."""
        if invocation.answered:
            if rest is not None:
                rest.drop()
            return
        if (begun := invocation.reply) is not None and begun.begun and begun.left:
            self.abandon(invocation)  # who has a part of its reply can be told nothing else: its connection ends
            return
        if rest is None:
            self._close(invocation, status)
        else:
            invocation.reply = rest
        wire.complete_reply(
            frame,
            invocation.request.id,
            cold_start=invocation.cold_start,
            waited_for_boot=invocation.waited_for_boot,
            gpu=gpu,
            worker=worker,
            queued_ns=int(((invocation.handed_over or self._clock()) - invocation.accepted) * 1e9),
        )
        try:
            invocation.send(invocation, frame)
        except Exception:  # whoever the client is, the others' turn must come
            log.exception("a reply could not be sent")
            if invocation.answered:
                self.account[status] -= 1
                self.account["abandoned"] += 1
            self.abandon(invocation)

    def observe(self, invocation: Invocation, gpu: int, kernel_ns: int = 0) -> None:
        """Have the metrics show how long one took that a worker was given, whatever the client was told."""
        if self._observe is not None and invocation.handed_over:
            self._observe("queue", invocation.handed_over - invocation.accepted, gpu)
            if kernel_ns:
                self._observe("kernel", kernel_ns / 1e9, gpu)

    def abandon(self, invocation: Invocation) -> None:
        """Nobody waits for this one's answer."""
        if not invocation.answered:
            self._close(invocation, "abandoned")

    def answer_all(self, status: str, text: str) -> None:
        """Answer all that are in flight."""
        for invocation in list(self._open):
            self.answer(invocation, status, text)

    async def all_closed(self) -> None:
        """Return when none is in flight any more. No more may be accepted that are not answered at once."""
        self._closed = asyncio.Event()
        if self._open:
            await self._closed.wait()

    def __len__(self) -> int:
        return len(self._open)

    def _close(self, invocation: Invocation, status: str) -> None:
        invocation.answered = True
        self.account[status] += 1
        self._open.discard(invocation)
        if self.waiting:
            self.waits_no_more(invocation)
        if invocation.deadline:
            self._deadlines.cancel(invocation.deadline)
        if invocation.request.rest is not None:
            invocation.request.rest.drop()
        if invocation.reply is not None and invocation.reply.left:
            invocation.reply.drop()
            invocation.reply = None
        if self._closed is not None and not self._open:
            self._closed.set()

    def _too_late(self, invocation: Invocation) -> None:
        self.answer(invocation, "timeout", f"not done within {invocation.request.timeout:g} s")

    def _waits_too_long(self, invocation: Invocation) -> None:
        self.answer(invocation, "timeout", f"queued for {self._queue_timeout:g} s (--queue-timeout)")
