"""Utilization of virtual GPUs on a laptop: the CPU time of their workers, which the server's status names."""

import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from kaas.client import Connection
from kaas.errors import ConnectionFailed
from kaas.monitor.samples import Sample


class CpuMonitor:
    """Samples the workers of one server.

    Args:
        status: asks the server how it stands.
        cpu_seconds: tells the CPU time that a process has used, None if it is gone.
        clock: tells the time, in seconds since the epoch.
        cores: how many cores there are for the workers.
    """

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        cpu_seconds: Callable[[int], float | None],
        clock: Callable[[], float],
        cores: int,
    ) -> None:
        self._status = status
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._cores = cores
        self._used: dict[int, float] = {}  # of each worker's process, seconds at the last sample
        self._last: float | None = None

    def take(self) -> list[Sample]:
        """Take a sample of every GPU; none while there is no server. The first sample has no utilization.

        A virtual GPU of M workers can use M cores, or all that there are if these are fewer: that is its 100 %.
        """
        try:
            status = self._status()
        except ConnectionFailed:
            self._last = None
            return []
        now = self._clock()
        used = {worker["pid"]: self._cpu_seconds(worker["pid"]) for worker in status["workers"] if worker["pid"]}
        busy = [0.0] * status["gpus"]
        for worker in status["workers"]:
            seconds = used.get(worker["pid"])
            if seconds is not None:
                # A process not seen before has been started since: all its time is of this interval.
                busy[worker["gpu"]] += seconds - self._used.get(worker["pid"], 0.0)
        last, self._last = self._last, now
        self._used = {pid: seconds for pid, seconds in used.items() if seconds is not None}
        available = (now - last) * min(status["workers_per_gpu"], self._cores) if last is not None else 0.0
        return [
            Sample(
                timestamp=now,
                gpu=gpu,
                bus_id=f"virtual:{gpu}",
                utilization_pct=round(min(max(100 * seconds / available, 0.0), 100.0), 1) if available > 0 else None,
            )
            for gpu, seconds in enumerate(busy)
        ]


def cpu_monitor(connection: Connection) -> CpuMonitor:
    """Make a monitor of the server behind a connection."""
    return CpuMonitor(lambda: connection.status(timeout=5.0), _cpu_seconds, time.time, _cores())


def _cpu_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def _cores() -> int:
    """Count the cores that this process, and so the server beside it, may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
