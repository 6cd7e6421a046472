"""The engine of this machine: workers are forked by a fork server (kaas.children), their links are socket pairs."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from kaas import kernels, wire
from kaas.children import ForkServer, describe
from kaas.errors import FrameError
from kaas.forkserver import Config
from kaas.line import Line
from kaas.passing import Passing
from kaas.pool.engine import Tell
from kaas.pool.settings import Settings
from kaas.server.engines.trial import try_kernel
from kaas.server.worker import SAFE_TO_PRELOAD
from kaas.wire import Pieces, ReplyFrame

log = logging.getLogger("kaas.server")

_LAST_WORDS = 0.1
"""Seconds after a process's end in which what it wrote must have arrived."""


class LocalEngine:
    """Starts and ends worker processes on this machine. Needs a running asyncio loop (pool.engine.Engine)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[int, LinkedWorker] = {}  # by the fork server's numbers
        self.line = Line()  # of large payloads, whatever way they go
        self._forkserver = ForkServer(
            "kaas.server.worker",
            preloaded(settings.kernel),
            self._ended,
            settings.kill_after,
            kill_orphans=True,  # one that hangs never looks at its link again
        )
        self.close = self._forkserver.close
        self.abort = self._forkserver.abort

    async def start(self) -> None:
        """Start the fork server, and try the kernel in a worker that then ends.

        That also leaves the kernel's compiled code in its cache on disk, so that no task runner has to compile it.
        Raises ProcessFailed if the fork server does not start, and what `try_kernel` does.
        """
        try:
            log.info("libraries imported in %.2f s", await self._forkserver.start())
            phases = await try_kernel(self, self._settings.boot_timeout)
            log.info("kernel %s loads in %.2f s", self._settings.kernel.name, phases["import"])
        except BaseException:
            await self._forkserver.close()
            raise

    def spawn(self, number: int, gpu: int, tell: Tell) -> "LinkedWorker":
        """Start a worker; raises OSError if there are no descriptors, or no processes, to be had."""
        ids = self._settings.gpu_ids
        config = worker_config(self._settings, number, gpu, ids[gpu] if ids else str(gpu))
        child, link = self._forkserver.spawn(config)
        self._workers[child] = worker = LinkedWorker(tell, partial(self._forkserver.kill, child), self.line)
        worker.connect(link)
        return worker

    def _ended(self, child: int, code: int | None) -> None:
        why = self._forkserver.failure
        how = f"the fork server cannot be started again: {why}" if code is None and why else describe(code)
        self._workers.pop(child).process_ended(how, code is not None)


def preloaded(kernel: Path) -> Config:
    """Say what a fork server of workers is told before it starts any."""
    modules = [name for name in kernels.imports(kernel) if name.partition(".")[0] in SAFE_TO_PRELOAD]
    return {"kernel": str(kernel), "modules": modules}


def worker_config(settings: Settings, number: int, gpu: int, device: str) -> Config:
    """Say what a worker is told; `device` is what CUDA calls its GPU on its machine."""
    return {
        "name": f"worker {number} on GPU {gpu}",
        "kernel": str(settings.kernel),
        "message_size": settings.message_size,
        "tracebacks": log.isEnabledFor(logging.DEBUG),
        "spawned": time.monotonic(),
        # A worker sees one GPU only, so that one is its number 0. The others are for emulated ones.
        "environment": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": device,
            "WORKER_GPU": "0",
            "KAAS_GPU": str(gpu),
            "KAAS_WORKER": str(number),
            "KAAS_SPAWNED": str(time.monotonic()),
        },
    }


class LinkedWorker(asyncio.BufferedProtocol):
    """A worker process and the server's end of its link. Its first frame says whether it is ready (engine.Worker).

    Args:
        tell: is told of it.
        kill: kills it.
        line: of its large replies.
    """

    last_words = _LAST_WORDS

    def __init__(self, tell: Tell, kill: Callable[[], None], line: Line) -> None:
        self.pid: int | None = None
        self.kill = kill
        self._tell = tell
        self._line = line
        self._decoder = wire.reply_frames()
        self.get_buffer = self._decoder.buffer  # type: ignore[method-assign] # asked for at every read
        self._asked = b""  # the id of its invocation
        self._taking: Passing | None = None  # the rest of that, if it is large
        self._transport: asyncio.Transport | None = None
        self._useless = False  # it is to end, and nothing that it says counts any more
        self._refused = False  # by the machine, for now
        self._linked = True
        self._end: tuple[str, bool] | None = None  # how it has ended, and whether that counts
        self._connecting: asyncio.Task[None] | None = None

    def connect(self, link: socket.socket) -> None:
        """Talk to it over a link that is there already."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect(link))

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        """Give it an invocation, and have the rest of it pass."""
        assert self._transport is not None
        self._asked, self._taking = wire.id_of(frame), rest
        for piece in frame:
            self._transport.write(piece)
        if rest is not None:
            rest.hand_on(self._transport)

    def stop(self) -> None:
        """Close the link: a worker ends when it reads its end, which is after its call."""
        self._useless = True
        if self._transport is not None:
            self._transport.close()

    def process_ended(self, how: str, counts: bool) -> None:
        """Its process has ended; what it said last may still be on its way."""
        self._end = how, counts and not self._refused
        if self._linked:
            self._tell.broken("")
            asyncio.get_running_loop().call_later(self.last_words, self._tell_end)
        else:
            self._tell_end()

    # What asyncio tells (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The link is open."""
        self._transport = cast("asyncio.Transport", transport)
        if self._useless:
            transport.close()

    def buffer_updated(self, nbytes: int) -> None:
        """Something has come from the worker."""
        try:
            for reply in self._decoder.received(nbytes):
                if self._useless:
                    return
                if self.pid is None:
                    self._greeted(reply)
                elif wire.id_of(reply.frame) != self._asked or (self._taking is not None and self._taking.left):
                    self._break("its link is damaged: a reply that nobody waits for")
                else:
                    if reply.rest is not None and self._transport is not None:
                        reply.rest.come_from(self._transport, self._line)
                    self._tell.replied(reply)
        except FrameError as error:
            self._break(f"its link is damaged: {error}")

    def pause_writing(self) -> None:
        """The worker takes no more of its invocation for now."""
        if self._taking is not None:
            self._taking.pause()

    def resume_writing(self) -> None:
        """It takes more."""
        if self._taking is not None:
            self._taking.resume()

    def connection_lost(self, error: Exception | None) -> None:
        """The worker's end of the link is closed: it has ended, or is about to. How, its exit code says."""
        self._linked = False
        self._break("")
        if self._end is not None:
            self._tell_end()

    async def _connect(self, link: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=link)
        except OSError as error:
            link.close()
            self._linked = False
            self._break(f"there is no link to it: {error.strerror}")

    def _greeted(self, hello: ReplyFrame) -> None:
        if hello.status != "ok":
            self._refused = hello.status == "rejected"
            self._break(f"it cannot load the kernel{' now' * self._refused}: {hello.text}")
            return
        try:
            said: dict[str, Any] = json.loads(hello.payload)
            pid, phases = int(said["pid"]), {name: float(seconds) for name, seconds in said["phases"].items()}
        except Exception as error:  # it may be anything, made by anybody in the worker
            self._break(f"its link is damaged: no sense in its first frame: {error}")
            return
        self.pid = pid
        self._tell.ready(phases)

    def _break(self, reason: str) -> None:
        """Have it end, and say so, unless it is to end anyway."""
        if not self._useless:
            self._useless = True
            self.kill()
            self._tell.broken(reason)

    def _tell_end(self) -> None:
        if self._end is not None:
            (how, counts), self._end = self._end, None
            self.stop()  # what comes over its link now, or the link's end, is not the next worker's
            self._tell.ended(how, counts)
