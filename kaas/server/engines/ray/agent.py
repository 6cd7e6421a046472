"""The agent of a node: starts workers there, by the same fork server as on the server's machine, until its link ends.

It runs in an actor of Ray, but all that it is told, and all that it says, goes over its own connection to the server:

    {"spawn": worker, "secret": ..., "config": {...}}    {"kill": worker}    {"close": true}    to it
    {"prove": [process, ...]}    to it: say how many of these are clients of MPS
    {"versions": {...}, "place": of its shared memory, "devices": [...], "kernel": path or null}    first, from it
    {"preloaded": seconds} or {"error": text}    then
    {"ended": worker, "code": exit code, minus a signal or null, "why": text}    of each worker
    {"mps": text}    what was proved

Each worker's link is a connection that the agent opens to the same port, saying the worker's secret.
"""

import asyncio
import os
import time
from typing import Any

from kaas import ROOT, transport
from kaas.addresses import socket_addresses
from kaas.children import ForkServer
from kaas.cluster import facts
from kaas.cluster.lines import Lines, Message
from kaas.cluster.links import connect, connect_agent
from kaas.errors import ProcessFailed
from kaas.server.engines.local import preloaded
from kaas.server.engines.ray.guard import Guard


async def serve(orders: dict[str, Any]) -> None:
    """Be the agent, to the end of its link (cluster.actor).

    Args:
        orders: `host`, `port` and `secret` of the link, the `kernel`, and `kill_after` (children.ForkServer); `mps`:
            null, or how to become root, to hold the GPUs under MPS meanwhile.
    """
    await _Agent(orders).run()


class _Agent:
    def __init__(self, orders: dict[str, Any]) -> None:
        self._orders = orders
        self._port = socket_addresses(orders["host"], orders["port"])[0]
        self._kernel = ROOT / orders["kernel"]
        self._link = Lines(self._told, self._link_ended)
        self._over = asyncio.Event()
        self._at_once = False
        self._guard: Guard | None = None
        self._proving: asyncio.Task[None] | None = None
        self._workers: dict[int, int] = {}  # the server's numbers, by the fork server's
        self._connecting: dict[int, asyncio.Task[None]] = {}  # by the server's numbers
        config = preloaded(self._kernel) if self._kernel.is_file() else {}
        self._forkserver = ForkServer(
            "kaas.server.worker", config, self._ended, orders["kill_after"], kill_orphans=True
        )

    async def run(self) -> None:
        link = await connect_agent(self._orders)
        await asyncio.get_running_loop().create_connection(lambda: self._link, sock=link)
        here = self._kernel.is_file()
        devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        hello = {"versions": facts.versions(), "place": transport.place(), "devices": devices}
        self._link.send(hello | {"kernel": str(self._kernel) if here else None})
        guard = None
        try:
            if here and self._orders["mps"] is not None:
                guard = self._guard = Guard(self._orders["mps"])
                await guard.hold(devices)
            if here:
                self._link.send({"preloaded": await self._forkserver.start()})
        except ProcessFailed as error:
            self._link.send({"error": str(error)})
        await self._over.wait()
        for task in self._connecting.values():
            task.cancel()
        if self._at_once:
            self._forkserver.abort()
        await self._forkserver.close()
        if guard is not None and (trouble := await guard.release()):
            print(trouble, flush=True)  # noqa: T201 - Ray brings it to the server's log
        self._link.close()

    def _told(self, message: Message) -> None:
        if "spawn" in message:
            number = message["spawn"]
            self._connecting[number] = asyncio.create_task(self._spawn(number, message["secret"], message["config"]))
        elif "kill" in message:
            if task := self._connecting.get(message["kill"]):
                task.cancel()
            for child, number in self._workers.items():
                if number == message["kill"]:
                    self._forkserver.kill(child)
        elif "prove" in message:
            self._proving = asyncio.create_task(self._prove(message["prove"]))
        else:
            self._at_once = "abort" in message
            self._over.set()

    def _link_ended(self) -> None:
        self._over.set()

    async def _spawn(self, number: int, secret: str, config: dict[str, Any]) -> None:
        try:
            link = await connect(self._port, secret)
            link.setblocking(True)  # for the worker, whose the open file is, too
            self._workers[self._forkserver.spawn_on(link, config | {"spawned": time.monotonic()})] = number
        except OSError as error:  # a TimeoutError is one
            why = error.strerror or "no answer"
            self._say_ended(number, None, f"no link to the server, or no process, on its node: {why}")
        except asyncio.CancelledError:
            self._say_ended(number, None, "killed before it was started")
        finally:
            del self._connecting[number]

    async def _prove(self, pids: list[int]) -> None:
        if self._guard is not None:
            self._link.send({"mps": await self._guard.prove(pids)})

    def _ended(self, child: int, code: int | None) -> None:
        self._say_ended(self._workers.pop(child), code, self._forkserver.failure if code is None else "")

    def _say_ended(self, number: int, code: int | None, why: str) -> None:
        self._link.send({"ended": number, "code": code, "why": why})
