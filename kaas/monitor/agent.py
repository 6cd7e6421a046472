"""The monitor's agent on a node (cluster.agent): takes samples there as the monitor does on its own machine.

{"status": {...} or null}    to it, for CPU time: how the server stands, as far as this node's GPUs go
{"samples": [[...], ...]}    from it, stamped by its own `time.monotonic`
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

from kaas import nvidia
from kaas.cluster.agent import Agent
from kaas.cluster.lines import Message
from kaas.errors import ConnectionFailed, UsageError
from kaas.monitor.cpu import cpu_monitor
from kaas.monitor.nvidia_smi import NvidiaSmi
from kaas.monitor.nvml import EnergyCounters
from kaas.samples import Sample

CPU_INTERVAL_MS, GPU_INTERVAL_MS = 250, 100
"""Milliseconds between two samples, unless told otherwise: CPU time is counted in steps of 10."""


async def serve(at: dict[str, Any]) -> None:
    """Be the agent, to the end of its link (cluster.actor)."""
    await _Agent().run(at)


class _Agent(Agent):
    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._status: dict[str, Any] | None = None
        self._asked = asyncio.Event()

    async def work(self, orders: dict[str, Any]) -> None:
        """Take samples.

        Args:
            orders: `gpus`, the numbers of this node's; `devices`, what CUDA calls them; `node`, what it is called;
                `source`, what to measure, "" for what there is; `interval_ms`, 0 for the source's own.

        Raises:
            UsageError: there is no nvidia-smi, or it does not work.
        """
        source = orders["source"] or ("nvidia-smi" if shutil.which("nvidia-smi") else "cpu")
        with contextlib.ExitStack() as stack:
            if source == "cpu":
                take: Callable[[], Iterable[Sample]] = cpu_monitor(self._latest, time.monotonic).take
            else:
                take = await asyncio.to_thread(self._take_of_nvidia_smi, orders, stack)
            over = asyncio.create_task(self.over.wait())
            while not self.over.is_set():
                if source == "cpu":
                    asked = asyncio.create_task(self._asked.wait())
                    await asyncio.wait((over, asked), return_when=asyncio.FIRST_COMPLETED)
                    asked.cancel()
                    self._asked.clear()
                taken = await asyncio.to_thread(take)
                if samples := [sample for sample in taken if source != "cpu" or sample.gpu in orders["gpus"]]:
                    self.link.send({"samples": list(_numbered(samples, orders, source))})
            over.cancel()

    def told(self, message: Message) -> None:
        """Take how the server stands: that is when a sample of CPU time is due."""
        self._status = message["status"]
        self._asked.set()

    def _latest(self) -> dict[str, Any]:
        if self._status is None:
            raise ConnectionFailed("there is no server now")
        return self._status

    def _take_of_nvidia_smi(
        self, orders: dict[str, Any], stack: contextlib.ExitStack
    ) -> Callable[[], Iterable[Sample]]:
        found, answer = nvidia.found()
        names, note = nvidia.given(",".join(orders["devices"]) or None, found)
        if len(names) < len(orders["gpus"]):
            raise UsageError(f"no samples of its GPUs: {note or answer.said or 'nvidia-smi does not list them'}")
        uuids = names[: len(orders["gpus"])]
        interval_ms = orders["interval_ms"] or GPU_INTERVAL_MS
        gpus = stack.enter_context(contextlib.closing(NvidiaSmi(interval_ms, uuids, self._say_in, time.monotonic)))
        counters = stack.enter_context(contextlib.closing(EnergyCounters(self._say_in)))
        return lambda: counters.add_to(gpus.take())

    def _say_in(self, text: str) -> None:
        """Say a line from the thread that samples."""
        self._loop.call_soon_threadsafe(self.say, text)


def _numbered(samples: Iterable[Sample], orders: dict[str, Any], source: str) -> Iterable[Sample]:
    """Give this node's GPUs the numbers that they have in the run."""
    for sample in samples:
        gpu = sample.gpu if source == "cpu" else orders["gpus"][sample.gpu]
        yield sample._replace(gpu=gpu, node=orders["node"])
