"""Agents of one kind (agent.py) on the nodes of a cluster, as their program sees them: up, told things, lost."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from kaas.cluster import facts
from kaas.cluster.cluster import Cluster, Joining
from kaas.cluster.lines import Lines, Message
from kaas.cluster.nodes import Node
from kaas.cluster.offset import Offset
from kaas.errors import KaasError, ProcessFailed, UsageError

_ROUNDS = 10
"""Round trips in which a clock is measured at first."""
_EVERY = 2.0
"""Seconds between two later ones."""
_GRACE = 5.0
"""Seconds that an agent has to end, beside those of what it has started."""


class Member:
    """One agent.

    Args:
        node: where it is.
        told: called with what it says for its program.
        ended: called when its link has ended, with why.
    """

    def __init__(
        self, node: Node, told: Callable[["Member", Message], None], ended: Callable[["Member"], None]
    ) -> None:
        self.node = node
        self.offset = Offset()
        self.link = Lines(self._told, self._link_ended)
        self.over = asyncio.Event()
        self.why = "its agent's connection has ended"
        self._on_told = told
        self._on_ended = ended
        self._versions: dict[str, str] | None = None
        self._answer = asyncio.Event()
        self._asked = 0
        self._sent = 0.0

    async def greet(self) -> None:
        """Wait for it, and measure its clock.

        Raises:
            UsageError: it is set up otherwise than this machine.
            ProcessFailed: it has ended.
        """
        await self._next_answer()
        if what := facts.difference(facts.versions(), self._versions or {}):
            raise UsageError(f"node {self.node.label} is set up otherwise: {what}")
        for _ in range(_ROUNDS):
            self._ask()
            await self._next_answer()

    async def keep_time(self) -> None:
        """Measure its clock again and again."""
        while True:
            await asyncio.sleep(_EVERY)
            self._ask()

    def tell(self, message: Message) -> None:
        """Tell it something."""
        self.link.send(message)

    def gone(self, why: str) -> None:
        """Ray says that it has ended; over its link nothing more comes, either."""
        if not self.over.is_set():
            self.why = why
            if self.link.is_open:
                self.link.close()
            else:  # it has not come
                self._link_ended()

    def _ask(self) -> None:
        self._asked += 1
        self._sent = time.monotonic()
        self.link.send({"clock": self._asked})

    async def _next_answer(self) -> None:
        await self._answer.wait()
        self._answer.clear()
        if self.over.is_set():
            raise ProcessFailed(f"node {self.node.label}: {self.why}")

    def _told(self, message: Message) -> None:
        if "clock" in message:
            if message["clock"] == self._asked:
                self.offset.add(self._sent, message["monotonic"], time.monotonic())
                self._answer.set()
        elif "versions" in message:
            self._versions = message["versions"]
            self._answer.set()
        elif "error" in message:
            self.why = message["error"]
        else:
            self._on_told(self, message)

    def _link_ended(self) -> None:
        self.over.set()
        self._answer.set()
        self._on_ended(self)


class Members:
    """All agents of one program.

    Args:
        joining: which Ray.
        module: the agents' own.
        told: called with an agent and what it says for its program.
        lost: called with an agent that was up and has ended before it was told to; why is in it.
        say: takes a line for the user.
        limit: seconds that an agent may take to come up.
    """

    def __init__(
        self,
        joining: Joining,
        module: str,
        *,
        told: Callable[[Member, Message], None],
        lost: Callable[[Member], None],
        say: Callable[[str], None],
        limit: float,
    ) -> None:
        self.cluster = Cluster(joining, lambda: None, self._agent_ended, self._ray_lost)
        self.there: dict[str, Member] = {}  # those that are up, by their nodes' ids
        self._coming: dict[str, Member] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._module = module
        self._told = told
        self._lost = lost
        self._say = say
        self._limit = limit
        self._kill_after = joining.kill_after

    async def start(self) -> None:
        """Join Ray, or start one; raises what Cluster.start does."""
        await self.cluster.start()

    def nodes(self) -> list[Node]:
        """Give the nodes that Ray has, in a stable order.

        Raises:
            UsageError: there is none.
        """
        if not self.cluster.nodes:
            raise UsageError("Ray has no nodes with GPUs: `ray start --num-gpus N` says how many a node has")
        return sorted(self.cluster.nodes, key=lambda node: (node.address, node.label))

    async def add(self, node: Node, orders: dict[str, Any]) -> Member:
        """Have an agent on a node, measure its clock, and give it its orders.

        Raises:
            UsageError: the node is set up otherwise than this machine.
            ProcessFailed: it does not come up.
        """
        member = self._coming[node.id] = Member(node, self._on_told, self._link_ended)
        secret = self.cluster.start_agent(node, 0, self._module, lambda: member.link)
        try:
            async with asyncio.timeout(self._limit):
                await member.greet()
        except TimeoutError:
            self.cluster.kill_agent(node)
            member.gone("")
            raise ProcessFailed(f"node {node.label}: no agent within {self._limit:g} s") from None
        except KaasError:
            member.gone("")
            raise
        finally:
            self.cluster.links.forget(secret)
            del self._coming[node.id]
        self.there[node.id] = member
        self._keeping[node.id] = asyncio.create_task(member.keep_time())
        member.tell({"orders": orders})
        return member

    async def close(self) -> None:
        """Have all agents end, and leave the cluster."""
        members = list(self.there.values())
        self.there.clear()
        for member in self._coming.values():
            member.gone("its program ends")
        for member in members:
            member.tell({"close": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._kill_after + _GRACE):
                for member in members:
                    await member.over.wait()
        for task in self._keeping.values():
            task.cancel()
        await self.cluster.close()

    def _on_told(self, member: Member, message: Message) -> None:
        if "say" in message:
            self._say(f"node {member.node.label}: {message['say']}")
        else:
            self._told(member, message)

    def _agent_ended(self, node: str, why: str) -> None:
        if member := self._coming.get(node) or self.there.get(node):
            member.gone(f"its agent has ended: {why}")

    def _link_ended(self, member: Member) -> None:
        if task := self._keeping.pop(member.node.id, None):
            task.cancel()
        if self.there.get(member.node.id) is member:
            del self.there[member.node.id]
            self._lost(member)

    def _ray_lost(self, error: KaasError) -> None:
        self._say(str(error))
