"""What a run found on this machine's GPUs, on disk as long as it is not put back; and the lock of runs with GPUs.

Both are files in a folder that all users may write, and the guard may be root: nothing that somebody else put there is
followed, written to or believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bare_kaas  # noqa: F401

from kaas import locks
from kaas.errors import GpuError
from kaas.nvidia import MODES

FOLDER = Path(os.environ.get("KAAS_GPU_STATE") or "/var/tmp")  # noqa: S108 - of the machine, and kept over a reboot
RECORD = FOLDER / "kaas-gpus.json"
LOCK = FOLDER / "kaas-gpus.lock"
MPS_FOLDER = re.compile(r"/tmp/kaas-mps\.[A-Za-z0-9_]{8}")  # noqa: S108
"""The folder of the control daemon that a run started."""
_UUID = re.compile(r"GPU-[\w-]+")
_LONGEST = 100_000


class Found(NamedTuple):
    """The compute mode of each GPU by its UUID; the folder of the daemon that was started, if one was; which boot."""

    modes: dict[str, str]
    daemon: str
    boot: str


def is_there() -> bool:
    """Tell whether there is a record, sound or not."""
    return os.path.lexists(RECORD)


def trouble() -> str:
    """Say what is wrong with the folder; nothing if it will do."""
    if os.access(FOLDER, os.W_OK | os.X_OK) and FOLDER.is_dir():
        return ""
    wrong = "cannot be written" if FOLDER.is_dir() else "is no folder"
    return f"{FOLDER} {wrong}: what is found on the GPUs is kept there; make it so, or set KAAS_GPU_STATE to another"


def read() -> Found | None:
    """Read the record; None if there is none.

    Raises:
        GpuError: it is damaged, or not from us.
    """
    try:
        descriptor = os.open(RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(f"cannot be read ({error.strerror})") from None
    with os.fdopen(descriptor, encoding="utf-8") as file:
        _check_own(descriptor)
        try:
            state = json.loads(file.read(_LONGEST))
            boot = state.pop("boot", "")
            sound = (
                set(state) == {"modes", "daemon"}
                and all(_UUID.fullmatch(uuid) and mode in MODES.values() for uuid, mode in state["modes"].items())
                and (not state["daemon"] or MPS_FOLDER.fullmatch(state["daemon"]))
                and isinstance(boot, str)
            )
        except (ValueError, AttributeError, TypeError):
            sound = False
    if not sound:
        raise _unusable("is damaged")
    return Found(state["modes"], state["daemon"], boot)


def write(found: Found) -> None:
    """Write the record, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = RECORD.with_suffix(".part")
    part.unlink(missing_ok=True)  # of a run that was killed, or a trap
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(found._asdict(), file)
            file.flush()
            os.fsync(descriptor)
        part.rename(RECORD)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def forget() -> None:
    """Remove the record."""
    RECORD.unlink()


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold the one lock of this machine.

    Raises:
        GpuError: another run has it, or it cannot be had.
    """
    try:
        descriptor = _open_lock()
    except OSError as error:
        raise GpuError(trouble() or f"{LOCK}, the lock of runs with GPUs: {error.strerror}; remove it") from None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise GpuError(f"{LOCK} is no lock of a run with GPUs: remove it")
        locked = locks.lock(descriptor)
        is_taken, owner = locked is False, os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()
        if locked is None:  # a file system without locks: what stands in the file tells who has it
            code, owner = locks.claim(descriptor, LOCK, os.getpid())
            is_taken = code != 0
        if is_taken:
            raise GpuError(f"another run is using the GPUs of this machine ({owner or 'it has begun just now'})")
        if locked:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getppid()} of user {os.geteuid()}\n".encode(), 0)
        with locks.touching(descriptor):
            yield
    finally:
        os.close(descriptor)


def _open_lock() -> int:
    options = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(FileNotFoundError):
        return os.open(LOCK, options)  # not with O_CREAT: Linux refuses that for another user's file
    with contextlib.suppress(FileExistsError):  # somebody else was faster
        descriptor = os.open(LOCK, options | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(descriptor, 0o666)  # other users' runs must be able to take it, whatever our umask
        return descriptor
    return os.open(LOCK, options)


def _check_own(descriptor: int) -> None:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise _unusable("is no file")
    if about.st_uid not in {os.geteuid(), 0}:
        raise _unusable(f"is user {about.st_uid}'s")


def _unusable(what: str) -> GpuError:
    return GpuError(
        f"{RECORD}, which says how an earlier run found the GPUs, {what}, and nothing was changed: see "
        "nvidia-smi -q -d COMPUTE, put the modes right, and remove it"
    )
