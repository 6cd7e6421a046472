"""The monitor over the nodes of a Ray cluster: an agent on each that the server has GPUs on (monitor.agent).

Which these are, and which numbers their GPUs have, the server's status says; so a node that joins later is found. The
agents' samples bear their nodes' clocks, and are brought to the run's here. Of a node that is lost the rows end, with a
note; the others go on.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from kaas.client import Connection
from kaas.clock import Clock
from kaas.cluster.cluster import Joining
from kaas.cluster.lines import Message
from kaas.cluster.members import Member, Members
from kaas.cluster.nodes import Node
from kaas.errors import KaasError, UsageError
from kaas.monitor.agent import CPU_INTERVAL_MS
from kaas.samples import Sample

_LONGEST_WAIT = 0.25
_STATUS_LIMIT = 5.0
_AGENT_LIMIT = 60.0
_EVERY = 1.0
"""Seconds between two looks at which nodes there are, where samples do not take more."""
_AGAIN = 5.0
"""Seconds until an agent is started again on a node that the server still has."""


class NodesMonitor:
    """Samples all nodes, from now on until `close`; its loop runs only while it is asked for samples.

    Args:
        joining: which Ray; without an address, the server's.
        connection: to the server.
        source: what to measure on the nodes; "" for what there is.
        interval_ms: milliseconds between two samples; 0 for the source's own.
        say: takes a line about what the samples lack.
        clock: the run's.

    Raises:
        UsageError: the server has no Ray, or it cannot be joined from here; a node cannot be sampled.
        ConnectionFailed: there is no server.
        ProcessFailed: an agent does not come up.
    """

    def __init__(
        self,
        joining: Joining,
        connection: Connection,
        *,
        source: str,
        interval_ms: int,
        say: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._source = source
        self._interval_ms = interval_ms
        self._say = say
        self._clock = clock
        self._samples: list[Sample] = []
        self._pushed = asyncio.Event()
        self._members: Members | None = None
        self._coming: dict[str, asyncio.Task[None]] = {}  # by the nodes' ids
        self._not_before: dict[str, float] = {}
        self._runner = asyncio.Runner()
        self._following: asyncio.Task[None] | None = None
        try:
            self._runner.run(self._start(joining))
        except BaseException:
            self.close()
            raise

    def take(self) -> list[Sample]:
        """Give what has come from the nodes, waiting a little for it."""
        self._runner.run(self._wait())
        taken, self._samples = self._samples, []
        return taken

    def close(self) -> None:
        """End the agents, leave the cluster, and say how well each node's clock was known."""
        self._runner.run(self._close())
        self._runner.close()

    async def _start(self, joining: Joining) -> None:
        status = self._connection.status(_STATUS_LIMIT)
        address = joining.address or status["engine"].get("ray", "")
        if not address:
            raise UsageError("the server is not one with --engine ray: give no --engine, or a --ray-address")
        self._members = Members(
            joining._replace(address=address),
            "kaas.monitor.agent",
            told=self._told,
            lost=self._lost,
            say=self._say,
            limit=_AGENT_LIMIT,
        )
        await self._members.start()
        self._look(status)
        await asyncio.gather(*self._coming.values())
        self._following = asyncio.create_task(self._follow())

    async def _wait(self) -> None:
        if not self._samples:
            self._pushed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pushed.wait(), _LONGEST_WAIT)

    async def _close(self) -> None:
        for task in (self._following, *self._coming.values()):
            if task is not None:
                task.cancel()
        if self._members is None:
            return
        for member in self._members.there.values():
            self._say(f"node {member.node.label}: {member.offset}")
        await self._members.close()

    async def _follow(self) -> None:
        """Ask the server how it stands, and tell the agents."""
        every = _EVERY if self._source == "nvidia-smi" else (self._interval_ms or CPU_INTERVAL_MS) / 1000
        due = time.monotonic()
        while True:
            due = max(due + every, time.monotonic())
            try:
                status: dict[str, Any] | None = await asyncio.to_thread(self._connection.status, _STATUS_LIMIT)
            except KaasError:
                status = None
            if status is not None:
                self._look(status)
            assert self._members is not None
            gpus = {one["id"]: one["gpus"] for one in status["engine"].get("agents", [])} if status else {}
            for each, member in self._members.there.items():
                member.tell({"status": status and _part_of(status, gpus.get(each, []))})
            await asyncio.sleep(due - time.monotonic())

    def _look(self, status: dict[str, Any]) -> None:
        """Have an agent on each node that the server has GPUs on."""
        assert self._members is not None
        nodes = {node.id: node for node in self._members.cluster.nodes}
        for found in status["engine"].get("agents", []):
            each = found["id"]
            is_due = time.monotonic() >= self._not_before.get(each, 0.0)
            if each in nodes and each not in self._members.there and each not in self._coming and is_due:
                task = asyncio.create_task(self._bring_up(nodes[each], found))
                self._coming[each] = task

    async def _bring_up(self, node: Node, found: dict[str, Any]) -> None:
        assert self._members is not None
        orders = {"source": self._source, "interval_ms": self._interval_ms}
        try:
            await self._members.add(node, orders | {name: found[name] for name in ("node", "gpus", "devices")})
        except KaasError as error:
            if self._following is None:
                raise
            self._say(f"no samples of node {node.label}: {error}")
        finally:
            self._not_before[node.id] = time.monotonic() + _AGAIN
            del self._coming[node.id]

    def _told(self, member: Member, message: Message) -> None:
        for cells in message["samples"]:
            sample = Sample(*cells)
            stamp = self._clock.at(member.offset.ours(sample.timestamp))
            self._samples.append(sample._replace(timestamp=round(stamp, 6)))
        self._pushed.set()

    def _lost(self, member: Member) -> None:
        node = member.node.label
        self._say(f"node {node} is lost, and its rows end at {self._clock.now():.3f}: {member.why}; {member.offset}")
        self._not_before[member.node.id] = time.monotonic() + _AGAIN


def _part_of(status: dict[str, Any], gpus: list[int]) -> dict[str, Any]:
    """Give what a node's agent has to know of the server's status: its own GPUs' workers."""
    return {name: status[name] for name in ("gpus", "workers_per_gpu")} | {
        name: [one for one in status[name] if one["gpu"] in gpus] for name in ("by_gpu", "workers")
    }
