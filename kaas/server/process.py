"""One worker process as the server sees it, and the invocation that it is given."""

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, cast, get_args

from kaas import wire
from kaas.children import ForkServer, describe
from kaas.errors import FrameError, KaasError, ProcessFailed, TemporarilyUnavailable, UsageError
from kaas.forkserver import Config
from kaas.wire import Pieces, ReplyFrame, RequestFrame

State = Literal["booting", "idle", "busy", "lost", "stopping", "left out"]
STATES: tuple[State, ...] = get_args(State)
_NO_MORE = ("stopping", "left out")
_REPLIES = ("ok", "kernel_error")
"""What a worker may say of a call."""


@dataclass(slots=True, eq=False)
class Invocation:
    """A request by a client, accepted and to be answered once: `send` takes it back, with the reply's frame."""

    request: RequestFrame
    send: Callable[["Invocation", Pieces], None]
    accepted: int = field(default_factory=time.perf_counter_ns)
    handed_over: int = 0
    cold_start: bool = False
    waited_for_boot: bool = False
    moves: int = 0
    answered: bool = False
    timer: asyncio.TimerHandle | None = None
    queue_timer: asyncio.TimerHandle | None = None


class Owner(Protocol):
    """Whom a worker process tells what became of it."""

    def ready(self, worker: "WorkerProcess", phases: dict[str, float]) -> None:
        """It has loaded the kernel."""

    def finished(self, worker: "WorkerProcess", reply: ReplyFrame | None) -> None:
        """Its invocation is over; without a reply if it was never begun, because it had been answered by then."""

    def overdue(self, worker: "WorkerProcess") -> None:
        """Its call takes longer than a call may; `failed` follows."""

    def failed(self, worker: "WorkerProcess") -> None:
        """It is of no use any more, and must be killed if it still runs; `worker.failure` may say why."""


class WorkerProcess(asyncio.BufferedProtocol):
    """The server's end of a worker: boots it, hands it one invocation at a time, takes its replies.

    A worker may be given an invocation while it boots, and begins with it as soon as it is ready; one that was lost
    while idle takes it, too, for its successor.

    Args:
        number: of its place.
        gpu: the GPU's.
        owner: whom it tells what becomes of it.
        call_timeout: seconds that a call may take; 0 for any.
    """

    def __init__(self, number: int, gpu: int, owner: Owner, call_timeout: float = 0.0) -> None:
        self.number = number
        self.gpu = gpu
        self.boot_seconds = 0.0
        self.state: State = "booting"
        self.pid: int | None = None
        self.child: int | None = None
        self.linked = False
        self.invocation: Invocation | None = None
        self.failure = ""  # why it is killed
        self.unavailable = False  # whether that is no fault of its own: what it needs is not to be had for now
        self.ended = ""  # how it has ended
        self._owner = owner
        self._call_timeout = call_timeout
        self._started = 0.0
        self._decoder = wire.reply_frames()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[Any] | None = None

    def start(self, forkserver: ForkServer, config: Config, limit: float) -> int:
        """Start the process and return its child number; it fails if it is not ready within `limit` seconds."""
        loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        self.child, link = forkserver.spawn(config | {"spawned": self._started})
        self.linked = True
        self._connecting = loop.create_task(self._connect(link))
        self._timer = loop.call_later(limit, self._fail, f"not ready within {limit:g} s (--boot-timeout)")
        return self.child

    def assign(self, invocation: Invocation) -> None:
        """Give it an invocation; it must have none."""
        self.invocation = invocation
        if self.state == "idle" and not (self.failure or self.ended):
            self._begin(invocation)
        else:
            invocation.waited_for_boot = True

    def stop(self, state: State = "stopping") -> None:
        """Let it end by itself, after the call that it may be in."""
        self.state = state
        self._cancel_timer()
        if self._transport is not None:
            self._transport.close()

    # What asyncio tells (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The link is open."""
        self._transport = cast("asyncio.Transport", transport)
        if self.state in _NO_MORE:
            transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Something is coming from the worker: where to?"""
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """It is there."""
        if self.failure:  # nothing that it says counts any more
            return
        try:
            for reply in self._decoder.received(nbytes):
                if self.state == "busy" and reply.status in _REPLIES:
                    self._cancel_timer()
                    self.state = "idle"
                    self._owner.finished(self, reply)
                elif self.state == "busy" and reply.status == "worker_lost":
                    self._fail(reply.payload.decode())
                    return
                elif self.state == "booting":
                    self._booted(reply)
                else:
                    self._fail("its link is damaged: a reply that nobody waits for")
                    return
        except FrameError as error:
            self._fail(f"its link is damaged: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """The worker's end of the link is closed: it has ended, or is about to. How, its exit code says."""
        self.linked = False
        if self.state == "idle":
            self.state = "lost"
        self._fail("")

    def __repr__(self) -> str:
        return f"<worker {self.number} on GPU {self.gpu}, {self.state}>"

    async def _connect(self, link: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=link)
        except OSError as error:
            link.close()
            self.linked = False
            self._fail(f"there is no link to it: {error.strerror}")

    def _begin(self, invocation: Invocation) -> None:
        if invocation.answered:
            self._owner.finished(self, None)
            return
        assert self._transport is not None
        self.state = "busy"
        if self._call_timeout:
            self._timer = asyncio.get_running_loop().call_later(self._call_timeout, self._overdue)
        invocation.handed_over = time.perf_counter_ns()
        for piece in invocation.request.frame:
            self._transport.write(piece)

    def _booted(self, reply: ReplyFrame) -> None:
        self._cancel_timer()
        if reply.status != "ok":
            self.unavailable = reply.status == "rejected"
            self._fail(f"it cannot load the kernel{' now' * self.unavailable}: {reply.payload.decode()}")
            return
        hello = json.loads(reply.payload)
        self.state = "idle"
        self.pid = hello["pid"]
        self.boot_seconds = time.monotonic() - self._started
        self._owner.ready(self, hello["phases"])
        if self.invocation is not None:
            self._begin(self.invocation)

    def _overdue(self) -> None:
        self._owner.overdue(self)
        self._fail(f"its call took longer than {self._call_timeout:g} s (--call-timeout)")

    def _fail(self, reason: str) -> None:
        """Tell the owner, unless it was meant to end."""
        self._cancel_timer()
        if self.state not in _NO_MORE:
            self.failure = self.failure or reason
            self._owner.failed(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Trial:
    """Boots one worker before the server listens and lets it end: does the kernel load at all?

    That also leaves the kernel's compiled code in its cache on disk, so that no task runner has to compile it.
    """

    def __init__(self) -> None:
        self.child: int | None = None
        self._result: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()

    async def run(self, forkserver: ForkServer, config: Config, limit: float) -> dict[str, float]:
        """Boot the worker and return the seconds of each phase.

        Raises:
            UsageError: the kernel does not load; the text says why.
            TemporarilyUnavailable: it does not for now.
            ProcessFailed: there is no process to be had.
        """
        worker = WorkerProcess(0, 0, self)
        try:
            self.child = worker.start(forkserver, config, limit)
        except OSError as error:
            raise ProcessFailed(f"no process can be started to try the kernel in: {error.strerror}") from None
        self._kill = partial(forkserver.kill, self.child)
        try:
            return await self._result
        except BaseException:
            self._kill()
            raise
        finally:
            worker.stop()

    def ready(self, worker: WorkerProcess, phases: dict[str, float]) -> None:
        """It loads."""
        self._result.set_result(phases)

    def finished(self, worker: WorkerProcess, reply: ReplyFrame | None) -> None:
        """Never happens: a trial is given no invocation."""

    def overdue(self, worker: WorkerProcess) -> None:
        """Never happens, either."""

    def failed(self, worker: WorkerProcess) -> None:
        """It does not load; if it did not say why, `ended` follows."""
        if worker.failure:
            self._fail(worker.failure, TemporarilyUnavailable if worker.unavailable else UsageError)
        else:
            self._kill()

    def ended(self, code: int | None) -> None:
        """Its process has ended."""
        self._fail(f"its process {describe(code)} while it loaded the kernel")

    def _fail(self, reason: str, kind: type[KaasError] = UsageError) -> None:
        if not self._result.done():
            self._result.set_exception(kind(f"the kernel does not start: {reason}"))
