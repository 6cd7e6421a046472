"""What a run has on this machine besides its results: a scratch folder, and segments of shared memory.

All of it goes with the run. Where all processes of a run were killed at once, nobody was left to see to that: so each
run has a file, whose lock ends with it, and the next run removes what those left that are dead. The temporary folders
of scripts/setup, report and test-gpu have such a file in them (scripts/hold.py).
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kaas import locks, segments
from kaas.errors import ProcessFailed
from kaas.locks import Holder

LOCK = "lock"
"""The file in a script's temporary folder that says whose it is."""
_PREFIXES = ("kaas-", "kaas.")
_LONGEST = 10_000


class Scratch:
    """A run's own folder, and the digits that its segments share.

    Args:
        kind: what the folder is for, for its name.
        place: where it is to be, if not where temporary files are.

    Raises:
        ProcessFailed: there is no room for a folder.
    """

    def __init__(self, kind: str = "", place: str = "") -> None:
        self._lock = -1
        place = place or tempfile.gettempdir()
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"kaas-{kind}", dir=place))
        except OSError as error:
            raise ProcessFailed(f"no folder can be made in {place}: {error.strerror}") from None
        while True:
            self.run = segments.draw_run()
            self._path = _file_of(self.run)
            if self._take():
                break

    def close(self) -> None:
        """Remove the folder; there must be no segments any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            self._forget()

    def descriptors(self) -> list[int]:
        """Give what a process inherits that has the folder, too: it is a living run's until both have ended."""
        return [self._lock] if self._lock >= 0 else []

    def _take(self) -> bool:
        """Say that this run is alive; tell if that could be said under these digits."""
        try:
            self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return False
        except OSError:
            return True  # it is done without
        if locks.lock(self._lock) is False or not locks.is_at(self._lock, self._path):
            self._forget()  # before it was locked, somebody has taken this run for dead
            return False
        with contextlib.suppress(OSError):
            Holder.of(os.getpid()).write(self._lock, str(self.folder))
        return True

    def _forget(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1


def forget(run: str) -> None:
    """Remove the file of a run that cannot do so any more, and has nothing left."""
    _file_of(run).unlink(missing_ok=True)


def sweep() -> str:
    """Remove what dead runs of this user have left on this machine; say in one line what that was, if anything."""
    number = size = folders = 0
    for path in (*_home().glob("kaas_*.lock"), *_of_scripts()):
        with _dead(path) as left:
            run = path.stem.removeprefix("kaas_")
            if left is None or not (path.name == LOCK or segments.RUN.fullmatch(run)):
                continue
            if path.name != LOCK:
                count, length = segments.unlink_all(run)
                number, size = number + count, size + length
            for folder in filter(_is_ours, left):
                shutil.rmtree(folder, ignore_errors=True)
                folders += 1
            path.unlink(missing_ok=True)
    if not (number or folders):
        return ""
    what = [f"{number} segment{'s' * (number != 1)} of shared memory ({size / 1e6:.1f} MB)"] * bool(number)
    what += [f"{folders} temporary folder{'s' * (folders != 1)}"] * bool(folders)
    return f"removed what runs that were killed had left: {' and '.join(what)}"


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[list[Path] | None]:
    """Hold the file of a dead run and give its folders; None if that run is alive, or it is not for us to say."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        about = os.fstat(descriptor)
        is_ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
        if is_ours and _is_dead(descriptor) and locks.is_at(descriptor, path):
            _, *folders = os.pread(descriptor, _LONGEST, 0).split(b"\n")
            yield [Path(os.fsdecode(folder)) for folder in folders]
        else:
            yield None
    finally:
        os.close(descriptor)


def _is_dead(descriptor: int) -> bool:
    locked, holder = locks.lock(descriptor), Holder.read(descriptor)
    if locked:
        return holder is None or holder.is_on_this_machine
    return locked is None and holder is not None and holder.is_here and not holder.runs


def _is_ours(folder: Path) -> bool:
    """Tell whether there is such a folder, and a run of this user has made it."""
    with contextlib.suppress(OSError):
        about = folder.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and folder.name.startswith(_PREFIXES)
    return False


def _of_scripts() -> Iterator[Path]:
    for folder in filter(_is_ours, Path(tempfile.gettempdir()).glob("kaas-*")):
        yield from folder.glob(LOCK)


def _file_of(run: str) -> Path:
    return _home() / f"kaas_{run}.lock"


def _home() -> Path:
    """Where segments are, of this machine and no other; else the temporary folder."""
    return segments.FOLDER if os.access(segments.FOLDER, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
