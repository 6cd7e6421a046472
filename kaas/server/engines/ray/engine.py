"""The engine `ray`: workers on the nodes of a Ray cluster, on the server's side. Ray itself is the bridge's."""

import asyncio
import contextlib
import errno
import json
import logging
import subprocess
from collections.abc import Callable
from typing import Any

from kaas import addresses, linked
from kaas.errors import KaasError, ProcessFailed, UsageError
from kaas.pool.engine import Fleet, Tell
from kaas.pool.settings import Settings
from kaas.server.engines.local import LinkedWorker
from kaas.server.engines.ray.lines import Lines, Message
from kaas.server.engines.ray.links import LinkPort
from kaas.server.engines.ray.local_ray import make_folder, remove_folder
from kaas.server.engines.ray.node import NodeAgent, place_of
from kaas.server.engines.ray.numbering import Node, Numbering

log = logging.getLogger("kaas.server")

_AGAIN = 1.0
"""Seconds until an agent is started again where one has ended; doubled from one failure to the next."""
_LONGEST_PAUSE = 30.0
_GRACE = 20.0
"""Seconds that the bridge, and a Ray that it has started, have to end, beside those that workers have."""


class RayEngine:
    """Starts and ends workers on the nodes of a Ray cluster (pool.engine.Engine).

    Args:
        settings: of the server.
        failed: called with why, once, when Ray is lost in mid-run.
    """

    def __init__(self, settings: Settings, failed: Callable[[str], None]) -> None:
        self.fleet: Fleet | None = None  # whom GPUs are offered to
        self.settings = settings
        self.links = LinkPort()
        self.address = "", 0  # of the link port, as the nodes know it
        self._failed = failed
        self._numbering = Numbering(settings.gpus or None)
        self._nodes: list[Node] = []  # that Ray has
        self._agents: dict[str, NodeAgent] = {}  # of the nodes by their ids, from their starts to their ends
        self._agent_of: dict[int, NodeAgent] = {}  # of each GPU
        self._pauses: dict[str, float] = {}  # of each node whose agent has ended, the last one
        self._pausing: set[str] = set()
        self._bridge = Lines(self._told, self._bridge_ended)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""  # of a Ray of our own
        self._ours = ""  # our address as Ray knows it
        self._error: KaasError | None = None
        self._has_nodes = asyncio.Event()  # or the error
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = self._closing = False

    async def start(self) -> None:
        """Join Ray or start one, and have an agent on each node that has tried the kernel.

        Raises:
            UsageError: there is no such Ray, or too few GPUs; a node has other versions, or not the kernel.
            ProcessFailed: there is no process to be had.
        """
        try:
            await self._start_bridge()
            await self._has_nodes.wait()
            if self._error is None:
                host = self.settings.link_host or self._ours
                self.address = host, self.links.listen(addresses.resolve(host))
                await self._start_agents()
            if self._error is not None:
                raise self._error
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

    def unused(self, gpu: int) -> None:
        """Nothing is held for a GPU."""

    async def close(self) -> None:
        """Have all workers end, then the agents, then the bridge, and Ray if it is ours."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))
        self.links.close()
        if self._process is None:
            return
        process, self._process = self._process, None
        if self._has_nodes.is_set() and not (self._started and self._error):
            self._bridge.send({"close": True})
            await asyncio.to_thread(_wait, process, self.settings.kill_after + _GRACE)
        process.kill()  # it starts Ray yet, or there is none any more that would answer it
        await asyncio.to_thread(process.wait)
        self._bridge.close()
        if self._folder:
            remove_folder(self._folder)

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
            "here": all(node.address == self._ours for node in self._nodes),
            "links_refused": self.links.refused,
        }

    def tell_bridge(self, message: Message) -> None:
        """Tell the bridge something."""
        self._bridge.send(message)

    def lost(self, agent: NodeAgent, why: str) -> None:
        """An agent has ended, or its node is gone: and with it its GPUs and its workers."""
        node = agent.node
        if self._agents.get(node.id) is not agent:
            return
        del self._agents[node.id]
        for gpu in agent.gpus:
            del self._agent_of[gpu]
        why = f"node {node.label} is lost: {why}"
        if agent.offered and self.fleet is not None and not self._closing:
            log.warning("%s", why)
            self.fleet.withdraw(agent.gpus, why)
        agent.gone(why)
        self.tell_bridge({"kill": node.id})
        if not self._closing:
            self._pausing.add(node.id)
            self._pauses[node.id] = pause = min(2 * self._pauses.get(node.id, _AGAIN / 2), _LONGEST_PAUSE)
            asyncio.get_running_loop().call_later(pause, self._pause_over, node.id)

    # Starting

    async def _start_bridge(self) -> None:
        settings = self.settings
        self._folder = "" if settings.ray_address else make_folder()
        told = {
            "folder": self._folder,
            "address": settings.ray_address,
            "nodes": settings.ray_nodes,
            "gpus": settings.gpus or 1,
            "kernel": place_of(settings.kernel),
            "kill_after": settings.kill_after,
        }
        try:
            self._process, control = linked.start("kaas.server.engines.ray.bridge", json.dumps(told))
        except OSError as error:
            raise ProcessFailed(f"the bridge to Ray cannot be started: {error.strerror}") from None
        control.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self._bridge, sock=control)

    async def _start_agents(self) -> None:
        numbers = self._numbering.number(self._nodes)
        found, wanted = sum(map(len, numbers.values())), self.settings.gpus or 1
        if found < wanted:
            raise UsageError(
                f"Ray's nodes have {found} GPUs, and {wanted} are wanted (--num-gpus); "
                "`ray start --num-gpus N` says how many a node has"
            )
        agents = [self._new_agent(node, numbers[node.id]) for node in self._nodes if numbers[node.id]]
        coming = [asyncio.create_task(agent.come_up()) for agent in agents]
        try:
            await asyncio.gather(*coming)
        finally:
            for task in coming:
                task.cancel()
        for agent in agents:  # when all have come: the first invocation finds all GPUs
            self._offer(agent)

    # What the bridge tells

    def _told(self, message: Message) -> None:
        if "ready" in message:
            self._ours = message["ready"]["address"]
        elif "nodes" in message:
            self._nodes = [Node(*each) for each in message["nodes"]]
            self._has_nodes.set()
            self._look()
        elif "ended" in message:
            if agent := self._agents.get(message["ended"]):
                self.lost(agent, f"its agent has ended: {message['why']}")
        elif "error" in message:
            self._fail(UsageError(message["error"]))
        else:
            self._fail(ProcessFailed(message["failed"]))

    def _bridge_ended(self) -> None:
        self._fail(ProcessFailed("the process that speaks to Ray has ended, and with it what Ray tells"))

    def _fail(self, error: KaasError) -> None:
        self._error = self._error or error
        if self._started and not self._closing:
            self._closing = True
            self._failed(str(error))
        elif not self._started:
            self._has_nodes.set()
            for agent in list(self._agents.values()):
                self.lost(agent, str(error))

    # Nodes that come and go

    def _look(self) -> None:
        """Have an agent on each node that is there, and on no other."""
        if not self._started or self._closing:
            return
        # One whose agent was lost may be lost itself, before Ray says so, and another come with its address.
        nodes = [node for node in self._nodes if node.id not in self._pausing]
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
        assert self.fleet is not None
        agent.offered = True
        self._pauses.pop(agent.node.id, None)
        log.info("node %s has the GPUs %s", agent.node.label, ", ".join(map(str, agent.gpus)))
        self.fleet.offer(agent.gpus, agent.node.label)


def _wait(process: subprocess.Popen[bytes], limit: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit)
