"""Who has a thing for itself: locks that end with their holder, and who that is.

`flock` is the truth on one machine: the lock of an open file ends when the last process that has it open has ended,
however that was. A file system may have no locks, though (Lustre, or NFS without its daemon), or keep them from other
machines. So the holder is written into the file, and touches it: another machine's is alive while it does. Where there
are no locks, one of this machine is alive while its process is: that process, and not another with its number.

    python -m kaas.locks claim DESCRIPTOR FILE PID   take it for process PID: 0 taken, 3 somebody else has it, 4 again
    python -m kaas.locks keep DESCRIPTOR PID         touch it until process PID is gone

The standard library only, and of `kaas` what needs no more: scripts/ use it before the libraries are installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from kaas import processes, supervision

TOUCHED_EVERY = 5.0
"""Seconds between two touches of a file by its holder."""
UNTOUCHED = 60.0
"""Seconds after the last touch in which a holder on another machine counts as alive."""
_SETTLED = 0.5
"""Seconds after which, without locks, of those that have written into a file at once the last is known."""
_LONGEST = 1000
_TAKEN, _NOT, _AGAIN = 0, 3, 4


class Holder(NamedTuple):
    """A process: its machine and that machine's boot, the space in which its number counts, and when it started."""

    host: str
    boot: str
    space: str
    process: int
    started: str
    since: str = ""

    @classmethod
    def of(cls, process: int) -> Self:
        """Describe a process of this machine."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(os.uname().nodename, boot_id(), _process_space(), process, processes.start_of(process), since)

    @classmethod
    def read(cls, descriptor: int) -> Self | None:
        """Read who holds an open file, from its first line; None if nobody is written into it."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            holder = cls(**json.loads(os.pread(descriptor, _LONGEST, 0).partition(b"\n")[0]))
            if all(isinstance(value, int if name == "process" else str) for name, value in holder._asdict().items()):
                return holder
        return None

    def write(self, descriptor: int, more: str = "") -> None:
        """Write it into an open file, and more below it.

        Raises:
            OSError: there is no room.
        """
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{json.dumps(self._asdict())}\n{more}".encode(errors="surrogateescape"), 0)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether it is, and the machine was not started again since."""
        return self.boot == boot_id() and (bool(self.boot) or self.host == os.uname().nodename)

    @property
    def is_here(self) -> bool:
        """Whether its number counts here: the same machine, and the same container."""
        return self.is_on_this_machine and self.space == _process_space()

    @property
    def runs(self) -> bool:
        """Whether a process of this machine is still there, and no other that has its number now."""
        return processes.start_of(self.process) == self.started or not self.started

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file, now or not at all; tell whether it is ours, or None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_alive(holder: Holder, descriptor: int, locked: bool | None) -> bool:
    """Tell whether the holder that stands in an open file, whose lock is ours or not to be had, is alive."""
    if locked and holder.is_on_this_machine:
        return False  # its kernel says so
    if holder.is_here:
        return holder.runs
    return abs(_time_of_files(descriptor) - os.fstat(descriptor).st_mtime) < UNTOUCHED


def claim(descriptor: int, path: Path, process: int) -> tuple[int, str]:
    """Take an open file for a process; give 0, or 3 and who has it, or 4 if the file is not at that path any more.

    Raises:
        OSError: the file cannot be written.
    """
    locked = lock(descriptor)
    holder = Holder.read(descriptor)
    if locked is False:
        deadline = time.monotonic() + _SETTLED
        while holder is None and time.monotonic() < deadline:  # it has the lock, and is about to say who it is
            time.sleep(_SETTLED / 20)
            holder = Holder.read(descriptor)
        gone = holder is not None and holder.is_here and not holder.runs
        return _NOT, f"{holder or 'a process'}{', which was killed, and what it has started is about to end' * gone}"
    if not is_at(descriptor, path):
        return _AGAIN, ""
    if holder is not None and is_alive(holder, descriptor, locked):
        return _NOT, str(holder) + ("" if holder.is_here else f" (or until some {UNTOUCHED:g} s ago)")
    ours = Holder.of(process)
    ours.write(descriptor)
    if locked is None:
        time.sleep(_SETTLED)
        if not is_at(descriptor, path):
            return _AGAIN, ""
        last = Holder.read(descriptor)
        if last != ours:
            return _NOT, str(last or "a process")
    return _TAKEN, ""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[str]:
    """Have a file for this process for a while, as a script has it for itself; give who has it, or "" if it is ours.

    Raises:
        OSError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        code, holder = _AGAIN, ""
        while code == _AGAIN:  # its last holder removes it
            stack.close()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            code, holder = claim(descriptor, path, os.getpid())
        if code == _TAKEN:
            stack.callback(path.unlink, missing_ok=True)
            stack.enter_context(touching(descriptor))
        yield holder


def keep(descriptor: int, process: int) -> None:
    """Touch an open file as long as a process that this one descends from is there."""
    supervision.end_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while not supervision.is_gone(process):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        time.sleep(TOUCHED_EVERY)


@contextlib.contextmanager
def touching(descriptor: int) -> Iterator[None]:
    """Touch an open file for a while, so that other machines take its holder for alive."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(TOUCHED_EVERY):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def boot_id() -> str:
    """Tell one boot of this machine from another, and from those of others; "" where the system has no name for it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _process_space() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").readlink().name
    return ""


def _time_of_files(descriptor: int) -> float:
    """Ask the file system for the time, as it would be written beside a file that is touched now."""
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/self/fd/{descriptor}").readlink().parent
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    return time.time()


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one at a path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    if arguments[0] == "keep":
        keep(int(arguments[1]), int(arguments[2]))
        return 0
    try:
        code, holder = claim(int(arguments[1]), Path(arguments[2]), int(arguments[3]))
    except OSError as error:
        code, holder = 1, f"{arguments[2]}: {error.strerror}"
    print(holder)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
