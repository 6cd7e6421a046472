"""The process that speaks to Ray: `python -m kaas.cluster.bridge DESCRIPTOR SETTINGS`.

On its own, since Ray ends the process that has begun it when its node is lost, and has threads and signal handlers.
With its program it speaks over a socket pair; when that ends, it ends, and so does a Ray that it has started.

    {"start": node, "gpus": number, "module": ..., "orders": {...}} (actor.Actor.run)    {"kill": node}    to it
    {"close": true}    to it
    {"ready": {"address": ours, as Ray knows it, "head": Ray's}} or {"error": text}    first, from it
    {"nodes": [nodes.Node, ...]}    whenever they have changed
    {"ended": node, "why": text}    the agent that was started there has ended, or could not be started
    {"failed": text}    Ray is lost
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from kaas import ROOT, addresses
from kaas.cluster.actor import Actor
from kaas.cluster.lines import Lines, Message
from kaas.cluster.local_ray import LocalRay, remove_folder, stay_on_the_loopback
from kaas.errors import KaasError, UsageError

_EVERY = 1.0
"""Seconds between two looks at the nodes."""
_PATIENCE = 10.0
"""Seconds that Ray's head may be away."""
_GRACE = 5.0
"""Seconds that agents have at the end, beside those that what they have started has to end by itself."""
_LONGEST_TEXT = 300


class _Bridge:
    def __init__(self, ray: Any, settings: dict[str, Any], head: str) -> None:
        self._ray = ray
        self._kill_after = settings["kill_after"]
        self._head = head
        self._program = Lines(self._told, self._program_ended)
        self._over = asyncio.Event()
        self._actors: dict[str, Any] = {}  # by node
        self._running: dict[str, asyncio.Task[None]] = {}
        self._nodes: list[tuple[str, str, str, int]] | None = None

    async def run(self, control: socket.socket, hello: Message) -> None:
        control.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._program, sock=control)
        loop.add_signal_handler(signal.SIGTERM, self._over.set)
        self._program.send(hello)
        watching = [asyncio.create_task(self._watch_nodes()), asyncio.create_task(self._watch_head())]
        await self._over.wait()
        for task in watching:
            task.cancel()
        if self._running:  # their own links have ended, and they end their workers: before Ray ends them
            await asyncio.wait(self._running.values(), timeout=self._kill_after + _GRACE)

    def _told(self, message: Message) -> None:
        if "start" in message:
            node = message["start"]
            run = self._run_agent(node, message["gpus"], message["module"], message["orders"])
            self._running[node] = asyncio.create_task(run)
        elif "kill" in message:
            if actor := self._actors.get(message["kill"]):
                self._ray.kill(actor)
        else:
            self._over.set()

    def _program_ended(self) -> None:
        self._over.set()

    async def _run_agent(self, node: str, gpus: int, module: str, orders: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        why = "it has ended"
        try:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            actor_class = self._ray.remote(Actor)
            actor = actor_class.options(num_cpus=0, num_gpus=gpus, max_restarts=0, scheduling_strategy=there).remote()
            self._actors[node] = actor
            await actor.run.remote(module, orders)
        except Exception as error:  # Ray has very many, its own and those of the agent's code
            why = _first_words(error)
        if self._running.get(node) is asyncio.current_task():  # else another has been started there since
            self._actors.pop(node, None)
            del self._running[node]
            self._program.send({"ended": node, "why": why})

    async def _watch_nodes(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # of Ray, which _watch_head finds if it stays
                found = await asyncio.to_thread(_nodes, self._ray)
                if found != self._nodes:
                    self._nodes = found
                    self._program.send({"nodes": found})
            await asyncio.sleep(_EVERY)

    async def _watch_head(self) -> None:
        """Hold a connection to Ray's head; when that ends, and no other can be made for some time, the head is lost."""
        loop, host, port = asyncio.get_running_loop(), *self._head.rsplit(":", 1)
        last = loop.time()
        while loop.time() - last < _PATIENCE:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_PATIENCE):
                    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                try:
                    while await reader.read(1024):
                        pass
                finally:
                    last = loop.time()
                    writer.close()
            await asyncio.sleep(_EVERY / 2)
        self._program.send({"failed": f"Ray's head at {self._head} has been gone for {_PATIENCE:g} s"})


def _nodes(ray: Any) -> list[tuple[str, str, str, int]]:
    """List the nodes that have GPUs (numbering.Node)."""
    return sorted(
        (node["NodeID"], node["NodeManagerAddress"], _own_name(node), int(node["Resources"].get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    )


def _own_name(node: dict[str, Any]) -> str:
    name = str(node.get("NodeName") or "")
    return "" if name == node["NodeManagerAddress"] else name


def _connect(ray: Any, address: str, settings: dict[str, Any]) -> None:
    """Join Ray, and have the project be on its nodes, or find it there. Raises UsageError if there is no such Ray."""
    options: dict[str, Any] = {}
    if settings["address"]:
        file = settings["ships"]
        folders = [] if Path(file).is_absolute() or not file else [f"!/{Path(file).parts[0]}"]
        options["runtime_env"] = {
            "working_dir": str(ROOT),
            "excludes": ["/*", "!/.", "!/kaas", "!/scripts", "!/*.py", *folders, "__pycache__", ".kernel_cache"],
        }
    if ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        except (OSError, ValueError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"no Ray at --ray-address {address} ({why}): start one, `ray start --head`") from None
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=settings["prints"], **options)
    except Exception as error:  # Ray has very many
        raise UsageError(f"Ray at {address} cannot be joined from this machine: {_first_words(error)}") from None


def _is_loopback(address: str) -> bool:
    try:
        return addresses.is_loopback(address.rpartition(":")[0].strip("[]"))
    except UsageError:
        return False


def _first_words(error: BaseException) -> str:
    """Say in one line what one of Ray's errors says first, or that of the agent's which caused it, the last one."""
    error = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "creation task" in lines[0] else 0][:_LONGEST_TEXT]


def main() -> None:
    """Be the bridge, to the end of the server's end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    settings: dict[str, Any] = json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0")
    address = settings["address"]
    with contextlib.ExitStack() as at_the_end:
        if not address:
            for lock in settings["lock"]:
                os.set_inheritable(lock, False)
            at_the_end.callback(remove_folder, settings["folder"], settings["run"])
            ours = LocalRay(settings["folder"])
            at_the_end.callback(ours.stop)
        elif _is_loopback(address):
            stay_on_the_loopback()
        import ray  # noqa: PLC0415 - it reads its environment when it is imported

        try:
            address = address or ours.start(settings["nodes"], settings["gpus"])
            _connect(ray, address, settings)
        except KaasError as error:
            kind = "error" if isinstance(error, UsageError) else "failed"
            control.sendall(json.dumps({kind: str(error)}).encode() + b"\n")
            return
        at_the_end.callback(ray.shutdown)
        head = ray.get_runtime_context().gcs_address
        hello = {"ready": {"address": ray.util.get_node_ip_address(), "head": head}}

        async def run() -> None:
            await _Bridge(ray, settings, head).run(control, hello)

        asyncio.run(run())


if __name__ == "__main__":
    main()
