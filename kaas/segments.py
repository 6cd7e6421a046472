"""Segments of shared memory: their names, who creates, attaches and unlinks, and the removal of what nobody has.

A segment is its user's alone (mode 0600). Its name is `kaas_`, 8 hexadecimal digits that all segments of one run share
($KAAS_RUN, drawn by the load generator) and 12 that are drawn for each: 25 characters, where macOS takes 30.
"""

import _posixshmem  # type: ignore[import-not-found]
import contextlib
import mmap
import os
import re
import secrets
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from kaas.errors import UsageError

NAME = re.compile(r"kaas_[0-9a-f]{20}")
RUN = re.compile(r"[0-9a-f]{8}")
FOLDER = Path("/dev/shm")  # noqa: S108
"""Where Linux shows the segments that there are."""
MODES = ("fresh", "kept")
Hold = Callable[[mmap.mmap], contextlib.AbstractContextManager[object]]
_unclosed: list[SharedMemory] = []
"""Segments to be closed once nobody holds their memory."""


def are_kept() -> bool:
    """Tell whether SEGMENTS has clients keep their segments, and workers keep them attached.

    Raises:
        UsageError: it is no such word.
    """
    mode = os.environ.get("SEGMENTS") or MODES[0]
    if mode not in MODES:
        raise UsageError(f"SEGMENTS is {mode[:40]!r}: give {' or '.join(MODES)}")
    return mode == "kept"


def draw_run() -> str:
    """Draw the digits that a run's segments share, for its KAAS_RUN."""
    return secrets.token_hex(4)


def create(size: int, content: memoryview | None = None) -> SharedMemory:
    """Create a segment of `size` bytes, all of them there, zero or `content`; its name is of this run, or of none.

    Raises:
        UsageError: there is no room for it, or KAAS_RUN is no run.
    """
    run = os.environ.get("KAAS_RUN") or draw_run()
    if not RUN.fullmatch(run):
        raise UsageError(f"KAAS_RUN is {run[:40]!r}: give 8 hexadecimal digits in lower case, or unset it")
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise UsageError(f"no shared memory for a matrix of {size} bytes: the machine has less")
    name = f"kaas_{run}{secrets.token_hex(6)}"
    try:
        # Where there is no room, Python unregisters what it has not registered yet, and its tracker would complain.
        resource_tracker.register(f"/{name}", "shared_memory")
        memory = SharedMemory(name, create=True, size=size)
    except OSError as error:
        resource_tracker.register(f"/{name}", "shared_memory")
        resource_tracker.unregister(f"/{name}", "shared_memory")
        raise UsageError(f"no shared memory for a matrix of {size} bytes: {error.strerror}") from None
    try:
        _fill(memory, size, content)
    except BaseException as error:
        memory.close()
        memory.unlink()
        if not isinstance(error, OSError):
            raise
        why = f"{error.strerror} (see df /dev/shm)"
        raise UsageError(f"no shared memory for a matrix of {size} bytes: {why}") from None
    return memory


def _fill(memory: SharedMemory, size: int, content: memoryview | None) -> None:
    """Take the memory, till now only promised: where it runs out, writing to the mapping kills the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS, where a segment cannot be written to like a file, either
        if content is not None:
            assert memory.buf is not None
            memory.buf[:size] = content
        return
    descriptor: int = memory._fd  # type: ignore[attr-defined]
    if content is None:
        os.posix_fallocate(descriptor, 0, size)
        return
    # Half the time of a copy into the mapping, which would be given page by page what was filled with zeros before.
    rest = content
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def unlink(memory: SharedMemory) -> None:
    """Unlink a segment that this process created."""
    try:
        memory.unlink()
    except FileNotFoundError:  # somebody else has; the resource tracker must hear of it all the same
        resource_tracker.unregister(f"/{memory.name}", "shared_memory")


def close(memory: SharedMemory) -> None:
    """Close a segment, and those that could not be closed before; memory that somebody still holds hinders it."""
    _unclosed.append(memory)
    for kept in list(_unclosed):
        with contextlib.suppress(BufferError):
            kept.close()
            _unclosed.remove(kept)


def attach(name: str) -> mmap.mmap:
    """Map a segment that somebody else created and will unlink; the resource tracker, which would, never hears of it.

    Raises:
        OSError, ValueError: there is none, or it is empty.
    """
    descriptor = _open(name)
    try:
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


class Attachments:
    """Segments that stay attached, those used last, until they are unlinked: looked for whenever one is asked for.

    Args:
        most: how many.
        hold: is entered for each mapping as long as it is there.
    """

    def __init__(self, most: int, hold: Hold = contextlib.nullcontext) -> None:
        self._most = most
        self._hold = hold
        self._attached: dict[str, tuple[int, mmap.mmap, contextlib.ExitStack]] = {}  # what was used last is last

    def attach(self, name: str) -> mmap.mmap:
        """Map a segment, or give the mapping that there is; it must not be closed. Raises what `attach` does."""
        for other, (descriptor, *_) in list(self._attached.items()):
            if not os.fstat(descriptor).st_nlink:
                self._let_go(other)
        descriptor = _open(name)
        try:
            about = os.fstat(descriptor)
            if name in self._attached and not self._is(name, about):
                self._let_go(name)
            if name in self._attached:
                self._attached[name] = self._attached.pop(name)
                os.close(descriptor)
            else:
                mapping, held = mmap.mmap(descriptor, about.st_size), contextlib.ExitStack()
                self._attached[name] = descriptor, mapping, held
                held.enter_context(self._hold(mapping))
        except BaseException:
            self._attached.pop(name, None)
            os.close(descriptor)
            raise
        if len(self._attached) > self._most:
            self._let_go(next(iter(self._attached)))
        return self._attached[name][1]

    def let_go(self) -> None:
        """Keep none attached any longer."""
        for name in list(self._attached):
            self._let_go(name)

    def _is(self, name: str, about: os.stat_result) -> bool:
        """Tell whether what is attached by a name is that very segment: a name may be used again."""
        descriptor, mapping, _ = self._attached[name]
        # macOS does not tell segments from each other: there none is the same.
        same = about.st_ino and os.path.samestat(about, os.fstat(descriptor))
        return bool(same) and len(mapping) == about.st_size

    def _let_go(self, name: str) -> None:
        descriptor, mapping, held = self._attached.pop(name)
        os.close(descriptor)
        held.close()
        with contextlib.suppress(BufferError):  # a matrix that somebody holds; the mapping ends with it
            mapping.close()


def _open(name: str) -> int:
    descriptor: int = _posixshmem.shm_open(f"/{name}", os.O_RDWR, 0)
    return descriptor


def remove_orphans(run: str) -> int:
    """Unlink what is left of a run, all of whose processes have ended; return how many segments that were.

    Only Linux tells which there are. Elsewhere the resource tracker that the clients share unlinks them.
    """
    paths = _of_run(run)
    number, _ = unlink_all(run)
    for path in paths:
        # The tracker may know of it, or not; now it certainly does not, and complains of neither.
        resource_tracker.register(f"/{path.name}", "shared_memory")
        resource_tracker.unregister(f"/{path.name}", "shared_memory")
    return number


def unlink_all(run: str) -> tuple[int, int]:
    """Unlink what is left of a run of which no process is left, a resource tracker included; give number and bytes."""
    number = size = 0
    for path in _of_run(run):
        with contextlib.suppress(OSError):
            length = path.stat().st_size
            path.unlink()
            number, size = number + 1, size + length
    return number, size


def _of_run(run: str) -> list[Path]:
    # Of a folder that is not there, nothing.
    return [path for path in FOLDER.glob(f"kaas_{run}*") if NAME.fullmatch(path.name)]
