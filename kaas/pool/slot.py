"""One worker's place: what it does, the invocation that it has, and the next worker when one is lost.

A place whose worker served is refilled at once. One whose boots fail is tried again after pauses that grow, and left
out after `MOST_FAILED_BOOTS` in a row; boots that fail by the machine's fault do not count, but are tried again after
pauses that grow, too.
"""

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from kaas.pool.engine import Worker
from kaas.pool.invocations import Invocation
from kaas.wire import ReplyFrame

if TYPE_CHECKING:
    from kaas.pool.pool import Pool

State = Literal["booting", "idle", "busy", "lost", "stopping", "left out"]
STATES: tuple[State, ...] = get_args(State)
MOST_FAILED_BOOTS = 5
"""Boots in a row that may come to nothing until a worker's place is left out."""
_REPLIES = ("ok", "kernel_error", "worker_lost")
"""What a worker may say of a call; the last is its own word that it is of no more use."""
_PAUSE = 0.1
"""Seconds from the first failed boot to the second try; doubled from one to the next."""
_PAUSE_OF_MACHINE = 1.0
"""Seconds to the next try where it was the machine's fault; doubled likewise, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 30.0


class Slot:
    """One worker's place on a GPU, from the boot of the GPU to its stop. An engine tells it of its worker (`Tell`).

    It may be given an invocation while its worker boots, and begins with it as soon as that is ready. Whatever is
    raised where an invocation is answered, the place is free afterwards.
    """

    def __init__(self, number: int, gpu: int, pool: "Pool") -> None:
        self.number = number
        self.gpu = gpu
        self.state: State = "booting"
        self.invocation: Invocation | None = None
        self.failed_boots = 0  # in a row
        self._refused_boots = 0
        self._pool = pool
        self._worker: Worker | None = None
        self._broken: str | None = None  # why it is of no more use, "" if its end will tell
        self._deadline = 0
        self._booted_at = 0.0
        self._boot()

    @property
    def pid(self) -> int | None:
        """Its worker's process, if it is ready."""
        return self._worker.pid if self._worker is not None else None

    def assign(self, invocation: Invocation) -> None:
        """Give it an invocation, at once or when its worker is ready; it must have no other."""
        self.invocation = invocation
        if self.state != "idle":
            invocation.waited_for_boot = True
            return
        pool, worker = self._pool, self._worker
        if invocation.answered:  # while it waited
            self.invocation = None
            pool.free(self)
            return
        assert worker is not None
        self.state = "busy"
        invocation.handed_over = now = pool.clock()
        if limit := pool.settings.call_timeout:
            self._deadline = pool.deadlines.at(now + limit, self._overdue, invocation)
        try:
            if (rest := invocation.request.rest) is not None:
                rest.cut = partial(self._cut, invocation)
            worker.call(invocation.request.frame, rest)
        except Exception as error:
            self._fail(f"its link fails: {error}")

    def stop(self) -> None:
        """Let its worker end by itself, after the call that it may be in; kill it if it does not in time."""
        if self.state == "left out":
            return
        self.state = "stopping"
        self._forget_deadline()
        if self._worker is not None:
            self._worker.stop()
            self._kill_later(self._worker)

    def vanish(self, reason: str) -> None:
        """Its GPU is gone, and its worker with it: what it had is not done here."""
        if self.state != "left out":
            invocation, self.invocation = self.invocation, None
            self.state = "stopping"
            self._forget_deadline()
            try:
                self._pool.lost(self, reason, refused=False)
            finally:
                if invocation is not None:
                    self._pool.give_up(self, invocation, reason)

    # What its worker tells (engine.Tell)

    def ready(self, phases: dict[str, float]) -> None:
        """Its worker has loaded the kernel."""
        if self.state != "booting" or self._broken is not None:
            return
        self._forget_deadline()
        self.failed_boots = self._refused_boots = 0
        self.state = "idle"
        try:
            self._pool.ready(self, phases, self._pool.clock() - self._booted_at)
        finally:
            if self.invocation is not None and self.state == "idle":  # else it has got it since, and is at it
                self.assign(self.invocation)

    def replied(self, reply: ReplyFrame) -> None:
        """Its worker is done with its invocation."""
        if self._broken:  # nothing that it says counts any more
            return
        if self.state != "busy" or reply.status not in _REPLIES:
            self._fail("its link is damaged: a reply that nobody waits for")
            return
        if reply.rest is not None and reply.rest.left:
            reply.rest.done = partial(self.replied, reply)  # told again when all of it has passed, and done only then
            assert self.invocation is not None
            sent = self._pool.invocations.send
            sent(self.invocation, reply.status, reply.frame, self.gpu, self.number, rest=reply.rest)
            return
        invocation, self.invocation = self.invocation, None
        assert invocation is not None
        self.state = "idle" if self._broken is None else "lost"
        if self._deadline:
            self._forget_deadline()
        try:
            if reply.status == "worker_lost":
                assert self._worker is not None
                self.broken(reply.text)
                self._kill_later(self._worker)
            self._pool.finished(self, invocation, reply)
        finally:
            self._pool.free(self)

    def broken(self, reason: str) -> None:
        """Its worker is of no more use, and about to end."""
        if self.state in {"stopping", "left out"}:
            return
        self._broken = self._broken or reason
        self._forget_deadline()
        if self.state == "idle":
            self.state = "lost"
        self._pool.placement.set_ready(self.number, ready=False)

    def ended(self, how: str, counts: bool) -> None:
        """Its worker has ended: refill the place, or leave it out."""
        self._forget_deadline()
        self._worker = None
        if self.state in {"stopping", "left out"}:
            return
        booting, reason, self._broken = self.state == "booting", self._broken or how, None
        invocation = None
        if self.state != "lost":  # else it was given when its worker was lost already, and waits for the next one
            invocation, self.invocation = self.invocation, None
        self._refill(booting, counts)
        try:
            self._pool.placement.set_ready(self.number, ready=False)
            self._pool.lost(self, reason, booting and not counts)
        finally:
            self._part_with(invocation, reason)

    def _boot(self) -> None:
        pool, limit = self._pool, self._pool.settings.boot_timeout
        self._booted_at = now = pool.clock()
        try:
            self._worker = pool.engine.spawn(self.number, self.gpu, self)
        except Exception as error:
            why = f"no process can be started: {getattr(error, 'strerror', None) or error}"
            self._deadline = pool.deadlines.at(now, self.ended, why, False)
        else:
            self._deadline = pool.deadlines.at(
                now + limit, self._fail, f"not ready within {limit:g} s (--boot-timeout)"
            )

    def _refill(self, booting: bool, counts: bool) -> None:
        pause = 0.0
        self.state = "booting"
        if booting and counts:
            self.failed_boots += 1
            pause = _PAUSE * 2 ** (self.failed_boots - 1)
        elif booting:
            self._refused_boots += 1
            pause = min(_PAUSE_OF_MACHINE * 2 ** min(self._refused_boots - 1, 10), LONGEST_PAUSE)
        if self.failed_boots >= MOST_FAILED_BOOTS:
            self.state = "left out"
        else:
            self._deadline = self._pool.deadlines.at(self._pool.clock() + pause, self._boot)

    def _part_with(self, invocation: Invocation | None, reason: str) -> None:
        try:
            if self.state == "left out":
                self._pool.left_out(self, reason)
        finally:
            if invocation is not None:
                try:
                    self._pool.give_up(self, invocation, reason)
                finally:
                    if self.state != "left out":
                        self._pool.free(self)

    def _cut(self, invocation: Invocation) -> None:
        """Its worker has a part of a request, and is to get no more: it is of no more use."""
        if self.invocation is invocation and self.state == "busy" and self._broken is None:
            assert self._worker is not None
            self.broken("its client left, or ran out of time, with half a request sent")
            self._worker.stop()
            self._kill_later(self._worker)

    def _overdue(self, invocation: Invocation) -> None:
        # Failed first: what is told of the invocation may cut its worker off, which is then no news.
        self._fail(f"its call took longer than {self._pool.settings.call_timeout:g} s (--call-timeout)")
        self._pool.overdue(self, invocation)

    def _fail(self, reason: str) -> None:
        assert self._worker is not None
        self.broken(reason)
        self._worker.kill()

    def _kill_later(self, worker: Worker) -> None:
        self._deadline = self._pool.deadlines.at(self._pool.clock() + self._pool.settings.kill_after, worker.kill)

    def _forget_deadline(self) -> None:
        self._pool.deadlines.cancel(self._deadline)
        self._deadline = 0
