"""Takes samples at a steady pace and writes them down, wherever they come from."""

import csv
import io
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kaas import supervision
from kaas.errors import ResultsError


class Sample(NamedTuple):
    """One GPU at one time; the columns are described in `kaas.monitor`."""

    timestamp: float
    gpu: int
    bus_id: str
    uuid: str = ""
    utilization_pct: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    memory_mib: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    node: str = ""


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
            file.write(",".join(Sample._fields) + "\n")
            due = time.monotonic()
            while not stop.is_set() and not (supervised and supervision.is_gone(supervised)):
                file.write(_encode(take()))
                file.flush()
                # A sample that took too long moves the next ones, rather than having them crowd.
                due = max(due + interval, time.monotonic())
                stop.wait(due - time.monotonic())
    except FileExistsError:
        raise ResultsError(f"{path} holds an earlier run: move it away, or give another name") from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def _encode(samples: Iterable[Sample]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(samples)
    return text.getvalue()
