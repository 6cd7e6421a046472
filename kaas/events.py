"""The server's event lines: `format` beside `parse`, and the CSV they end up in.

The server prints one line an event on its stdout; `sortserverlogs.py` turns a log into `<task>-serverlogs.csv`.
Other lines may stand between them. The first two forms are the original's and never change:

    @@@ Booted 4 new workers on GPU 0 at 1694604659.1637785
    @@@ ERROR all workers are full at 1694604659.16
    @@@ Ready worker 2 on GPU 0 at 1694604659.4 (fork 0.004 s, import 0.021 s)
    @@@ Lost worker 2 on GPU 0 at 1694604671.0 (ended by SIGKILL)
    @@@ Stopped 4 workers on GPU 0 at 1694604731.2 (idle)

CSV columns: `num_workers,gpu,timestamp,event,worker,detail`. `num_workers` and `gpu` are 0 for a refusal; `timestamp`
is in seconds since the epoch (UTC); `event` is one of `EVENTS`; `worker` is empty where the event concerns a whole
task runner; `detail` is free text.
"""

import csv
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kaas.errors import EventLineError, ResultsError

log = logging.getLogger("kaas.server")

EVENTS = ("booted", "ready", "rejected", "stopped", "lost")
COLUMNS = ("num_workers", "gpu", "timestamp", "event", "worker", "detail")


class Event(NamedTuple):
    """One thing that happened to the task runners."""

    event: str
    timestamp: float
    gpu: int = 0
    num_workers: int = 0
    worker: int | None = None
    detail: str = ""


_MOST_SAID = 5
"""Malformed lines that are named."""

_FORMS = {
    "booted": "@@@ Booted {num_workers} new workers on GPU {gpu} at {timestamp}",
    "rejected": "@@@ ERROR all workers are full at {timestamp}",
    "ready": "@@@ Ready worker {worker} on GPU {gpu} at {timestamp}",
    "lost": "@@@ Lost worker {worker} on GPU {gpu} at {timestamp}",
    "stopped": "@@@ Stopped {num_workers} workers on GPU {gpu} at {timestamp}",
}


def _pattern(form: str) -> re.Pattern[str]:
    fields = {name: rf"(?P<{name}>\d+)" for name in ("num_workers", "gpu", "worker")}
    return re.compile(form.format(timestamp=r"(?P<timestamp>\d+(?:\.\d+)?)", **fields) + r"(?: \((?P<detail>.*)\))?")


_PATTERNS = {event: _pattern(form) for event, form in _FORMS.items()}
_BEGINNINGS = tuple(" ".join(form.split()[:2]) for form in _FORMS.values())


def format(event: Event) -> str:
    """Write an event as its line, without the line's end."""
    line = _FORMS[event.event].format(**event._asdict())
    return f"{line} ({' '.join(event.detail.split())})" if event.detail else line


class Printer:
    """Prints event lines on stdout, past Python's buffers: a line is there, torn or lost, and we know which.

    Args:
        at: tells the run's time, in seconds since the epoch, at a time stamp of an event (clock.Clock.at).
    """

    def __init__(self, at: Callable[[float], float]) -> None:
        self._at = at
        self._torn = False

    def print(self, event: Event) -> None:
        """Print an event's line; what becomes of the line does not become of the program."""
        line = format(event._replace(timestamp=self._at(event.timestamp)))
        rest = ("\n" * self._torn + line + "\n").encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
            self._torn = False
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            self._torn = True
            log.warning("stdout: %s; lost: %s", getattr(error, "strerror", None) or error, line)


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
            )
    raise EventLineError(f"not a whole event line: {line[:120]!r}")


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
    try:
        with source.open(encoding="utf-8", errors="replace") as log:
            events = sorted(parse_log(log, problems), key=lambda event: event.timestamp)
        with target.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            rows.writerows([event._asdict()[name] for name in COLUMNS] for event in events)
    except OSError as error:
        raise ResultsError(f"{error.filename}: {error.strerror}") from None
    if problems:
        more = f"; and {len(problems) - _MOST_SAID} more" if len(problems) > _MOST_SAID else ""
        raise ResultsError(f"{source}: {'; '.join(problems[:_MOST_SAID])}{more}")
    return len(events)
