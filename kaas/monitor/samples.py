"""Takes samples at a steady pace and writes them down, wherever they come from."""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kaas import supervision
from kaas.errors import ResultsError
from kaas.samples import HEADER, Sample, encode


def check_new(path: Path) -> None:
    """Raise `ResultsError` if the CSV is there already; `record` would, but later."""
    if path.exists():
        raise _earlier_run(path)


def leave_signals(supervised: int) -> None:
    """Leave Ctrl-C and a terminal's end to the process in charge, if there is one; `record` does, but later."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if supervised:
            signal.signal(number, signal.SIG_IGN)


def record(take: Callable[[], Iterable[Sample]], path: Path, interval: float, supervised: int) -> None:
    """Append what `take` gives to the CSV `path`, every `interval` seconds, until SIGTERM, SIGINT or SIGHUP.

    The rows of one sample are one write. If `supervised` is the number of a process in charge, and not 0, SIGINT and
    SIGHUP are left to that, and its end ends the recording.

    Raises:
        ResultsError: the file is there already, or cannot be written.
    """
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    for number in (signal.SIGINT, signal.SIGHUP):
        if not supervision.is_ignored(number):
            signal.signal(number, signal.SIG_IGN if supervised else lambda number, _: told.append(number))
    try:
        with path.open("x", encoding="utf-8", newline="") as file, _readable_after_a_signal() as signalled:
            file.write(HEADER)
            due = time.monotonic()
            while not told and not (supervised and supervision.is_gone(supervised)):
                file.write(encode(take()))
                file.flush()
                # A sample that took too long moves the next ones, rather than having them crowd.
                due = max(due + interval, time.monotonic())
                select.select([signalled], [], [], max(due - time.monotonic(), 0.0))
    except FileExistsError:
        raise _earlier_run(path) from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _readable_after_a_signal() -> Iterator[socket.socket]:
    """Give what can be read once a signal has come: a handler that took a lock might wait for who it interrupts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def _earlier_run(path: Path) -> ResultsError:
    return ResultsError(f"{path} holds an earlier run: move it away, or give another name")
