"""A node's agent as the server sees it: it comes up, starts and kills workers, and says how they ended."""

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from kaas.children import describe
from kaas.cluster import facts
from kaas.cluster.lines import Lines, Message
from kaas.cluster.nodes import Node, place_of
from kaas.errors import ProcessFailed, UsageError
from kaas.pool.engine import Tell
from kaas.pool.settings import Settings
from kaas.server.engines.local import LinkedWorker, worker_config
from kaas.server.engines.ray import guard
from kaas.server.engines.trial import try_kernel

if TYPE_CHECKING:
    from kaas.server.engines.ray.engine import RayEngine

_MODULE = "kaas.server.engines.ray.agent"
_GRACE = 5.0
"""Seconds that an agent has to end, beside those that its workers have."""


def patience(settings: Settings) -> float:
    """Tell the seconds that what an agent has begun has to end by itself: its workers, and the guard of its GPUs."""
    return settings.kill_after + (guard.PATIENCE if settings.mps is not None else 0.0)


class NodeAgent:
    """Has an agent started on its node in `come_up`, and is told over its link from then on.

    Args:
        engine: that it belongs to.
        node: where.
        gpus: the numbers of those that it holds there, device by device.
    """

    def __init__(self, engine: "RayEngine", node: Node, gpus: list[int]) -> None:
        self.node = node
        self.gpus = gpus
        self.offered = False  # its GPUs are in use
        self.place = ""  # of the shared memory there (transport.place), once it has come up
        self._engine = engine
        self._link = Lines(self._told, self._link_ended)
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._kernel = ""
        self._devices: list[str] = []
        self._workers: dict[int, _NodeWorker] = {}
        self._spawned = 0
        self._to_prove: list[int] = []  # the processes of which was asked whether they are clients of MPS
        self._proved = ""
        self._over = asyncio.Event()

    async def come_up(self) -> None:
        """Have it started, and try the kernel there.

        Raises:
            UsageError: it has other versions, or not the kernel, or that does not load there.
            ProcessFailed: it does not come.
        """
        settings, name = self._engine.settings, self.node.label
        cluster, kernel = self._engine.cluster, place_of(settings.kernel)
        secret = cluster.start_agent(
            self.node,
            len(self.gpus),
            _MODULE,
            lambda: self._link,
            kernel=kernel,
            kill_after=settings.kill_after,
            mps=settings.mps,
        )
        try:
            async with asyncio.timeout(settings.boot_timeout):
                hello = await self._next()
                if what := facts.difference(facts.versions(), hello["versions"]):
                    raise UsageError(f"node {name} is set up otherwise: {what}")
                if not hello["kernel"]:
                    raise UsageError(f"node {name} has no {kernel}: a kernel outside the project must be there, too")
                await self._next()
        except TimeoutError:
            raise ProcessFailed(
                f"node {name}: no agent within {settings.boot_timeout:g} s (--boot-timeout): are its GPUs in use?"
            ) from None
        finally:
            cluster.links.forget(secret)
        self.place = hello["place"]
        self._kernel = hello["kernel"]
        self._devices = hello["devices"]
        await try_kernel(self._engine, settings.boot_timeout, self.gpus[0])

    def status(self) -> dict[str, Any]:
        """Say what the status query's answer tells of it: which GPUs it has, and what CUDA calls them there.

        Under MPS also how many of its workers are clients of that, "" while that is asked.
        """
        told = {"id": self.node.id, "node": self.node.label, "gpus": self.gpus, "devices": self._devices}
        if self._engine.settings.mps is None:
            return told
        pids = sorted(worker.pid for worker in self._workers.values() if worker.pid is not None)
        if pids != self._to_prove:
            self._to_prove, self._proved = pids, ""
            self._link.send({"prove": pids})
        return told | {"mps": self._proved}

    def spawn(self, number: int, gpu: int, tell: Tell) -> LinkedWorker:
        """Have it start a worker."""
        device = self.gpus.index(gpu)
        name = self._devices[device] if device < len(self._devices) else str(device)
        config = worker_config(self._engine.settings, number, gpu, name) | {"kernel": self._kernel}
        self._spawned = child = self._spawned + 1
        self._workers[child] = worker = _NodeWorker(tell, partial(self._kill, child), self._engine.line)
        worker.secret = self._engine.cluster.links.expect(lambda: worker)
        self._link.send({"spawn": child, "secret": worker.secret, "config": config})
        return worker

    def gone(self, why: str) -> None:
        """It has ended, or must be taken for it; and so all its workers have."""
        self._said.put_nowait({"error": why})
        for worker in self._workers.values():
            self._engine.cluster.links.forget(worker.secret)
            worker.process_ended(why, counts=False)
        self._workers.clear()
        self._link.close()
        self._over.set()

    async def close(self) -> None:
        """Have its workers end by themselves, or killed after some time, and then it."""
        if not self._link.is_open:
            return
        self._link.send({"close": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), patience(self._engine.settings) + _GRACE)

    def abort(self) -> None:
        """Have it kill its workers, and end."""
        self._link.send({"abort": True})

    def _kill(self, child: int) -> None:
        self._link.send({"kill": child})

    async def _next(self) -> Message:
        message = await self._said.get()
        if "error" in message:
            raise ProcessFailed(f"node {self.node.label}: {message['error']}")
        return message

    def _told(self, message: Message) -> None:
        if "mps" in message:
            self._proved = message["mps"]
        elif "ended" not in message:
            self._said.put_nowait(message)
        elif worker := self._workers.pop(message["ended"], None):
            self._engine.cluster.links.forget(worker.secret)
            code = message["code"]
            worker.process_ended(message["why"] or describe(code), counts=code is not None)

    def _link_ended(self) -> None:
        self._engine.lost(self, "its agent's connection has ended")


class _NodeWorker(LinkedWorker):
    """A worker on a node: its link comes in when the agent has made it, if its process does not end before."""

    last_words = 1.0  # its end is told over another connection
    secret = ""
