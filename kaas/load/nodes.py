"""The client processes of a run on the nodes of a Ray cluster, as the load generator sees them.

An agent on each node (load.agent) has its part of them, and sends their rows along. A step is one order to all. The
rows are brought to the run's clock, and written to its file as they come. Where a node is lost, its rows stay that had
come; the requests of its clients that were running are rows of their own, as of clients that were killed; and the other
nodes have as many more from then on.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaas import addresses
from kaas.client import Connection, split_address
from kaas.clock import Clock
from kaas.cluster.cluster import Joining
from kaas.cluster.lines import Message
from kaas.cluster.members import Member, Members
from kaas.cluster.nodes import place_of
from kaas.errors import ProcessFailed, ResultsError, UsageError
from kaas.load.crew import killed_after
from kaas.results import Outcome, RowWriter
from kaas.row import encode_row, make_row

_AGENT_LIMIT = 60.0
_STATUS_LIMIT = 5.0
_OWN = {"KAAS_CLOCK", "KAAS_PYTHON", "KAAS_GPU_STATE", "KAAS_SCRATCH", "KAAS_RUN", "KAAS_ADDRESS"}
"""Variables of this machine only."""


class _Part:
    """What one node has of the clients: `asked` of it, and what it last told."""

    def __init__(self) -> None:
        self.asked: Message = {}
        self.started = False
        self.there = self.ready = self.running = 0
        self.sending: list[int] = []
        self.disorderly: Counter[str] = Counter()


class NodesCrew:
    """All client processes of one run; like `Crew`, but for what is of one machine only.

    Args:
        joining: which Ray; without an address, the server's.
        module: path of the client module.
        server: the server's address; None if the clients need none.
        most: how many clients there may be at once.
        told: `input` and `backoff`, for the clients.
        requests: the file that the rows go to, once it is there.
        clock: the run's.
        problem: takes a line about what went wrong.
    """

    def __init__(
        self,
        joining: Joining,
        module: Path,
        *,
        server: str | None,
        most: int,
        told: dict[str, Any],
        requests: Path,
        clock: Clock,
        problem: Callable[[str], None],
    ) -> None:
        self._joining = joining._replace(ships=place_of(module))
        self._server = server
        self._orders = told | {"client": place_of(module), "most": most, "kill_after": joining.kill_after}
        self._requests = requests
        self._clock = clock
        self._problem = problem
        self._members: Members | None = None
        self._parts: dict[str, _Part] = {}  # by the ids of the nodes that are there
        self._ended_at: dict[int, float] = {}  # of each client, when its latest request did, by the run's clock
        self._have = self._begin = 0
        self._finishing = False
        self._notes: list[str] = []
        self._disorderly: Counter[str] = Counter()  # see Crew; of no node that is there
        self.failure = ""  # why the run cannot go on
        self.changed = asyncio.Event()

    async def start(self) -> None:
        """Have an agent on each node import the client module.

        Raises:
            UsageError: there is no Ray to be joined; a node is set up otherwise, or cannot reach the server.
            ProcessFailed: there is no process to be had, or the module cannot be imported.
        """
        joining = self._joining
        if not joining.address:
            joining = joining._replace(address=await asyncio.to_thread(self._ray_of_server))
        self._members = members = Members(
            joining, "kaas.load.agent", told=self._told, lost=self._lost, say=self._problem, limit=_AGENT_LIMIT
        )
        await members.start()
        nodes = members.nodes()
        is_ours = self._server is None or addresses.is_loopback(split_address(self._server)[0], "--server")
        if self._server and is_ours and any(node.address != members.cluster.ours for node in nodes):
            raise UsageError(f"--server {self._server} is this machine's only: start it with --host, for all nodes")
        environment = {
            name: value
            for name, value in os.environ.items()
            if (name.startswith("KAAS_") and name not in _OWN) or name == "SEGMENTS"
        } | ({"KAAS_ADDRESS": self._server} if self._server is not None else {})
        orders = self._orders | {"environment": environment, "stride": len(nodes)}
        self._parts = {node.id: _Part() for node in nodes}
        await asyncio.gather(*(members.add(node, orders | {"first": first}) for first, node in enumerate(nodes)))
        await self._until(lambda parts: all(part.started for part in parts))

    def have(self, number: int) -> None:
        """Have clients started until `number` are there, prepared or not."""
        self._have = number
        self._order()

    async def prepared(self) -> None:
        """Wait until all that are wanted are prepared.

        Raises:
            ProcessFailed: one cannot be.
        """
        await self._until(lambda parts: all(part.ready >= part.asked.get("have", 0) for part in parts))

    def begin(self, number: int) -> None:
        """Have `number` clients run: let prepared ones begin, or those that began last end after their requests."""
        self._begin = number
        self._order()

    @property
    def running(self) -> int:
        """How many clients send requests."""
        return sum(part.running for part in self._parts.values())

    @property
    def disorderly(self) -> Counter[str]:
        """What kept clients from ending in order, and how many of them."""
        return sum((part.disorderly for part in self._parts.values()), self._disorderly)

    def finish(self) -> None:
        """Let all end, after the requests that they are in."""
        self._finishing = True
        self._tell({"finish": True})

    async def wait(self, limit: float) -> str:
        """Wait until all have ended, `limit` seconds at most; then those that have not are killed, and it is said."""
        try:
            async with asyncio.timeout(limit):
                while there := sum(part.there for part in self._parts.values()):
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            self._problem(f"{there} clients did not end within {limit:g} s and are killed")
            self._disorderly[killed_after(limit)] += there
        return ""

    def kill(self) -> None:
        """Kill those that are still there."""
        self._finishing = True
        self._tell({"kill": True})

    async def close(self) -> None:
        """Wait until nothing of it is left; the last rows have come then."""
        if self._members is None:
            return
        there = list(self._members.there.values())
        await self._members.close()
        self._notes += [self._note(member) for member in there]

    def facts(self) -> dict[str, str]:
        """Say for the description of the run where the clients were, and how well the nodes' clocks were known."""
        return {"Load nodes": "; ".join(self._notes)}

    def _ray_of_server(self) -> str:
        if self._server is None:
            raise UsageError("--engine ray without a server needs a --ray-address")
        with Connection(self._server) as connection:
            address = connection.status(_STATUS_LIMIT)["engine"].get("ray", "")
        if not address:
            raise UsageError("the server is not one with --engine ray: give no --engine, or a --ray-address")
        return str(address)

    async def _until(self, holds: Callable[[list[_Part]], bool]) -> None:
        while not self.failure and not holds(list(self._parts.values())):
            self.changed.clear()
            await self.changed.wait()
        if self.failure:
            raise ProcessFailed(self.failure)

    def _order(self) -> None:
        """Tell each node its share, if that is another than before."""
        assert self._members is not None
        for index, (each, part) in enumerate(self._parts.items()):
            have, begin = (_share(number, index, len(self._parts)) for number in (self._have, self._begin))
            wanted = {"have": have, "begin": begin, "elsewhere": self._begin - begin}
            if wanted != part.asked and each in self._members.there:
                part.asked = wanted
                self._members.there[each].tell(wanted)

    def _tell(self, message: Message) -> None:
        if self._members is not None:
            for member in self._members.there.values():
                member.tell(message)

    def _told(self, member: Member, message: Message) -> None:
        part = self._parts[member.node.id]
        if "rows" in message:
            self._add(member, message["rows"])
            return
        state = message["state"]
        begun = set(state["sending"]) - set(part.sending)
        self._ended_at |= dict.fromkeys(begun - self._ended_at.keys(), self._clock.now())
        part.started = True
        part.there, part.ready = state["there"], state["ready"]
        part.running, part.sending = state["running"], state["sending"]
        part.disorderly = Counter(state["disorderly"])
        if state["failure"] and not self.failure:
            self.failure = f"node {member.node.label}: {state['failure']}"
        self.changed.set()

    def _add(self, member: Member, rows: list[str]) -> None:
        """Write rows to the run's file, by the run's clock."""
        lines = []
        for line in rows:
            timestamp, inner, outer, setup, cold, copy, rest = line.split(",", 6)
            begun = self._clock.at(member.offset.ours(float(timestamp)))
            self._ended_at[int(copy)] = begun + float(outer) / 1000
            lines.append(f"{begun!r},{inner},{outer},{setup},{cold},{copy},{rest}\n")
        self._write("".join(lines).encode(errors="backslashreplace"))

    def _write(self, lines: bytes) -> None:
        try:
            with contextlib.closing(RowWriter(self._requests)) as rows:
                rows.write(lines)
        except ResultsError as error:
            self.failure = self.failure or str(error)

    def _lost(self, member: Member) -> None:
        """A node is gone, and with it its clients."""
        node, part = member.node.label, self._parts.pop(member.node.id)
        running = self.running + part.running
        self._disorderly += part.disorderly
        now = self._clock.now()
        what = f"node {node} is lost with its {part.there} clients: {member.why}"
        self._notes.append(f"{self._note(member)}, lost at {now:.3f}")
        if part.there:
            self._problem(what)
        for copy in part.sending:
            begun = self._ended_at.get(copy, now)
            why = f"node {node} was lost, and its client"
            outcome = Outcome((now - begun) * 1000, 0.0, 0.0, False, "failed", error=why)
            self._write(encode_row(make_row(begun, copy, running, outcome)))
        if not part.started:
            self.failure = self.failure or f"node {node}: {member.why}"
        elif not self._parts:
            self.failure = self.failure or what
        elif not self._finishing:
            self._order()
        self.changed.set()

    def _note(self, member: Member) -> str:
        return f"{member.node.label}: {member.offset}"


def _share(number: int, index: int, parts: int) -> int:
    """Tell how many of a number the part of that index has."""
    return number // parts + (index < number % parts)
