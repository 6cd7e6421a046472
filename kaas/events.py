"""The server's event lines: `format` beside `parse`, and the CSV they end up in.

The server prints one line an event on its stdout; `sortserverlogs.py` turns a log into `<task>-serverlogs.csv`.
Other lines may stand between them. The first two forms are the original's and never change:

    @@@ Booted 4 new workers on GPU 0 at 1694604659.1637785
    @@@ ERROR all workers are full at 1694604659.16
    @@@ Ready worker 2 on GPU 0 at 1694604659.4 (fork 0.004 s, import 0.021 s)
    @@@ Lost worker 2 on GPU 0 at 1694604671.0 (ended by SIGKILL)
    @@@ Stopped 4 workers on GPU 0 at 1694604731.2 (idle)

Where the GPUs are those of several machines, ` on node NAME` follows the time.

CSV columns: `num_workers,gpu,timestamp,event,worker,detail,node`. `num_workers` and `gpu` are 0 for a refusal;
`timestamp` is in seconds since the epoch (UTC); `event` is one of `EVENTS`; `worker` is empty where the event concerns
a whole task runner; `detail` is free text; `node` is empty where there is one machine only.

A storm of refusals must not fill the disk, nor one whose lines nobody reads the memory. Beyond `ROOM` lines (and
`_RATE` more a second) one line stands for many refusals, at the time of the last, and becomes as many rows:

    @@@ ERROR all workers are full at 1694604660.5 (1234 times since 1694604660.4)
"""

import csv
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from kaas.errors import EventLineError, ResultsError
from kaas.outlet import PATIENCE, Outlet

log = logging.getLogger("kaas.server")

EVENTS = ("booted", "ready", "rejected", "stopped", "lost")
COLUMNS = ("num_workers", "gpu", "timestamp", "event", "worker", "detail", "node")


class Event(NamedTuple):
    """One thing that happened to the task runners."""

    event: str
    timestamp: float
    gpu: int = 0
    num_workers: int = 0
    worker: int | None = None
    detail: str = ""
    node: str = ""


_MOST_SAID = 5
"""Malformed lines that are named."""
ROOM = 1_000_000
"""Refusals that have lines of their own (60 MB), whenever they come."""
_RATE = 10.0
"""Refusals a second that have lines of their own for ever."""
_PAUSE = 0.1
"""Seconds over which refusals without are counted, at least."""

_FORMS = {
    "booted": "@@@ Booted {num_workers} new workers on GPU {gpu} at {timestamp}",
    "rejected": "@@@ ERROR all workers are full at {timestamp}",
    "ready": "@@@ Ready worker {worker} on GPU {gpu} at {timestamp}",
    "lost": "@@@ Lost worker {worker} on GPU {gpu} at {timestamp}",
    "stopped": "@@@ Stopped {num_workers} workers on GPU {gpu} at {timestamp}",
}


def _pattern(form: str) -> re.Pattern[str]:
    fields = {name: rf"(?P<{name}>\d+)" for name in ("num_workers", "gpu", "worker")}
    time_stamp = r"(?P<timestamp>\d+(?:\.\d+)?)"
    return re.compile(
        form.format(timestamp=time_stamp, **fields) + r"(?: on node (?P<node>\S+))?(?: \((?P<detail>.*)\))?"
    )


_MANY = re.compile(r"(\d+) times since \d+(?:\.\d+)?")
_PATTERNS = {event: _pattern(form) for event, form in _FORMS.items()}
_BEGINNINGS = tuple(" ".join(form.split()[:2]) for form in _FORMS.values())


def format(event: Event) -> str:
    """Write an event as its line, without the line's end."""
    line = _FORMS[event.event].format(**event._asdict()) + f" on node {event.node}" * bool(event.node)
    return f"{line} ({' '.join(event.detail.split())})" if event.detail else line


class Printer:
    """Prints event lines on stdout; what becomes of a line does not become of the program, nor does it wait.

    Args:
        at: tells the run's time, in seconds since the epoch, at a time stamp of an event (clock.Clock.at).
    """

    def __init__(self, at: Callable[[float], float]) -> None:
        self._at = at
        self._outlet = Outlet(sys.stdout, _say_lost)
        self._room = float(ROOM)
        self._last = 0.0  # time stamp of a refusal
        self._lock = threading.Lock()
        self._counted = 0  # refusals without lines of their own
        self._since = self._until = 0.0

    def print(self, event: Event) -> None:
        """Print an event's line, or count it if it is one refusal of very many."""
        if event.event != "rejected" or self._has_room(event.timestamp):
            self._outlet.write(format(event._replace(timestamp=self._at(event.timestamp))) + "\n")
            return
        with self._lock:
            self._counted += 1
            self._until = event.timestamp
            if self._counted == 1:
                self._since = event.timestamp
                self._outlet.write_later(self._many)

    def close(self) -> None:
        """Return when all is printed, or nobody reads it."""
        if lost := self._outlet.close(PATIENCE):
            log.warning("stdout: nobody reads it; event lines lost: %d", lost)

    def _has_room(self, now: float) -> bool:
        self._room = min(self._room + (now - self._last) * _RATE, ROOM)
        self._last = now
        if self._room < 1 or not self._outlet.has_room:
            return False
        self._room -= 1
        return True

    def _many(self) -> str:
        time.sleep(_PAUSE)
        with self._lock:
            since, until = self._at(self._since), self._at(self._until)
            number, self._counted = self._counted, 0
        return format(Event("rejected", until, detail=f"{number} times since {since}")) + "\n"


def _say_lost(error: Exception, line: str) -> None:
    log.warning("stdout: %s; lost: %s", getattr(error, "strerror", None) or error, line.rstrip())


def parse(line: str) -> Event | None:
    """Read a line: the event in it, or None if it is no event line.

    Raises:
        EventLineError: it begins like an event line and is none.
    """
    line = line.strip()
    if not line.startswith(_BEGINNINGS):
        return None
    for event, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(line):
            found = match.groupdict()
            one_worker = "worker" in found
            return Event(
                event,
                float(found["timestamp"]),
                gpu=int(found.get("gpu") or 0),
                num_workers=1 if one_worker else int(found.get("num_workers") or 0),
                worker=int(found["worker"]) if one_worker else None,
                detail=found["detail"] or "",
                node=found["node"] or "",
            )
    raise EventLineError(f"not a whole event line: {line[:120]!r}")


def times(event: Event) -> int:
    """Tell how often it has happened, which is once unless it stands for many refusals."""
    many = event.event == "rejected" and _MANY.fullmatch(event.detail)
    return int(many[1]) if many else 1


def parse_log(lines: Iterable[str], problems: list[str]) -> Iterator[Event]:
    """Read the events of a log; each malformed event line becomes `line N: ...` in `problems`."""
    for number, line in enumerate(lines, 1):
        try:
            event = parse(line)
        except EventLineError as error:
            problems.append(f"line {number}: {error}")
            continue
        if event is not None:
            yield event


def sort_log(source: Path, target: Path) -> int:
    """Write the events of the log `source` to the CSV `target`, in order of time; return how many there were.

    Raises:
        ResultsError: a file cannot be read or written, or event lines are malformed; every one is named, and
            all the sound ones are in `target` all the same.
    """
    problems: list[str] = []
    if target.exists() and source.exists() and target.samefile(source):
        raise ResultsError(f"{target} is the log itself: give another name for the CSV")
    at_hand = source
    try:
        with source.open(encoding="utf-8", errors="replace") as log:
            events = sorted(parse_log(log, problems), key=lambda event: event.timestamp)
        at_hand = target
        with target.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for event in events:
                rows.writerows(repeat([event._asdict()[name] for name in COLUMNS], times(event)))
    except OSError as error:
        raise ResultsError(f"{at_hand}: {error.strerror}") from None
    if problems:
        more = f"; and {len(problems) - _MOST_SAID} more" if len(problems) > _MOST_SAID else ""
        raise ResultsError(f"{source}: {'; '.join(problems[:_MOST_SAID])}{more}")
    return sum(map(times, events))
