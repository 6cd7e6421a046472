"""What machine and what software a run was made with, so that it can be understood a year later."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from kaas import ROOT

_LIBRARIES = ("numpy", "numba", "numba-cuda", "llvmlite", "uvloop", "psutil", "pandas", "matplotlib")


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
    facts["Git revision"] = revision()
    facts["Time zone"] = f"{time.strftime('%Z')} (UTC{time.strftime('%z')})"
    return facts


def environment() -> dict[str, str]:
    """Give the environment for a program that does not talk to the server: without the token."""
    return {name: value for name, value in os.environ.items() if name != "KAAS_TOKEN"}


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
    lines = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()
    return "; ".join(f"{index}: {line}" for index, line in enumerate(lines))


def revision() -> str:
    """Give the revision of this project, and whether it was changed since; "unknown" without git."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not head:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}{', with uncommitted changes' if changed else ''}"


def _output(program: str, *arguments: str) -> str:
    """Run a program and return what it prints; nothing if it is not there, fails or takes too long."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], env=environment(), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
