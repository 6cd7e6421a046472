"""What machine and what software a run was made with, so that it can be understood a year later."""

import contextlib
import os
import platform
import sys
import time
from pathlib import Path

import psutil

from kaas import ROOT, cgroup, emulator, nvidia, programs

_LIBRARIES = ("numpy", "numba", "numba-cuda", "llvmlite", "uvloop", "psutil", "pandas", "matplotlib")
_LIMIT = 10.0
_CPUS = Path("/sys/devices/system/cpu")


def describe() -> dict[str, str]:
    """Gather `name: value` facts; what cannot be found out is said to be unknown, or left out."""
    facts = {
        "Host": " on ".join(filter(None, (emulator.mark(), platform.node()))),
        "OS": platform.platform(),
        "CPU": f"{_processor()}, {psutil.cpu_count(logical=False) or 'unknown'} cores, {os.cpu_count()} threads",
        "CPU usable": _usable(),
        "CPU governor": _governor(),
        "CPU turbo": _turbo(),
        "CPU load before the run": ", ".join(f"{load:.2f}" for load in os.getloadavg()) + " (of 1, 5 and 15 minutes)",
        "Memory": _memory(),
        "GPUs": _gpus() or "none found",
        "Python": f"{platform.python_version()} ({sys.executable})",
    }
    from importlib import metadata  # noqa: PLC0415 - the monitor needs none of it, and it takes long

    for library in _LIBRARIES:
        try:
            facts[f"Library {library}"] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    facts["Git revision"] = revision()
    facts["Time zone"] = f"{time.strftime('%Z')} (UTC{time.strftime('%z')})"
    return facts


class CpuUse:
    """Whose the CPU time of the machine is, from when this is made on.

    Args:
        root: the process from which all those descend that are ours.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._begun = self._times()
        self._throttled = cgroup.throttled()

    def facts(self) -> dict[str, str]:
        """Say what part of the CPU time was neither ours nor idle, and how often a quota made us wait."""
        total, busy, ours = (now - before for now, before in zip(self._times(), self._begun, strict=True))
        waits, periods = (now - before for now, before in zip(cgroup.throttled(), self._throttled, strict=True))
        facts = {}
        if total > 0:
            facts["CPU time of others"] = f"{100 * max(0.0, busy - ours) / total:.1f} % (neither of this run nor idle)"
        if waits:
            facts["CPU quota"] = f"the processes were made to wait in {waits} of {periods} periods"
        return facts

    def _times(self) -> tuple[float, float, float]:
        """Give the seconds of all cores, those in which they were not idle, and those that were ours."""
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # they are in `user`, too
        ours = 0.0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    ours += cpu_seconds(process)
        return total, total - times.idle - getattr(times, "iowait", 0.0), ours


def cpu_seconds(process: psutil.Process) -> float:
    """Give the CPU time of a process and of those that it started and that have ended.

    Raises:
        psutil.Error: it is gone.
    """
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _processor() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable() -> str:
    quota = cgroup.cpu_quota()
    return f"{cgroup.cores():g} threads' worth" + (f" (a quota of {quota:g} is set)" if quota else "")


def _memory() -> str:
    total, limit = psutil.virtual_memory().total, cgroup.memory_limit()
    return f"{total / 2**30:.1f} GiB" + (f", limited to {limit / 2**30:.1f} GiB" if limit and limit < total else "")


def _governor() -> str:
    files = _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted(set(filter(None, map(_word, files))))) or "unknown"


def _turbo() -> str:
    is_off = {"0": "on", "1": "off"}.get(_word(_CPUS / "intel_pstate" / "no_turbo"))
    return is_off or {"0": "off", "1": "on"}.get(_word(_CPUS / "cpufreq" / "boost"), "unknown")


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _gpus() -> str:
    return "; ".join(f"{gpu.number}: {gpu.name}, {gpu.driver}" for gpu in nvidia.found()[0])


def revision() -> str:
    """Give the revision of this project, and whether it was changed since; "unknown" without git."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not head:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}{', with uncommitted changes' if changed else ''}"


def _output(*command: str) -> str:
    """Run a program and return what it prints; nothing if it is not there, fails or takes too long."""
    answer = programs.run(*command, limit=_LIMIT)
    return answer.out.strip() if answer.code == 0 else ""
