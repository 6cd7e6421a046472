"""What Linux grants the control group of this process, by either version of cgroups; elsewhere nothing is limited.

A limit may stand in the group itself or in any above it, and the least counts. Source: the kernel's documentation,
admin-guide/cgroup-v2 (`cpu.max`, `cpu.stat`, `memory.max`), scheduler/sched-bwc and admin-guide/cgroup-v1/memory.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_SELF = Path("/proc/self")
_NO_LIMIT = 2**60
"""From here on a number of bytes is version 1's way to say that there is no limit."""


def cpu_quota(process: Path = _SELF) -> float | None:
    """Give the cores' worth of CPU time that this process may use with those of its group; None if all."""
    quotas = [quota for folder in _folders("cpu", process) if (quota := _quota(folder))]
    return min(quotas, default=None)


def cores() -> float:
    """Give the cores' worth of CPU time that this process and those beside it may use: the least of mask and quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(allowed), cpu_quota() or math.inf)


def memory_limit(process: Path = _SELF) -> int | None:
    """Give the bytes of memory that this process may use with those of its group; None if all."""
    files = ("memory.max", "memory.limit_in_bytes")
    found = [_numbers(folder / name) for folder in _folders("memory", process) for name in files]
    return min((limit[0] for limit in found if limit and limit[0] < _NO_LIMIT), default=None)


def throttled(process: Path = _SELF) -> tuple[int, int]:
    """Give in how many periods a quota has made this process's group wait, and of how many; of the group hit most."""
    counts = [(0, 0)]
    for folder in _folders("cpu", process):
        with contextlib.suppress(OSError, ValueError):
            lines = (line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            stat = {name: int(value) for name, value in lines}
            counts.append((stat.get("nr_throttled", 0), stat.get("nr_periods", 0)))
    return max(counts)


def _quota(folder: Path) -> float | None:
    if found := _numbers(folder / "cpu.max"):
        quota, period = found
    else:
        quota, period = (next(iter(_numbers(folder / f"cpu.cfs_{name}_us")), -1) for name in ("quota", "period"))
    return quota / period if quota > 0 and period > 0 else None


def _numbers(path: Path) -> list[int]:
    """Read the numbers of a file; none if it is not there, or says `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _folders(controller: str, process: Path) -> Iterator[Path]:
    """Give the folder of the group that this controller has put the process in, and of each group above."""
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = [line.split(" - ") for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for number, controllers, group in groups:
        is_v2 = number == "0"
        if not is_v2 and controller not in controllers.split(","):
            continue
        for own, kind in mounts:
            root, mount = own.split()[3:5]
            system, _, options = kind.split(None, 2)
            if system == "cgroup2" if is_v2 else system == "cgroup" and controller in options.split(","):
                top = Path(mount)
                # In a container, what is mounted may be its own group, whatever that is called outside.
                inside = group.removeprefix(root).lstrip("/")
                folder = top / inside if (top / inside).is_dir() and ".." not in inside else top
                yield from [folder, *(above for above in folder.parents if above.is_relative_to(top))]
