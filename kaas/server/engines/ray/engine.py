"""The engine `ray`: workers on the nodes of a Ray cluster, on the server's side. Ray itself is the bridge's."""

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Any

from kaas import transport
from kaas.cluster.cluster import Cluster, Joining
from kaas.cluster.nodes import Node, place_of
from kaas.errors import KaasError, UsageError
from kaas.line import Line
from kaas.pool.engine import Roster, Tell
from kaas.pool.settings import Settings
from kaas.server.engines.local import LinkedWorker
from kaas.server.engines.ray.node import NodeAgent, patience
from kaas.server.engines.ray.numbering import Numbering

log = logging.getLogger("kaas.server")

_AGAIN = 1.0
"""Seconds until an agent is started again where one has ended; doubled from one failure to the next."""
_LONGEST_PAUSE = 30.0


class RayEngine:
    """Starts and ends workers on the nodes of a Ray cluster (pool.engine.Engine).

    Args:
        settings: of the server.
        failed: called with why, once, when Ray is lost in mid-run.
    """

    def __init__(self, settings: Settings, failed: Callable[[str], None]) -> None:
        self.roster: Roster | None = None  # whom GPUs are offered to
        self.settings = settings
        self.cluster = Cluster(_joining(settings), self._look, self._agent_ended, self._ray_lost)
        self._failed = failed
        self._numbering = Numbering(settings.gpus or None)
        self._agents: dict[str, NodeAgent] = {}  # of the nodes by their ids, from their starts to their ends
        self.line = Line()  # of large payloads, whatever way they go
        self._agent_of: dict[int, NodeAgent] = {}  # of each GPU
        self._here = True  # all nodes so far have the shared memory of this process; one that was lost may come back
        self._pauses: dict[str, float] = {}  # of each node whose agent has ended, the last one
        self._pausing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = self._closing = False

    async def start(self) -> None:
        """Join Ray or start one, and have an agent on each node that has tried the kernel.

        Raises:
            UsageError: there is no such Ray, or too few GPUs; a node has other versions, or not the kernel.
            ProcessFailed: there is no process to be had.
        """
        try:
            await self.cluster.start()
            await self._start_agents()
            if self.cluster.error is not None:
                raise self.cluster.error
        except BaseException:
            await self.close()
            raise
        self._started = True
        self._look()

    def spawn(self, number: int, gpu: int, tell: Tell) -> LinkedWorker:
        """Start a worker; raises OSError if its node is not there."""
        if gpu not in self._agent_of:
            raise OSError(errno.EHOSTDOWN, "its node is not there")
        return self._agent_of[gpu].spawn(number, gpu, tell)

    async def close(self) -> None:
        """Have all workers end, then the agents, then the bridge, and Ray if it is ours."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))
        await self.cluster.close()

    def abort(self) -> None:
        """Kill every worker, now."""
        for agent in self._agents.values():
            agent.abort()

    def status(self) -> dict[str, Any]:
        """Say what the status query's answer tells of the engine."""
        there = sorted((agent.gpus, agent.node.label) for agent in self._agents.values() if agent.offered)
        return {
            "name": "ray",
            "nodes": {name: gpus for gpus, name in there},
            "text": "; ".join(f"{name}: GPUs {', '.join(map(str, gpus))}" for gpus, name in there),
            "here": self._here,
            "links_refused": self.cluster.links.refused,
            "ray": self.cluster.head,
            "agents": [agent.status() for agent in self._agents.values() if agent.offered],
        }

    def lost(self, agent: NodeAgent, why: str) -> None:
        """An agent has ended, or its node is gone: and with it its GPUs and its workers."""
        node = agent.node
        if self._agents.get(node.id) is not agent:
            return
        del self._agents[node.id]
        for gpu in agent.gpus:
            del self._agent_of[gpu]
        why = f"node {node.label} is lost: {why}"
        if agent.offered and self.roster is not None and not self._closing:
            log.warning("%s", why)
            self.roster.withdraw(agent.gpus, why)
        agent.gone(why)
        self.cluster.kill_agent(node)
        if not self._closing:
            self._pausing.add(node.id)
            self._pauses[node.id] = pause = min(2 * self._pauses.get(node.id, _AGAIN / 2), _LONGEST_PAUSE)
            asyncio.get_running_loop().call_later(pause, self._pause_over, node.id)

    # Starting

    async def _start_agents(self) -> None:
        numbers = self._numbering.number(self.cluster.nodes)
        found, wanted = sum(map(len, numbers.values())), self.settings.gpus or 1
        if found < wanted:
            raise UsageError(
                f"Ray's nodes have {found} GPUs, and {wanted} are wanted (--num-gpus); "
                "`ray start --num-gpus N` says how many a node has"
            )
        agents = [self._new_agent(node, numbers[node.id]) for node in self.cluster.nodes if numbers[node.id]]
        coming = [asyncio.create_task(agent.come_up()) for agent in agents]
        try:
            await asyncio.gather(*coming)
        finally:
            for task in coming:
                task.cancel()
        for agent in agents:  # when all have come: the first invocation finds all GPUs
            self._offer(agent)

    # What the cluster tells

    def _agent_ended(self, node: str, why: str) -> None:
        if agent := self._agents.get(node):
            self.lost(agent, f"its agent has ended: {why}")

    def _ray_lost(self, error: KaasError) -> None:
        if self._started and not self._closing:
            self._closing = True
            self._failed(str(error))
        elif not self._started:
            for agent in list(self._agents.values()):
                self.lost(agent, str(error))

    # Nodes that come and go

    def _look(self) -> None:
        """Have an agent on each node that is there, and on no other."""
        if not self._started or self._closing:
            return
        # One whose agent was lost may be lost itself, before Ray says so, and another come with its address.
        nodes = [node for node in self.cluster.nodes if node.id not in self._pausing]
        numbers = self._numbering.number(nodes)
        for agent in list(self._agents.values()):
            if agent.node.id not in numbers:
                self.lost(agent, "Ray has it no more")
        for node in nodes:
            if numbers[node.id] and node.id not in self._agents:
                task = asyncio.create_task(self._bring_up(self._new_agent(node, numbers[node.id])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _pause_over(self, node: str) -> None:
        self._pausing.discard(node)
        self._look()

    async def _bring_up(self, agent: NodeAgent) -> None:
        try:
            await agent.come_up()
        except KaasError as error:
            log.warning("node %s is not used: %s", agent.node.label, error)
            self.lost(agent, str(error))
        else:
            self._offer(agent)

    def _new_agent(self, node: Node, gpus: list[int]) -> NodeAgent:
        self._agents[node.id] = agent = NodeAgent(self, node, gpus)
        self._agent_of.update(dict.fromkeys(gpus, agent))
        return agent

    def _offer(self, agent: NodeAgent) -> None:
        assert self.roster is not None
        agent.offered = True
        self._here = self._here and agent.place == transport.place()
        self._pauses.pop(agent.node.id, None)
        log.info("node %s has the GPUs %s", agent.node.label, ", ".join(map(str, agent.gpus)))
        self.roster.offer(agent.gpus, agent.node.label)


def _joining(settings: Settings) -> Joining:
    return Joining(
        address=settings.ray_address,
        nodes=settings.ray_nodes,
        gpus=settings.gpu_ids or tuple(map(str, range(settings.gpus or 1))),
        ships=place_of(settings.kernel),
        link_host=settings.link_host,
        link_port=settings.link_port,
        kill_after=patience(settings),
    )
