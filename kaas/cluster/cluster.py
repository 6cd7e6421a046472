"""A Ray cluster as one program of ours knows it: joined or started, its nodes, and agents on them."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from kaas import addresses, linked
from kaas.cluster.lines import Lines, Message
from kaas.cluster.links import LinkPort
from kaas.cluster.local_ray import make_folder
from kaas.cluster.nodes import Node
from kaas.errors import KaasError, ProcessFailed, UsageError
from kaas.leftovers import Scratch

_GRACE = 20.0
"""Seconds that the bridge, and a Ray that it has started, have to end, beside those of what the agents have started."""


class Joining(NamedTuple):
    """Which Ray, and how its nodes reach this machine.

    Attributes:
        address: of one that runs; "" to have one started here, which ends with the program.
        nodes: of one that is started: so many, simulated if they are more than one.
        gpus: of one that is started: what CUDA calls the GPUs that they share.
        ships: a file of the user's, as nodes find it (nodes.place_of).
        link_host: our address for the nodes; "" for that which Ray knows.
        link_port: where agents and workers connect; 0 for any free port.
        kill_after: seconds that what agents have started has to end by itself.
        prints: whether what is printed on the nodes, and Ray's own words, are printed here.
    """

    address: str = ""
    nodes: int = 1
    gpus: tuple[str, ...] = ()
    ships: str = ""
    link_host: str = ""
    link_port: int = 0
    kill_after: float = 10.0
    prints: bool = True


class Cluster:
    """From `start` to `close`. Needs a running asyncio loop.

    Args:
        joining: which Ray.
        changed: called when there are other nodes than before, after the start.
        ended: called with a node's id, and why, when the agent that was started there has ended.
        lost: called once, with why, when Ray is lost after the start.
    """

    def __init__(
        self,
        joining: Joining,
        changed: Callable[[], None],
        ended: Callable[[str, str], None],
        lost: Callable[[KaasError], None],
    ) -> None:
        self.nodes: list[Node] = []  # that Ray has
        self.links = LinkPort()
        self.address = "", 0  # of the link port, as the nodes know it
        self.ours = ""  # our address as Ray knows it
        self.head = ""  # Ray's own, at which others join it
        self.error: KaasError | None = None
        self._joining = joining
        self._changed = changed
        self._ended = ended
        self._lost = lost
        self._bridge = Lines(self._told, self._bridge_ended)
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Scratch | None = None  # of a Ray of our own
        self._known = asyncio.Event()  # the nodes, or the error
        self._started = self._closing = False

    async def start(self) -> None:
        """Join Ray or start one; its nodes are known then, and the link port is open.

        Raises:
            UsageError: there is no such Ray, or no such address of this machine.
            ProcessFailed: there is no process to be had.
        """
        await self._start_bridge()
        await self._known.wait()
        if self.error is not None:
            raise self.error
        host = self._joining.link_host or self.ours
        self.address = host, self.links.listen(addresses.resolve(host, "--link-host"), self._joining.link_port)
        self._started = True

    def start_agent(
        self, node: Node, gpus: int, module: str, protocol: Callable[[], asyncio.BaseProtocol], **orders: Any
    ) -> str:
        """Have an agent be started on a node; return the secret by which its link is known.

        Args:
            node: where.
            gpus: how many it holds there.
            module: its own (actor.Actor.run).
            protocol: makes what its link talks to.
            orders: what it is told beside the link's place and secret; by Ray, which keeps it.
        """
        host, port = self.address
        secret = self.links.expect(protocol)
        told = {"host": host, "port": port, "secret": secret} | orders
        self._bridge.send({"start": node.id, "gpus": gpus, "module": module, "orders": told})
        return secret

    def kill_agent(self, node: Node) -> None:
        """Have the agent on a node be ended by Ray, if it is still there."""
        self._bridge.send({"kill": node.id})

    async def close(self) -> None:
        """Have the bridge end, and Ray if it is ours; agents are to end first, or with their links now."""
        self._closing = True
        if self._process is None:
            return
        self.links.close()
        process, self._process = self._process, None
        if self._known.is_set() and not (self._started and self.error):
            self._bridge.send({"close": True})
            await asyncio.to_thread(_wait, process, self._joining.kill_after + _GRACE)
        process.kill()  # it starts Ray yet, or there is none any more that would answer it
        await asyncio.to_thread(process.wait)
        self._bridge.close()
        if self._scratch is not None:
            self._scratch.close()

    async def _start_bridge(self) -> None:
        joining = self._joining
        told, lock = joining._asdict(), []
        if not joining.address:
            self._scratch = scratch = make_folder()
            lock = scratch.descriptors()
            told |= {"folder": str(scratch.folder), "run": scratch.run, "lock": lock}
        try:
            self._process, control = linked.start("kaas.cluster.bridge", json.dumps(told), inherits=lock)
        except OSError as error:
            if self._scratch is not None:
                self._scratch.close()
            raise ProcessFailed(f"the bridge to Ray cannot be started: {error.strerror}") from None
        control.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self._bridge, sock=control)

    def _told(self, message: Message) -> None:
        if "ready" in message:
            self.ours, self.head = message["ready"]["address"], message["ready"]["head"]
        elif "nodes" in message:
            self.nodes = [Node(*each) for each in message["nodes"]]
            self._known.set()
            if self._started:
                self._changed()
        elif "ended" in message:
            self._ended(message["ended"], message["why"])
        elif "error" in message:
            self._fail(UsageError(message["error"]))
        else:
            self._fail(ProcessFailed(message["failed"]))

    def _bridge_ended(self) -> None:
        self._fail(ProcessFailed("the process that speaks to Ray has ended, and with it what Ray tells"))

    def _fail(self, error: KaasError) -> None:
        is_first, self.error = self.error is None, self.error or error
        self._known.set()
        if self._started and is_first and not self._closing:
            self._lost(error)


def _wait(process: subprocess.Popen[bytes], limit: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit)
