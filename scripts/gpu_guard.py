"""Holds the GPUs of this machine for one run of autoscale.sh, and leaves them as they were found.

    gpu_guard.py hold --ready FILE --logs FOLDER UUID...   set the GPUs to exclusive mode and see that MPS runs
    gpu_guard.py restore                                   put back what a run left that was killed with its guard
    gpu_guard.py proof PID...                              say how many of these processes are clients of MPS

`hold` writes the daemon's pipe folder to FILE when all is ready, and restores when it gets SIGTERM or when its parent
process is gone. Nothing is changed before what was found is on disk: should even this process be killed, the next start
or `restore` puts it back. One lock for the whole machine sees that runs do not get in each other's way.

Only the standard library is used. SUDO in the environment says how to become root.
Source: NVIDIA, Multi-Process Service, https://docs.nvidia.com/deploy/mps
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STATE_FOLDER = Path(os.environ.get("KAAS_GPU_STATE") or "/var/tmp")  # noqa: S108 - of the machine, and kept over a reboot
STATE = STATE_FOLDER / "kaas-gpus.json"
LOCK = STATE_FOLDER / "kaas-gpus.lock"
MODES = {
    "Default": "DEFAULT",
    "Exclusive_Thread": "EXCLUSIVE_THREAD",
    "Exclusive_Process": "EXCLUSIVE_PROCESS",
    "Prohibited": "PROHIBITED",
}
"""What nvidia-smi prints, and what its -c takes."""
MPS_FOLDER = re.compile(r"/tmp/kaas-mps\.[A-Za-z0-9_]{8}")  # noqa: S108
CALL_LIMIT = 30.0
DAEMON_LIMIT = 20.0
CLIENTS_LIMIT = 60.0
SUDO_REFRESH = 60.0


class GuardError(Exception):
    """What cannot be done, and what to do about it, in one line."""


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hold_parser = commands.add_parser("hold")
    hold_parser.add_argument("--ready", type=Path, required=True)
    hold_parser.add_argument("--logs", type=Path, required=True)
    hold_parser.add_argument("uuids", nargs="+")
    commands.add_parser("restore")
    commands.add_parser("proof").add_argument("pids", nargs="*")
    arguments = parser.parse_args()
    if arguments.command == "proof":
        return prove(arguments.pids)
    # A Ctrl-C is the script's business; it may come twice, and nothing here may be left half done.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        with machine_lock():
            if arguments.command == "restore":
                if not put_back_leftovers():
                    print("Nothing to put back")
            else:
                hold(arguments.uuids, arguments.ready, arguments.logs)
    except GuardError as error:
        print(f"GPUs: {error}", file=sys.stderr)
        return 1
    return 0


def hold(uuids: list[str], ready: Path, logs: Path) -> None:
    """Prepare the GPUs, wait until told to end, and restore."""
    ended = Ended()
    put_back_leftovers()
    modes = {uuid: compute_mode(uuid) for uuid in uuids}
    pipe = users_daemon()
    # A short path: the daemon's socket in it may have 107 characters.
    folder = "" if pipe else tempfile.mkdtemp(prefix="kaas-mps.", dir="/tmp")
    remember(modes, folder)
    try:
        for uuid in uuids:
            set_mode(uuid, "EXCLUSIVE_PROCESS")
        if pipe:
            print(f"MPS: the control daemon at {pipe} was running and is left running")
        else:
            pipe = start_daemon(folder)
        part = ready.with_name(f"{ready.name}.part")
        part.write_text(pipe)
        part.rename(ready)
        ended.wait()
    finally:
        restore(modes, folder, logs)


class Ended:
    """Whether this process has been told to end, or its parent is gone."""

    def __init__(self) -> None:
        self._told = False
        self._parent = os.getppid()
        signal.signal(signal.SIGTERM, self._tell)

    def wait(self) -> None:
        """Wait for it; keep sudo's permission alive meanwhile."""
        refreshed = time.monotonic()
        while not self._told and os.getppid() == self._parent:
            time.sleep(0.2)
            if os.environ.get("SUDO") == "sudo" and time.monotonic() - refreshed > SUDO_REFRESH:
                refreshed = time.monotonic()
                call("sudo", "-n", "-v")

    def _tell(self, *_: object) -> None:
        self._told = True


# What was found


def put_back_leftovers() -> bool:
    """Put back what an earlier run left; tell if there was anything."""
    if not STATE.exists():
        return False
    try:
        state = json.loads(STATE.read_text())
        sound = (
            set(state) == {"modes", "daemon"}
            and all(mode in MODES.values() for mode in state["modes"].values())
            and (not state["daemon"] or MPS_FOLDER.fullmatch(state["daemon"]))
            and STATE.stat().st_uid in {os.geteuid(), 0}
        )
    except (OSError, ValueError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise GuardError(
            f"{STATE}, which says how an earlier run found the GPUs, is damaged or another user's, and nothing was "
            "changed: see nvidia-smi -q -d COMPUTE, put the modes right, and remove it"
        )
    print("Putting the GPUs back as an earlier run, which was killed, had found them")
    restore(state["modes"], state["daemon"], None)
    return True


def remember(modes: dict[str, str], daemon: str) -> None:
    """Write down what was found, whole or not at all."""
    part = STATE.with_suffix(".part")
    with part.open("w") as file:
        json.dump({"modes": modes, "daemon": daemon}, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(STATE)


def restore(modes: dict[str, str], daemon: str, logs: Path | None) -> None:
    """Put back what was found, and forget it once that is so.

    Raises:
        GuardError: something could not be put back; the rest is, and it stays written down.
    """
    problems: list[str] = []
    folder = Path(daemon)
    if daemon and folder.is_dir() and not folder.is_symlink():
        with collected(problems):
            quit_daemon(folder, logs)
    for uuid, mode in modes.items():
        with collected(problems):
            set_mode(uuid, mode)
    if problems:
        raise GuardError(
            f"not everything is as it was found: {'; '.join(problems)}. ./autoscale.sh --restore tries again; {STATE} "
            "says what was"
        )
    STATE.unlink()


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold the one lock of this machine, or fail."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR)
    except FileNotFoundError:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o666)  # other users' runs must see it, whatever our umask
    except OSError as error:
        raise GuardError(f"{LOCK}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise GuardError(f"another run is using the GPUs of this machine ({owner})") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getppid()} of user {os.geteuid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Note a failure and go on."""
    try:
        yield
    except GuardError as error:
        problems.append(str(error))


# Compute modes


def compute_mode(uuid: str) -> str:
    """Ask for a GPU's compute mode, in the words of nvidia-smi -c."""
    code, said = call("nvidia-smi", "-i", uuid, "--query-gpu=compute_mode", "--format=csv,noheader")
    mode = said.strip().splitlines()[-1] if said.strip() else ""
    if code != 0 or mode not in MODES:
        raise GuardError(f"GPU {uuid}: its compute mode is {mode!r}, which cannot be put back: run with MPS=off")
    return MODES[mode]


def set_mode(uuid: str, mode: str) -> None:
    """Set a GPU's compute mode, if it is another, and see that it is set."""
    if compute_mode(uuid) == mode:
        return
    _, said = call(
        *os.environ.get("SUDO", "").split(), shutil.which("nvidia-smi") or "nvidia-smi", "-i", uuid, "-c", mode
    )
    if compute_mode(uuid) != mode:
        raise GuardError(
            f"GPU {uuid} cannot be set to {mode}: {' '.join(said.split()) or 'nvidia-smi does not say why'}"
        )


# The control daemon


def users_daemon() -> str:
    """Find a control daemon that is running already; return its pipe folder.

    Raises:
        GuardError: there is one, and it does not answer to us.
    """
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # noqa: S108 - the daemon's own default
    if control(Path(pipe), "get_server_list")[0] == 0:
        return pipe
    if daemon_process(Path(pipe)):
        raise GuardError(f"the MPS control daemon at {pipe} runs, but not for this user: run with MPS=off")
    return ""


def start_daemon(folder: str) -> str:
    """Start a control daemon with its pipe and log in `folder`; return the pipe's folder."""
    pipe, log = Path(folder, "pipe"), Path(folder, "log")
    pipe.mkdir()
    log.mkdir()
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    # The daemon sees all GPUs, whatever a batch system made of this variable; workers are each given one by its UUID.
    _, said = call("nvidia-cuda-mps-control", "-d", environment=own, without="CUDA_VISIBLE_DEVICES")
    if not within(DAEMON_LIMIT, lambda: control(pipe, "get_server_list")[0] == 0):
        raise GuardError(f"the MPS control daemon did not start: {' '.join(said.split()) or 'it does not say why'}")
    return str(pipe)


def quit_daemon(folder: Path, logs: Path | None) -> None:
    """Let the daemon that we started go, once its clients have; keep its logs."""
    pipe = folder / "pipe"
    within(CLIENTS_LIMIT, lambda: not clients(pipe))
    process = daemon_process(pipe)
    if control(pipe, "get_server_list")[0] == 0:
        control(pipe, "quit -t 10")
    if process and not within(DAEMON_LIMIT, lambda: not daemon_process(pipe)):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
        if not within(DAEMON_LIMIT, lambda: not daemon_process(pipe)):
            raise GuardError(f"the MPS control daemon (process {process}) does not end")
    if logs is not None and logs.is_dir():
        for log in (folder / "log").glob("*.log"):
            with contextlib.suppress(OSError):
                shutil.copy(log, logs / f"mps-{log.name}")
    shutil.rmtree(folder, ignore_errors=True)


def prove(pids: list[str]) -> int:
    """Say how many of these processes are clients of the daemon in the environment; exit code 1 if some are not."""
    pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    known = set(clients(pipe))
    count = sum(pid in known for pid in pids)
    print(f"{count} of {len(pids)} workers are clients of MPS server {' '.join(servers(pipe)) or '(none)'}")
    return 0 if count == len(pids) else 1


def servers(pipe: Path) -> list[str]:
    """List the daemon's servers."""
    code, said = control(pipe, "get_server_list")
    return said.split() if code == 0 else []


def clients(pipe: Path) -> list[str]:
    """List the processes that are clients of the daemon's servers."""
    return [client for server in servers(pipe) for client in control(pipe, f"get_client_list {server}")[1].split()]


def daemon_process(pipe: Path) -> int:
    """Tell the daemon's process number; 0 if it does not run."""
    try:
        process = int((pipe / "nvidia-cuda-mps-control.pid").read_text())
        os.kill(process, 0)
    except PermissionError:
        return -1  # somebody else's
    except (OSError, ValueError):
        return 0
    return process


def control(pipe: Path, order: str) -> tuple[int, str]:
    """Give an order to the daemon whose pipe is in a folder; it fails if there is none."""
    return call("nvidia-cuda-mps-control", environment={"CUDA_MPS_PIPE_DIRECTORY": str(pipe)}, told=f"{order}\n")


# Small things


def call(
    *command: str, environment: dict[str, str] | None = None, told: str = "", without: str = ""
) -> tuple[int, str]:
    """Run a program with a limit; return its exit code and what it said."""
    own = {name: value for name, value in os.environ.items() if name != without} | (environment or {})
    with tempfile.TemporaryFile("w+") as said:
        try:
            # Not through a pipe: a daemon that is started would hold it open.
            done = subprocess.run(
                command, env=own, input=told, stdout=said, stderr=said, text=True, timeout=CALL_LIMIT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, str(error)
        said.seek(0)
        return done.returncode, said.read()


def within(limit: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, with a limit; tell if it does."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


if __name__ == "__main__":
    sys.exit(main())
