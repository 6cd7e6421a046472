"""What machine and what software a run was made with, so that it can be understood a year later."""

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import psutil

from kaas import ROOT, nvidia, programs

_LIBRARIES = ("numpy", "numba", "numba-cuda", "llvmlite", "uvloop", "psutil", "pandas", "matplotlib")
_LIMIT = 10.0


def describe() -> dict[str, str]:
    """Gather `name: value` facts; what cannot be found out is said to be unknown, or left out."""
    facts = {
        "Host": platform.node(),
        "OS": platform.platform(),
        "CPU": f"{_processor()}, {psutil.cpu_count(logical=False) or 'unknown'} cores, {os.cpu_count()} threads",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "GPUs": _gpus() or "none found",
        "Python": f"{platform.python_version()} ({sys.executable})",
    }
    for library in _LIBRARIES:
        try:
            facts[f"Library {library}"] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts["Git revision"] = _revision()
    facts["Time zone"] = f"{time.strftime('%Z')} (UTC{time.strftime('%z')})"
    return facts


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


def _gpus() -> str:
    return "; ".join(f"{gpu.number}: {gpu.name}, {gpu.driver}" for gpu in nvidia.found()[0])


def _revision() -> str:
    revision = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not revision:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{revision}{', with uncommitted changes' if changed else ''}"


def _output(*command: str) -> str:
    """Run a program and return what it prints; nothing if it is not there, fails or takes too long."""
    answer = programs.run(*command, limit=_LIMIT)
    return answer.out.strip() if answer.code == 0 else ""
