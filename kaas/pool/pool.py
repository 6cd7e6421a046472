"""Invocations on their way through the server: placed, queued, answered exactly once.

A policy decides (`kaas.policy`), slots have the workers, and this brings the two together. Nothing is known of clients
and processes: an invocation brings its own way back, an engine starts workers, and clock and loop are given.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from kaas.events import Event
from kaas.placement import Placement
from kaas.policy import Policy
from kaas.pool.deadlines import Deadlines
from kaas.pool.engine import Engine
from kaas.pool.invocations import Invocation, Invocations, Observe
from kaas.pool.runner import TaskRunner
from kaas.pool.settings import Settings
from kaas.pool.slot import LONGEST_PAUSE, MOST_FAILED_BOOTS, Slot
from kaas.sparing import Sparing
from kaas.wire import NO_GPU, ReplyFrame

log = logging.getLogger("kaas.server")


class Pool:
    """All workers of all GPUs. `submit` every invocation, `drain` at the end.

    Args:
        settings: of the server.
        engine: has been started.
        policy: decides.
        emit: is given every event, its time stamp the clock's, and raises nothing.
        loop, clock: in which all of it happens, and the time, in seconds.
        observe: see `Observe`.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        policy: Policy,
        emit: Callable[[Event], None],
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        observe: Observe | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.clock = clock
        self.deadlines = Deadlines(loop, clock)
        self._policy = policy
        self._emit = emit
        self._observe = observe
        self.placement = Placement(settings.gpus, settings.workers_per_gpu)
        self.runners: dict[int, TaskRunner] = {}  # of each booted GPU
        self.invocations = Invocations(clock, self.deadlines, settings.queue_timeout, observe)
        self._waiting = self.invocations.waiting  # no others than these, first come first served
        self.lost_workers: Counter[int] = Counter()  # workers of each GPU
        self.cold_starts: Counter[int] = Counter()  # of each GPU
        self._kernel_errors = Sparing(log, clock)
        self._refused = Sparing(log, clock, LONGEST_PAUSE)
        self.no_gpu = ""  # why no GPU is left
        self.nodes: dict[int, str] = {}  # of each GPU, where the engine has several
        self.about_engine: Callable[[], dict[str, Any]] = dict  # more for the status, if the engine has it
        self.draining = False
        self.account = self.invocations.account
        self.abandon = self.invocations.abandon  # the client is gone, and nobody waits for what comes of it

    def submit(self, invocation: Invocation) -> None:
        """Accept an invocation: it is answered at once or later, and exactly once."""
        self.invocations.accept(invocation)
        if self.draining:
            self.invocations.answer(invocation, "shutting_down", "the server is shutting down")
        elif not self._place_or_wait(invocation, behind=len(self._waiting)):
            self._reject(invocation)

    async def drain(self) -> None:
        """Accept nothing more, answer what is in flight, let all workers end, and return when they have.

        What is still in flight after the drain timeout is answered `shutting_down`.
        """
        self.draining = True
        if self.invocations:
            log.info("draining: %d in flight", len(self.invocations))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.invocations.all_closed(), self.settings.drain_timeout)
        self._end("the server shut down before it was done")
        await self.engine.close()

    def abort(self) -> None:
        """Answer all that is in flight, now, and kill every worker."""
        self._end("the server was told to end at once")
        self.engine.abort()

    def __repr__(self) -> str:
        return f"<Pool {self.placement!r}, {len(self.invocations)} in flight, {len(self._waiting)} queued>"

    # What slots and task runners tell

    def ready(self, slot: Slot, phases: dict[str, float], seconds: float) -> None:
        """A worker has loaded the kernel."""
        self.placement.set_ready(slot.number, ready=True)
        detail = ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in phases.items())
        self.tell("ready", slot.gpu, 1, slot.number, detail)
        if self._observe is not None:
            self._observe("boot", seconds, slot.gpu)
        self.boot_ahead()

    def finished(self, slot: Slot, invocation: Invocation, reply: ReplyFrame) -> None:
        """A worker is done with its invocation."""
        self.invocations.send(invocation, reply.status, reply.frame, slot.gpu, slot.number)
        if self._observe is not None:
            self.invocations.observe(invocation, slot.gpu, reply.kernel_ns)
        if reply.status == "kernel_error":
            self._kernel_errors.warning("worker %d on GPU %d: %s", slot.number, slot.gpu, reply.text)

    def overdue(self, slot: Slot, invocation: Invocation) -> None:
        """A worker's call takes longer than a call may: it is going to be lost."""
        limit = f"the call took longer than {self.settings.call_timeout:g} s (--call-timeout)"
        self.invocations.answer(invocation, "timeout", limit, slot.gpu, slot.number)

    def lost(self, slot: Slot, reason: str, refused: bool) -> None:
        """A worker has ended that should not have."""
        more = f"; left out after {slot.failed_boots} failed boots" if slot.state == "left out" else ""
        self.lost_workers[slot.gpu] += 1
        self.tell("lost", slot.gpu, 1, slot.number, reason + more)
        warn = self._refused.warning if refused else log.warning
        warn("worker %d on GPU %d was lost: %s%s", slot.number, slot.gpu, reason, more)
        self.boot_ahead()

    def give_up(self, slot: Slot, invocation: Invocation, reason: str) -> None:
        """A worker was lost with its invocation; one that was not begun moves to another place if there is one."""
        if not invocation.handed_over and (invocation.answered or self._move(invocation)):
            return
        text = f"worker {slot.number} on GPU {slot.gpu} was lost: {reason}"
        self.invocations.answer(invocation, "worker_lost", text, slot.gpu, slot.number)
        self.invocations.observe(invocation, slot.gpu)

    def free(self, slot: Slot) -> None:
        """A worker has no invocation any more; the one that has waited longest, if any, gets a place."""
        if not self.placement.release(slot.number):
            self.runners[slot.gpu].idle_since = self.clock()
        if self._waiting:
            self.serve_waiting()

    def left_out(self, slot: Slot, reason: str) -> None:
        """A worker is used no more; nor is its GPU, if it was the last of that."""
        had = self.placement.in_flight(slot.gpu)
        if self.placement.leave_out(slot.number):
            log.error("GPU %d is left out: none of its workers boots: %s", slot.gpu, reason)
            self._stop(slot.gpu, f"left out: {reason}")
        elif had and not self.placement.in_flight(slot.gpu):
            self.runners[slot.gpu].idle_since = self.clock()
        self.reject_if_none_is_left(f"no worker boots (see the server's log): {reason}")
        self.boot_ahead()

    def idle(self, gpu: int) -> None:
        """Nothing has been in flight on a GPU for some time."""
        if not self.draining:
            self.placement.stop(gpu)
            self._stop(gpu, "idle")
            self.boot_ahead()

    # Placing

    def _place(self, invocation: Invocation) -> bool:
        """Give an invocation to a worker, if the policy has a place for it; tell whether it had."""
        gpu = self._policy.choose(self.placement)
        if gpu is None:
            gpu = self._policy.boot(self.placement, len(self._waiting) + (invocation not in self._waiting))
            if gpu is None:
                return False
            self._boot(gpu)
            invocation.cold_start = True
            self.account["cold_starts"] += 1
            self.cold_starts[gpu] += 1
        if self._waiting:
            self.invocations.waits_no_more(invocation)
        self.runners[gpu].slots[self.placement.acquire(gpu)].assign(invocation)
        return True

    def _place_or_wait(self, invocation: Invocation, behind: int) -> bool:
        """Place an invocation, or have it wait behind so many others; tell whether the policy lets it do either."""
        if self._place(invocation):
            self.boot_ahead()
            return True
        if may := not self.no_gpu and self._policy.may_wait(self.placement, behind):
            self.invocations.wait(invocation)
        return may

    def _move(self, invocation: Invocation) -> bool:
        """Give an invocation that was not begun another place, or the first turn; tell whether there is one."""
        invocation.moves += 1
        # So many boots can fail for one invocation; those that the machine refuses, for longer.
        if invocation.moves > MOST_FAILED_BOOTS * self.placement.gpus * self.settings.workers_per_gpu:
            return False
        may = self._place_or_wait(invocation, behind=0)
        if invocation in self._waiting:
            self._waiting.move_to_end(invocation, last=False)
        return may

    def serve_waiting(self) -> None:
        """Give those that wait the places that there are, and only then ask for more."""
        while self._waiting and self._place(next(iter(self._waiting))):
            pass
        self.boot_ahead()

    def boot_ahead(self) -> None:
        """Boot a GPU if the policy wants one, now that something has changed."""
        gpu = None if self.draining else self._policy.boot(self.placement, len(self._waiting))
        if gpu is not None:
            self._boot(gpu)
            self.serve_waiting()

    def _boot(self, gpu: int) -> None:
        numbers = self.placement.boot(gpu)
        self.tell("booted", gpu, len(numbers))
        self.runners[gpu] = TaskRunner(gpu, numbers, self)

    def _stop(self, gpu: int, why: str) -> None:
        runner = self.runners.pop(gpu)
        self.tell("stopped", gpu, len(runner.slots), detail=why)
        runner.stop()

    def _end(self, why: str) -> None:
        self.invocations.answer_all("shutting_down", why)
        for gpu in list(self.runners):
            self._stop(gpu, "shutdown")

    def reject_if_none_is_left(self, why: str) -> None:
        """Let nobody wait any more if no GPU is left."""
        if self.placement.exhausted:
            self.no_gpu = f"{NO_GPU}, for {why}"
            for waiting in list(self._waiting):
                self._reject(waiting)

    def tell(self, event: str, gpu: int, workers: int, worker: int | None = None, detail: str = "") -> None:
        """Have an event of a GPU printed."""
        self._emit(Event(event, self.clock(), gpu, workers, worker, detail, self.nodes.get(gpu, "")))

    def _reject(self, invocation: Invocation) -> None:
        full = f"all {self.placement.gpus} x {self.settings.workers_per_gpu} workers are busy"
        why = self.no_gpu or (f"{full}, and the queue is full" if self._waiting else full)
        self._emit(Event("rejected", self.clock(), detail=self.no_gpu))
        self.invocations.answer(invocation, "rejected", why)
