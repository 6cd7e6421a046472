"""Holds the GPUs of this machine for one run of autoscale.sh, and leaves them as they were found.

    gpu_guard.py hold [--supervised PID] --ready FILE --logs FOLDER UUID...
                                set the GPUs to exclusive mode and see that MPS runs
    gpu_guard.py restore        put back what a run left that was killed with its guard
    gpu_guard.py proof PID...   say how many of these processes are clients of MPS

`hold` writes the daemon's pipe folder to FILE when all is ready, and restores when it gets SIGTERM or when the process
PID (by default its parent) is gone. Nothing is changed before what was found is on disk: should even this process be
killed, the next start or `restore` puts it back. One lock for the whole machine sees that runs do not get in each
other's way.

Only the standard library is used. SUDO in the environment says how to become root, KAAS_GPU_STATE where to write down
what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bare_kaas  # noqa: F401
import gpu_record
import mps
from gpu_record import Found

from kaas import locks, nvidia, programs, supervision
from kaas.errors import GpuError
from kaas.programs import Answer

SUDO_LIMIT = 30.0
SUDO_REFRESH = 60.0
_WAS_SET = re.compile(r"Set compute mode to|Compute mode is already set to")


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    hold_parser = commands.add_parser("hold")
    hold_parser.add_argument("--ready", type=Path, required=True)
    hold_parser.add_argument("--logs", type=Path, required=True)
    hold_parser.add_argument("--supervised", type=int, metavar="PID", default=os.getppid())
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
        if arguments.command == "hold":
            ended = Ended(arguments.supervised)
            with gpu_record.machine_lock():
                hold(arguments.uuids, arguments.ready, arguments.logs, ended)
        elif gpu_record.is_there():
            with gpu_record.machine_lock():
                put_back_leftovers()
        else:
            say("Nothing to put back")
    except GpuError as error:
        print(f"GPUs: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"GPUs: {described(error)}", file=sys.stderr)
        return 1
    return 0


def hold(uuids: list[str], ready: Path, logs: Path, ended: Ended) -> None:
    """Prepare the GPUs, wait until told to end, and restore."""
    put_back_leftovers()
    if ended:
        return
    found = compute_modes()
    for uuid in uuids:
        if not found.get(uuid):
            raise GpuError(f"nvidia-smi tells no compute mode of GPU {uuid} to put back later: run with MPS=off")
    pipe = mps.users_pipe()
    # A short path: the daemon's socket in it may have 107 characters.
    folder = "" if pipe else tempfile.mkdtemp(prefix="kaas-mps.", dir="/tmp")
    record = Found({uuid: found[uuid] for uuid in uuids}, folder, locks.boot_id())
    try:
        gpu_record.write(record)
    except OSError:
        if folder:
            Path(folder).rmdir()
        raise
    problems: list[str] = []
    try:
        with collected(problems):
            set_modes(dict.fromkeys(uuids, "EXCLUSIVE_PROCESS"), found)
            if pipe:
                say(f"MPS: the control daemon at {pipe} was running and is left running")
            else:
                pipe = mps.start(folder)
            mps.start_server(Path(pipe))
            part = ready.with_name(f"{ready.name}.part")
            part.write_text(pipe)
            part.rename(ready)
            ended.wait()
    finally:
        with collected(problems):
            restore(record, logs)
    if problems:
        raise GpuError("; ".join(problems))


class Ended:
    """Whether this process has been told to end, or the one in charge of it is gone."""

    def __init__(self, supervisor: int) -> None:
        self._told = False
        self._supervisor = supervisor
        signal.signal(signal.SIGTERM, self._tell)
        supervision.end_with_parent()

    def __bool__(self) -> bool:
        return self._told or supervision.is_gone(self._supervisor)

    def wait(self) -> None:
        """Wait for it; keep sudo's permission alive meanwhile."""
        refreshed = time.monotonic()
        while not self:
            time.sleep(0.2)
            if os.environ.get("SUDO") == "sudo" and time.monotonic() - refreshed > SUDO_REFRESH:
                refreshed = time.monotonic()
                programs.run("sudo", "-n", "-v", limit=SUDO_LIMIT)

    def _tell(self, *_: object) -> None:
        self._told = True


def put_back_leftovers() -> None:
    """Put back what an earlier run left, if it left anything."""
    found = gpu_record.read()
    if found is None:
        return
    say("Putting the GPUs back as an earlier run, which was killed, had found them")
    now = locks.boot_id()
    if now and found.boot and now != found.boot:
        say("The machine was started again since, which has reset the compute modes: none is set")
        found = found._replace(modes={})
    restore(found, None)


def restore(found: Found, logs: Path | None) -> None:
    """Put back what was found, and forget it once that is so.

    Raises:
        GpuError: something could not be put back; the rest is, and it stays written down.
    """
    problems: list[str] = []
    folder = Path(found.daemon)
    if found.daemon and is_own_folder(folder):
        with collected(problems):
            mps.end(folder, logs)
    if found.modes:
        with collected(problems):
            set_modes(found.modes, compute_modes())
    if problems:
        raise GpuError(
            f"not everything is as it was found: {'; '.join(problems)}. ./autoscale.sh --restore tries again; "
            f"{gpu_record.RECORD} says what was"
        )
    gpu_record.forget()


def compute_modes() -> dict[str, str]:
    """Ask for the compute mode of each GPU by its UUID, in the words of nvidia-smi -c; empty if it tells none."""
    return {gpu.uuid: gpu.mode for gpu in nvidia.found()[0]}


def set_modes(wanted: dict[str, str], found: dict[str, str]) -> None:
    """Set GPUs' compute modes where `found` has others, and see that they are set.

    A mode that cannot be read is set all the same. A GPU that nvidia-smi lists no more has been taken out of the
    machine: there is nothing to set.

    Raises:
        GpuError: some could not be set; the others are.
    """
    answers: dict[str, Answer] = {}
    for uuid, mode in wanted.items():
        if found and uuid not in found:
            say(f"GPU {uuid} is not in this machine any more: its mode {mode} is forgotten")
        elif found.get(uuid) != mode:
            answers[uuid] = set_mode(uuid, mode)
    if not answers:
        return
    found = compute_modes()
    problems = []
    for uuid, answer in answers.items():
        mode, now = wanted[uuid], found.get(uuid)
        if now == mode:
            continue
        if not now and (answer.code == 0 or _WAS_SET.search(answer.said)):
            say(f"GPU {uuid} was set to {mode}; nvidia-smi does not tell its mode, so see that it is right")
        else:
            problems.append(f"GPU {uuid} cannot be set to {mode}: {answer.said or 'nvidia-smi does not say why'}")
    if problems:
        raise GpuError("; ".join(problems))


def set_mode(uuid: str, mode: str) -> Answer:
    """Tell nvidia-smi to set a compute mode."""
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    return programs.run(*os.environ.get("SUDO", "").split(), program, "-i", uuid, "-c", mode, limit=nvidia.PATIENCE)


def is_own_folder(path: Path) -> bool:
    """Tell whether a folder is there and ours, and not what somebody else has put in its place."""
    with contextlib.suppress(OSError):
        about = path.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
    return False


def prove(pids: list[str]) -> int:
    """Say how many of these processes are clients of the daemon in the environment; exit code 1 if some are not."""
    pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    known = set(mps.clients(pipe))
    count = sum(pid in known for pid in pids)
    say(f"{count} of {len(pids)} workers are clients of MPS server {' '.join(mps.servers(pipe)) or '(none)'}")
    return 0 if count == len(pids) else 1


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Note a failure and go on."""
    try:
        yield
    except GpuError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(described(error))


def described(error: OSError) -> str:
    """Say what the system refused, and where."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def say(text: str) -> None:
    """Tell it at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
