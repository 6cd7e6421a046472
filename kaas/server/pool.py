"""Invocations on their way through the server: placed, queued, answered exactly once.

`placement.py` decides, `runners.py` has the processes, and this brings the two together. It knows nothing of
connections: an invocation brings its own way back.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kaas import wire
from kaas.events import Event
from kaas.placement import Place, Placement
from kaas.server.account import Account, Sparing
from kaas.server.process import Invocation, WorkerProcess
from kaas.server.runners import MOST_FAILED_BOOTS, TaskRunners
from kaas.server.settings import Settings
from kaas.wire import Pieces, Reply, ReplyFrame

if TYPE_CHECKING:  # its library is imported only where metrics are wanted
    from kaas.server.metrics import Metrics

log = logging.getLogger("kaas.server")


class Pool:
    """All workers of all GPUs. Lives in one asyncio loop; `submit` every invocation, `drain` at the end."""

    def __init__(self, settings: Settings, emit: Callable[[Event], None], metrics: "Metrics | None" = None) -> None:
        self._settings = settings
        self._emit = emit
        self._placement = Placement(settings.gpus, settings.workers_per_gpu)
        self._runners = TaskRunners(settings, emit, self, metrics)
        self._metrics = metrics
        self._queue: OrderedDict[Invocation, None] = OrderedDict()
        self._open: set[Invocation] = set()  # accepted and not yet answered
        self._idle_since: dict[int, float] = {}  # of each booted GPU, in the loop's time
        self._idle_watch: dict[int, asyncio.TimerHandle] = {}
        self.account = Account()
        self._cold_starts: Counter[int] = Counter()  # of each GPU
        self._kernel_errors = Sparing(log)
        self._no_gpu = ""  # why no GPU is left
        # So many boots can fail for one invocation before no place is left; the machine may refuse them for longer.
        self._most_moves = MOST_FAILED_BOOTS * settings.gpus * settings.workers_per_gpu
        self._drained = asyncio.Event()
        self._draining = False

    async def start(self) -> None:
        """Make ready to boot task runners; raises what `TaskRunners.start` does."""
        await self._runners.start()

    def submit(self, invocation: Invocation) -> None:
        """Accept an invocation: it is answered at once or later, and exactly once."""
        self.account["accepted"] += 1
        self._open.add(invocation)
        if self._draining:
            self._answer(invocation, "shutting_down", "the server is shutting down")
            return
        timeout = invocation.request.timeout
        if timeout:
            invocation.timer = self._limit(invocation, timeout, f"not done within {timeout:g} s")
        place = self._placement.acquire()
        if place is not None:
            self._assign(invocation, place)
        elif self._settings.when_full == "queue" and not self._no_gpu and len(self._queue) < self._settings.max_queue:
            self._enqueue(invocation)
        else:
            self._reject(invocation)

    def abandon(self, invocation: Invocation) -> None:
        """The client is gone: whatever comes of this invocation, nobody waits for it."""
        if not invocation.answered:
            self._close(invocation, "abandoned")

    def status(self) -> dict[str, Any]:
        """Say how the pool stands, as the status query's answer does."""
        return {
            "in_flight": len(self._open),
            "task_runners": len(self._runners),
            "queued": len(self._queue),
            "workers": self._runners.status(),
            "counters": dict(self.account),
            "by_gpu": [self._status_of(gpu) for gpu in range(self._settings.gpus)],
            "gpus": self._settings.gpus,
            "workers_per_gpu": self._settings.workers_per_gpu,
            "kernel": self._settings.kernel.name,
            "draining": self._draining,
            "settings": {
                "When full": self._settings.when_full,
                "Idle timeout [s]": self._settings.idle_timeout,
                "Call timeout [s]": self._settings.call_timeout,
                "Message size [bytes]": self._settings.message_size,
                "Kernel file": str(self._settings.kernel),
            },
        }

    def _status_of(self, gpu: int) -> dict[str, Any]:
        booted = gpu in self._runners
        return {
            "gpu": gpu,
            "booted": booted,
            "in_flight": self._placement.in_flight(gpu) if booted else 0,
            "workers": len(self._placement.workers(gpu)),
            "lost": self._runners.lost[gpu],
            "cold_starts": self._cold_starts[gpu],
        }

    async def drain(self) -> None:
        """Accept nothing more, answer what is in flight, let all workers end, and return when they have.

        What is still in flight after the drain timeout is answered `shutting_down`.
        """
        self._draining = True
        if self._open:
            log.info("draining: %d in flight", len(self._open))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), self._settings.drain_timeout)
        self._answer_all("the server shut down before it was done")
        await self._runners.close()

    def abort(self) -> None:
        """Answer all that is in flight, now, and kill every worker."""
        self._answer_all("the server was told to end at once")
        self._runners.kill()

    def __repr__(self) -> str:
        return f"<Pool {self._placement!r}, {len(self._open)} in flight, {len(self._queue)} queued>"

    # What the task runners tell (runners.Owner)

    def finished(self, worker: WorkerProcess, reply: ReplyFrame | None) -> None:
        """A worker is done with its invocation."""
        invocation, worker.invocation = worker.invocation, None
        assert invocation is not None
        if reply is not None:
            if reply.status != "ok":
                self._kernel_errors.warning(
                    "worker %d on GPU %d: %s", worker.number, worker.gpu, reply.payload.decode()
                )
            self._observe(invocation, worker.gpu, reply.kernel_ns)
            self._send(invocation, reply, worker)
        self._release(worker)

    def overdue(self, worker: WorkerProcess) -> None:
        """A worker's call takes longer than a call may: it is going to be lost."""
        assert worker.invocation is not None
        limit = f"the call took longer than {self._settings.call_timeout:g} s (--call-timeout)"
        self._answer(worker.invocation, "timeout", limit, worker)

    def lost(self, worker: WorkerProcess, invocation: Invocation, reason: str, unbegun: bool) -> None:
        """A worker was lost with its invocation; one that was not begun moves to another place if there is one."""
        if not (unbegun and self._move(invocation)):
            self._observe(invocation, worker.gpu)
            self._answer_lost(invocation, worker, reason)
        self._release(worker)

    def left_out(self, worker: WorkerProcess, reason: str) -> None:
        """A worker is used no more; nor is its GPU, if it was the last of that."""
        gpu, invocation = worker.gpu, worker.invocation
        if self._placement.leave_out(worker.number):
            if gpu in self._idle_watch:
                self._idle_watch.pop(gpu).cancel()
            log.error("GPU %d is left out: none of its workers boots: %s", gpu, reason)
            self._runners.stop(gpu, f"left out: {reason}")
        else:
            self._note_if_idle(gpu)
        if invocation is not None and not self._move(invocation):
            self._answer_lost(invocation, worker, reason)
        if self._placement.exhausted:
            self._no_gpu = f"no GPU is left, for no worker boots (see the server's log): {reason}"
            for waiting in list(self._queue):
                self._reject(waiting)

    # Placing

    def _assign(self, invocation: Invocation, place: Place) -> None:
        if place.boots:
            invocation.cold_start = True
            self.account["cold_starts"] += 1
            self._cold_starts[place.gpu] += 1
            self._runners.boot(place.gpu, self._placement.workers(place.gpu))
            self._watch_idle(place.gpu, self._settings.idle_timeout)
        self._runners.assign(invocation, place)

    def _move(self, invocation: Invocation) -> bool:
        """Give an invocation that was not begun another place, or the first turn; tell whether that is settled."""
        if invocation.answered:
            return True
        invocation.moves += 1
        if invocation.moves > self._most_moves:
            return False
        place = self._placement.acquire()
        if place is not None:
            self._assign(invocation, place)
        elif self._settings.when_full == "queue" and not self._placement.exhausted:
            self._enqueue(invocation)
            self._queue.move_to_end(invocation, last=False)
        else:
            return False
        return True

    def _release(self, worker: WorkerProcess) -> None:
        """Take the worker's place back; the invocation that has waited longest, if any, gets it."""
        self._placement.release(worker.number)
        if self._queue:
            invocation, _ = self._queue.popitem(last=False)
            if invocation.queue_timer is not None:
                invocation.queue_timer.cancel()
            place = self._placement.acquire()
            assert place is not None
            self._assign(invocation, place)
        else:
            self._note_if_idle(worker.gpu)

    def _note_if_idle(self, gpu: int) -> None:
        if self._settings.idle_timeout and not self._placement.in_flight(gpu):
            self._idle_since[gpu] = asyncio.get_running_loop().time()

    def _enqueue(self, invocation: Invocation) -> None:
        self._queue[invocation] = None
        limit = self._settings.queue_timeout
        if limit:
            invocation.queue_timer = self._limit(invocation, limit, f"queued for {limit:g} s (--queue-timeout)")

    def _watch_idle(self, gpu: int, wait: float) -> None:
        if self._settings.idle_timeout:
            self._idle_watch[gpu] = asyncio.get_running_loop().call_later(wait, self._stop_if_idle, gpu)

    def _stop_if_idle(self, gpu: int) -> None:
        if self._draining:
            return
        timeout = self._settings.idle_timeout
        if self._placement.in_flight(gpu):
            self._watch_idle(gpu, timeout)
            return
        left = self._idle_since[gpu] + timeout - asyncio.get_running_loop().time()
        if left > 0:
            self._watch_idle(gpu, left)
        else:
            self._placement.stop(gpu)
            self._runners.stop(gpu, "idle")

    # Answering

    def _reject(self, invocation: Invocation) -> None:
        full = f"all {self._settings.gpus} x {self._settings.workers_per_gpu} workers are busy"
        why = self._no_gpu or (f"{full}, and the queue is full" if self._queue else full)
        self._emit(Event("rejected", time.time(), detail=self._no_gpu))
        self._answer(invocation, "rejected", why)

    def _answer_lost(self, invocation: Invocation, worker: WorkerProcess, reason: str) -> None:
        text = f"worker {worker.number} on GPU {worker.gpu} was lost: {reason}"
        self._answer(invocation, "worker_lost", text, worker)

    def _limit(self, invocation: Invocation, seconds: float, text: str) -> asyncio.TimerHandle:
        """Have an invocation answered `timeout` after some time, unless it is answered before."""
        return asyncio.get_running_loop().call_later(seconds, self._answer, invocation, "timeout", text)

    def _answer(self, invocation: Invocation, status: str, text: str, worker: WorkerProcess | None = None) -> None:
        frame: Pieces = [wire.encode_reply(Reply(status, text.encode()))]
        self._send(invocation, ReplyFrame(status, 0, frame), worker)

    def _send(self, invocation: Invocation, reply: ReplyFrame, worker: WorkerProcess | None) -> None:
        if invocation.answered:
            return
        status, _, frame = reply
        self._close(invocation, status)
        queued_ns = (invocation.handed_over or time.perf_counter_ns()) - invocation.accepted
        gpu, number = (None, None) if worker is None else (worker.gpu, worker.number)
        cold_start, waited_for_boot = invocation.cold_start, invocation.waited_for_boot
        wire.complete_reply(
            frame, Reply(status, b"", invocation.request.id, cold_start, waited_for_boot, gpu, number, queued_ns)
        )
        invocation.send(invocation, frame)

    def _observe(self, invocation: Invocation, gpu: int, kernel_ns: int = 0) -> None:
        """Have the metrics show how long an invocation took which a worker was given, whatever the client was told."""
        if self._metrics is not None and invocation.handed_over:
            self._metrics.queue.observe((invocation.handed_over - invocation.accepted) / 1e9, gpu)
            if kernel_ns:
                self._metrics.kernel.observe(kernel_ns / 1e9, gpu)

    def _answer_all(self, why: str) -> None:
        for invocation in list(self._open):
            self._answer(invocation, "shutting_down", why)

    def _close(self, invocation: Invocation, status: str) -> None:
        invocation.answered = True
        self.account[status] += 1
        self._open.discard(invocation)
        self._queue.pop(invocation, None)
        for timer in (invocation.timer, invocation.queue_timer):
            if timer is not None:
                timer.cancel()
        if self._draining and not self._open:
            self._drained.set()
