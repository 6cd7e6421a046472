"""Utilization of virtual GPUs on a laptop: the CPU time of their workers, which the server's status names."""

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import psutil

from kaas import cgroup, machine
from kaas.errors import ConnectionFailed, UsageError
from kaas.samples import Sample


class CpuMonitor:
    """Samples the workers of one server.

    Args:
        status: asks the server how it stands.
        cpu_seconds: tells the CPU time that each of some processes has used, with what it started; not of those gone.
        clock: tells the time, in seconds since the epoch.
        cores: how many cores there are for the workers; a quota need not be a whole number of them.
    """

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        cpu_seconds: Callable[[Collection[int]], dict[int, float]],
        clock: Callable[[], float],
        cores: float,
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

        Raises:
            UsageError: the workers are on other machines.
        """
        try:
            status = self._status()
        except ConnectionFailed:
            self._last = None
            return []
        if not status.get("engine", {}).get("here", True):
            raise UsageError("the server has workers on other machines, and this looks at one: say --engine ray")
        nodes = {one["gpu"]: one.get("node", "") for one in status.get("by_gpu", [])}
        now = self._clock()
        used = self._cpu_seconds([worker["pid"] for worker in status["workers"] if worker["pid"]])
        busy = [0.0] * status["gpus"]
        for worker in status["workers"]:
            seconds = used.get(worker["pid"])
            if seconds is not None:
                # A process not seen before has been started since: all its time is of this interval. It becomes less
                # when a program that it started is left to another process.
                busy[worker["gpu"]] += max(0.0, seconds - self._used.get(worker["pid"], 0.0))
        last, self._last = self._last, now
        self._used = used
        available = (now - last) * min(status["workers_per_gpu"], self._cores) if last is not None else 0.0
        return [
            Sample(
                timestamp=now,
                gpu=gpu,
                bus_id=f"virtual:{gpu}",
                utilization_pct=round(min(100 * seconds / available, 100.0), 1) if available > 0 else None,
                node=nodes.get(gpu, ""),
            )
            for gpu, seconds in enumerate(busy)
        ]


def cpu_monitor(status: Callable[[], dict[str, Any]], clock: Callable[[], float]) -> CpuMonitor:
    """Make a monitor of a server's workers on this machine, with all its cores."""
    return CpuMonitor(status, _cpu_seconds, clock, cgroup.cores())


def _cpu_seconds(pids: Collection[int]) -> dict[int, float]:
    """Add up the CPU time of each worker and of all that descends from it, ended or not."""
    used, parents = {}, set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(pid)
            used[pid] = machine.cpu_seconds(worker)
            parents.add(worker.ppid())
    # Workers have one parent, so all that descends from them is found in one look at the processes of the machine.
    parent_of: dict[int, int] = {}
    seconds_of: dict[int, float] = {}
    for parent in parents:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(parent).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    parent_of[process.pid] = process.ppid()
                    seconds_of[process.pid] = machine.cpu_seconds(process)
    for pid, seconds in seconds_of.items():
        above = parent_of[pid]
        while above not in used and above in parent_of:
            above = parent_of[above]
        if pid not in used and above in used:
            used[above] += seconds
    return used
