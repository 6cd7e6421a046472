"""The task runners: boots and stops the worker processes of a GPU, and refills the place of one that was lost.

A place whose worker served is refilled at once. One whose boots fail is tried again after pauses that grow, and left
out after `MOST_FAILED_BOOTS` in a row; boots that fail because the machine gives no process do not count, but are tried
after pauses that grow, too.

It does what it is told, by `pool.py`; which GPU, and for which invocation, is not its business.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from kaas import kernels
from kaas.children import ForkServer, describe
from kaas.events import Event
from kaas.forkserver import Config
from kaas.placement import Place
from kaas.server.account import Sparing
from kaas.server.process import Invocation, Trial, WorkerProcess
from kaas.server.settings import Settings
from kaas.server.worker import SAFE_TO_PRELOAD
from kaas.wire import ReplyFrame

if TYPE_CHECKING:  # its library is imported only where metrics are wanted
    from kaas.server.metrics import Metrics

log = logging.getLogger("kaas.server")

_LAST_WORDS = 0.1
"""Seconds after a process's end in which what it wrote must have arrived."""
MOST_FAILED_BOOTS = 5
"""Boots in a row that may come to nothing until a worker's place is left out."""
_PAUSE = 0.1
"""Seconds from the first failed boot to the second try; doubled from one to the next."""
_PAUSE_OF_MACHINE = 1.0
"""Seconds to the next try where the machine gave no process; doubled likewise, up to `_LONGEST_PAUSE`."""
_LONGEST_PAUSE = 30.0


class Owner(Protocol):
    """Whom the task runners tell what became of a worker and its invocation, whose place is free again."""

    def finished(self, worker: WorkerProcess, reply: ReplyFrame | None) -> None:
        """The worker is done with it; without a reply if it was never begun, because it had been answered by then."""

    def overdue(self, worker: WorkerProcess) -> None:
        """It takes longer than a call may; `lost` follows."""

    def lost(self, worker: WorkerProcess, invocation: Invocation, reason: str, unbegun: bool) -> None:
        """The worker that had it was lost, before it had begun if `unbegun`."""

    def left_out(self, worker: WorkerProcess, reason: str) -> None:
        """A worker's boots fail again and again, and it is not used any more; its invocation, if any, was not begun."""


class TaskRunners:
    """The worker processes of all booted GPUs."""

    def __init__(
        self, settings: Settings, emit: Callable[[Event], None], owner: Owner, metrics: "Metrics | None" = None
    ) -> None:
        self._settings = settings
        self._emit = emit
        self._owner = owner
        self._metrics = metrics
        self._workers: dict[int, dict[int, WorkerProcess]] = {}  # of each booted GPU
        self.lost: Counter[int] = Counter()  # of each GPU, workers lost
        self._by_child: dict[int, WorkerProcess] = {}
        self._trial: Trial | None = None
        self._failures: Counter[int] = Counter()  # of each worker, boots in a row that came to nothing
        self._refusals: Counter[int] = Counter()  # of each worker, boots in a row for which there was no process
        self._refused = Sparing(log, _LONGEST_PAUSE)
        imports = kernels.imports(settings.kernel)
        self._forkserver = ForkServer(
            "kaas.server.worker",
            {"modules": [name for name in imports if name.partition(".")[0] in SAFE_TO_PRELOAD]},
            self._ended,
            settings.kill_after,
            kill_orphans=True,  # one that hangs never looks at its link again
        )

    async def start(self) -> None:
        """Start the fork server, and try the kernel in a process that then ends.

        Raises:
            UsageError: the kernel does not load.
            ProcessFailed: the fork server does not start.
        """
        try:
            seconds = await self._forkserver.start()
            log.info("libraries imported in %.2f s", seconds)
            self._trial = Trial()
            config = self._config("the kernel's trial", gpu=0)
            phases = await self._trial.run(self._forkserver, config, self._settings.boot_timeout)
            log.info("kernel %s loads in %.2f s", self._settings.kernel.name, phases["import"])
        except BaseException:
            await self._forkserver.close()
            raise

    async def close(self) -> None:
        """Stop all task runners and wait until every process has ended; kill those that do not in time."""
        for gpu in list(self._workers):
            self.stop(gpu, "shutdown")
        await self._forkserver.close()

    def boot(self, gpu: int, numbers: list[int]) -> None:
        """Start the workers of a GPU; return at once."""
        self._emit(Event("booted", time.time(), gpu, len(numbers)))
        self._workers[gpu] = {number: self._worker(number, gpu) for number in numbers}
        for worker in self._workers[gpu].values():
            self._start(worker)

    def stop(self, gpu: int, why: str) -> None:
        """Let all workers of a GPU end by themselves; kill those that do not in time."""
        workers = self._workers.pop(gpu)
        self._emit(Event("stopped", time.time(), gpu, len(workers), detail=why))
        for worker in workers.values():
            self._forget_failures(worker)
            worker.stop()
            if worker.child is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(self._settings.kill_after, self._forkserver.kill, worker.child)

    def kill(self) -> None:
        """Kill every worker at once, and the fork server, which may not answer."""
        for gpu in list(self._workers):
            self.stop(gpu, "shutdown")
        self._forkserver.abort()

    def assign(self, invocation: Invocation, place: Place) -> None:
        """Give a worker its invocation."""
        self._workers[place.gpu][place.worker].assign(invocation)

    def status(self) -> list[dict[str, Any]]:
        """Say of each worker what the status query's answer says."""
        return [
            {"worker": worker.number, "gpu": worker.gpu, "pid": worker.pid, "state": worker.state}
            for gpu in sorted(self._workers)
            for worker in self._workers[gpu].values()
        ]

    def __contains__(self, gpu: int) -> bool:
        return gpu in self._workers

    def __len__(self) -> int:
        return len(self._workers)

    # What worker processes tell (process.Owner)

    def ready(self, worker: WorkerProcess, phases: dict[str, float]) -> None:
        """A worker has loaded the kernel."""
        self._forget_failures(worker)
        if self._metrics is not None:
            self._metrics.boot.observe(worker.boot_seconds, worker.gpu)
        detail = ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in phases.items())
        self._emit(Event("ready", time.time(), worker.gpu, 1, worker.number, detail))

    def finished(self, worker: WorkerProcess, reply: ReplyFrame | None) -> None:
        """A worker is done with its invocation."""
        self._owner.finished(worker, reply)

    def overdue(self, worker: WorkerProcess) -> None:
        """A worker's call takes longer than a call may."""
        self._owner.overdue(worker)

    def failed(self, worker: WorkerProcess) -> None:
        """A worker is of no use any more: it is killed, and `_ended` follows."""
        if worker.child is not None:
            self._forkserver.kill(worker.child)

    def _ended(self, child: int, code: int | None) -> None:
        if self._trial is not None and child == self._trial.child:
            self._trial.ended(code)
        worker = self._by_child.pop(child, None)
        if worker is None:
            return
        why = self._forkserver.failure
        worker.ended = f"the fork server cannot be started again: {why}" if code is None and why else describe(code)
        # What it said last may still be on its way over the link.
        wait = _LAST_WORDS if worker.linked else 0.0
        asyncio.get_running_loop().call_later(wait, self._lost, worker, code is not None)

    def _lost(self, worker: WorkerProcess, counts: bool) -> None:
        """Refill the worker's place, or leave it out; `counts` unless it was the machine that gave no process."""
        if worker.state == "stopping":
            return
        booting, was_idle = worker.state == "booting", worker.state in {"idle", "lost"}
        if booting:
            (self._failures if counts else self._refusals)[worker.number] += 1
        failures = self._failures[worker.number]
        left_out = failures >= MOST_FAILED_BOOTS
        reason, more = worker.failure or worker.ended, f"; left out after {failures} failed boots" if left_out else ""
        worker.stop("left out" if left_out else "stopping")
        self.lost[worker.gpu] += 1
        self._emit(Event("lost", time.time(), worker.gpu, 1, worker.number, reason + more))
        warn = self._refused.warning if booting and not counts else log.warning
        warn("worker %d on GPU %d was lost: %s%s", worker.number, worker.gpu, reason, more)
        if left_out:
            self._owner.left_out(worker, reason)
            return
        successor = self._workers[worker.gpu][worker.number] = self._worker(worker.number, worker.gpu)
        pause = 0.0
        if booting and counts:
            pause = _PAUSE * 2 ** (failures - 1)
        elif booting:
            pause = min(_PAUSE_OF_MACHINE * 2 ** min(self._refusals[worker.number] - 1, 10), _LONGEST_PAUSE)
        asyncio.get_running_loop().call_later(pause, self._start, successor)
        if worker.invocation is None:
            return
        if was_idle:  # it was given this one when it was dead already, and has not begun
            successor.assign(worker.invocation)
        else:
            self._owner.lost(worker, worker.invocation, reason, booting)

    def _worker(self, number: int, gpu: int) -> WorkerProcess:
        return WorkerProcess(number, gpu, self, self._settings.call_timeout)

    def _start(self, worker: WorkerProcess) -> None:
        if worker.state != "booting":  # its task runner was stopped during the pause
            return
        try:
            config = self._config(f"worker {worker.number} on GPU {worker.gpu}", worker.gpu)
            child = worker.start(self._forkserver, config, self._settings.boot_timeout)
        except OSError as error:
            worker.failure = f"no process can be started: {error.strerror}"
            asyncio.get_running_loop().call_soon(self._lost, worker, False)
        else:
            self._by_child[child] = worker

    def _forget_failures(self, worker: WorkerProcess) -> None:
        self._failures.pop(worker.number, None)
        self._refusals.pop(worker.number, None)

    def _config(self, name: str, gpu: int) -> Config:
        ids = self._settings.gpu_ids
        return {
            "name": name,
            "kernel": str(self._settings.kernel),
            "message_size": self._settings.message_size,
            "tracebacks": log.isEnabledFor(logging.DEBUG),
            # A worker sees one GPU only, so that one is its number 0.
            "environment": {
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                "CUDA_VISIBLE_DEVICES": ids[gpu] if ids else str(gpu),
                "WORKER_GPU": "0",
            },
        }
