"""Takes samples at a steady pace and writes them down, wherever they come from."""

import signal
import threading
import time
from collections.abc import Callable, Iterable
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
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    for number in (signal.SIGINT, signal.SIGHUP):
        if not supervision.is_ignored(number):
            signal.signal(number, signal.SIG_IGN if supervised else lambda *_: stop.set())
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(HEADER)
            due = time.monotonic()
            while not stop.is_set() and not (supervised and supervision.is_gone(supervised)):
                file.write(encode(take()))
                file.flush()
                # A sample that took too long moves the next ones, rather than having them crowd.
                due = max(due + interval, time.monotonic())
                stop.wait(due - time.monotonic())
    except FileExistsError:
        raise _earlier_run(path) from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def _earlier_run(path: Path) -> ResultsError:
    return ResultsError(f"{path} holds an earlier run: move it away, or give another name")
