"""The control daemon of NVIDIA's Multi-Process Service: found, started, asked and ended.

A daemon is known by its pipe folder, the value of CUDA_MPS_PIPE_DIRECTORY.
Source: NVIDIA, Multi-Process Service, https://docs.nvidia.com/deploy/mps
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bare_kaas  # noqa: F401
import gpu_record

from kaas import processes, programs
from kaas.errors import GpuError
from kaas.programs import LATE, Answer

PROGRAM = "nvidia-cuda-mps-control"
DEFAULT_PIPE = "/tmp/nvidia-mps"  # noqa: S108 - the daemon's own
_PID_FILE = f"{PROGRAM}.pid"
_CALL_LIMIT = 30.0
_DAEMON_LIMIT = 20.0
_SERVER_LIMIT = 90.0
"""Seconds in which a server is ready: a fresh one initialises every GPU, which takes some for each."""
_LISTED_LIMIT = 20.0
_CLIENTS_LIMIT = 60.0
_CLOCK_SLACK = 1.0
_NOT_KNOWN = re.compile(r"unknown|unrecogni[sz]ed|invalid|not (a )?(valid|supported)|usage", re.IGNORECASE)


def users_pipe() -> str:
    """Find a control daemon that is running already; return its pipe folder, or nothing.

    Raises:
        GpuError: there is one, and it does not answer to us.
    """
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or DEFAULT_PIPE
    if answers(Path(pipe)):
        return pipe
    if daemon_process(Path(pipe)):
        raise GpuError(f"the MPS control daemon at {pipe} runs, but not for this user: run with MPS=off")
    return ""


def start(folder: str) -> str:
    """Start a control daemon with its pipe and log in `folder`; return the pipe's folder.

    Raises:
        GpuError: it does not come up.
    """
    pipe, log = Path(folder, "pipe"), Path(folder, "log")
    pipe.mkdir()
    log.mkdir()
    env = _environment(pipe) | {"CUDA_MPS_LOG_DIRECTORY": str(log)}
    # The daemon sees all GPUs, whatever a batch system made of this variable; workers are each given one by its UUID.
    env.pop("CUDA_VISIBLE_DEVICES", None)
    answer = programs.run(PROGRAM, "-d", limit=_CALL_LIMIT, env=env)
    if not within(_DAEMON_LIMIT if answer.code == 0 else 0.0, lambda: answers(pipe)):
        raise GpuError(f"the MPS control daemon did not start: {answer.said or 'it does not say why'}")
    return str(pipe)


def start_server(pipe: Path) -> None:
    """Have the daemon start its server now and wait until that is ready, if the daemon knows how.

    Until then CUDA calls fail with 807 (MPS server not ready), and a daemon starts its server for the first of them.

    Raises:
        GpuError: the server does not become ready.
    """
    if not servers(pipe):
        answer = control(pipe, f"start_server -uid {os.getuid()}", limit=_SERVER_LIMIT)
        if answer.code not in {0, LATE} or _NOT_KNOWN.search(answer.said):
            return  # an old daemon: it starts one with the first client
        if not within(_LISTED_LIMIT, lambda: bool(servers(pipe))):
            return  # it did not obey, and may yet for a client
    status = ""

    def is_ready() -> bool:
        nonlocal status
        found = [control(pipe, f"get_server_status {server}") for server in servers(pipe)]
        status = " ".join(answer.said for answer in found)
        return not re.search(r"initiali[sz]ing|fault", status, re.IGNORECASE)

    if not within(_SERVER_LIMIT, is_ready):
        raise GpuError(f"the MPS server is not ready after {_SERVER_LIMIT:g} s ({status}): run with MPS=off")


def end(folder: Path, logs: Path | None) -> None:
    """Let the daemon that we started go, once its clients have; keep its logs, and remove its folder.

    Raises:
        GpuError: it does not end.
    """
    pipe = folder / "pipe"
    within(_CLIENTS_LIMIT, lambda: not clients(pipe))
    if answers(pipe):
        control(pipe, "quit -t 10")

    def is_gone() -> bool:
        return not daemon_process(pipe) and not answers(pipe)

    if not within(_DAEMON_LIMIT, is_gone):
        process = daemon_process(pipe)
        if process:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        if not within(_DAEMON_LIMIT, is_gone):
            raise GpuError(f"the MPS control daemon (process {process or 'unknown'}) of {pipe} does not end")
    if logs is not None and logs.is_dir():
        for log in (folder / "log").glob("*.log"):
            with contextlib.suppress(OSError):
                shutil.copy(log, logs / f"mps-{log.name}")
    shutil.rmtree(folder, ignore_errors=True)


def answers(pipe: Path) -> bool:
    """Tell whether there is a daemon that obeys us."""
    return control(pipe, "get_server_list").code == 0


def servers(pipe: Path) -> list[str]:
    """List the daemon's servers by their process numbers."""
    answer = control(pipe, "get_server_list")
    return _numbers(answer.out) if answer.code == 0 else []


def clients(pipe: Path) -> list[str]:
    """List the processes that are clients of the daemon's servers."""
    return [client for server in servers(pipe) for client in _numbers(control(pipe, f"get_client_list {server}").out)]


def daemon_process(pipe: Path) -> int:
    """Tell the daemon's process number; 0 if it does not run.

    Its file outlives it, and a reboot; the number may be anybody's by then. So the process must bear the daemon's name
    and be no younger than the file. Without /proc nothing is known of it: only Linux has MPS.
    """
    if sys.platform != "linux":
        return 0
    try:
        path = pipe / _PID_FILE
        written, process = path.stat().st_mtime, int(path.read_text())
        names = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        started = processes.seconds_from_boot(process)
    except (OSError, ValueError, IndexError):
        return 0
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    is_named = any(os.path.basename(name) == PROGRAM.encode() for name in names)  # noqa: PTH119 - bytes
    return process if is_named and time.time() - age <= written + _CLOCK_SLACK else 0


def control(pipe: Path, order: str, limit: float = _CALL_LIMIT) -> Answer:
    """Give an order to the daemon, which has `limit` seconds for it; it fails if there is none."""
    return programs.run(PROGRAM, limit=limit, env=_environment(pipe), told=f"{order}\n")


def within(limit: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, for `limit` seconds; tell if it does."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _environment(pipe: Path) -> dict[str, str]:
    found = programs.environment() | {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    if gpu_record.MPS_FOLDER.fullmatch(str(pipe.parent)):
        # A site may export 3 for a daemon of its own; that protocol does not have the orders given here.
        found.pop("CUDA_MPS_PROTOCOL_VERSION", None)
    return found


def _numbers(text: str) -> list[str]:
    """Find the lines that are process numbers, whatever else is said."""
    return [line.strip() for line in text.splitlines() if line.strip().isdecimal()]
