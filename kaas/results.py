"""The files of a run: their names, and the request rows; writer beside reader.

A run lies in `results-<experiment>/`, one set of files for each task (one task a repeat):

    <task>.csv                  one row for each request (`Row`)
    <task>.md                   what the columns mean, the parameters, the machine
    <task>-serverlogs.csv       the server's events (kaas.events)
    <task>-gpu-monitoring.csv   utilization and power (kaas.monitor)
    <task>-server.log           all that the server printed

Every time stamp is in seconds since the epoch, UTC.
"""

import contextlib
import csv
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kaas.errors import ResultsError
from kaas.outcome import Outcome as Outcome  # noqa: PLC0414 - it is had from here, too
from kaas.outcome import sound


class Row(NamedTuple):
    """One request, as one row of `<task>.csv`; the first seven columns are the original's."""

    timestamp: float
    inner_time_ms: float
    outer_time_ms: float
    setup_time: float
    cold_start: bool
    copy: int
    concurrency: int
    status: str = "ok"
    waited_for_boot: bool = False
    gpu: int | None = None
    worker: int | None = None
    queued_ms: float = 0.0
    kernel_ms: float = 0.0
    error: str = ""
    arrived: float | None = None
    lag_ms: float = 0.0


COLUMNS: Mapping[str, str] = {
    "timestamp": "s since the epoch, UTC: when the request began",
    "inner_time_ms": "ms: what the kernel measured around upload, launch and download; 0.0 if it was not served",
    "outer_time_ms": "ms: from the request's begin to its end, everything included (task completion time)",
    "setup_time": "ms (not s, whatever its name says): shared memory made, filled, freed; inline, the matrix copied",
    "cold_start": "True if this request made the server boot a task runner",
    "copy": "number of the client that sent it, from 0",
    "concurrency": "number of clients running when the request was sent",
    "status": "ok, rejected, kernel_error, worker_lost, timeout, bad_request, unauthorized, shutting_down, "
    "failed (in the client) or wrong_result (the product was checked and is not one)",
    "waited_for_boot": "True if the request waited for its worker to become ready",
    "gpu": "number of the GPU that served it; empty if none did",
    "worker": "number of the worker that served it; empty if none did",
    "queued_ms": "ms: in the server, from acceptance until a worker had it",
    "kernel_ms": "ms: in the worker, the kernel's call as a whole",
    "error": "what went wrong, in words",
}
OF_ARRIVALS: Mapping[str, str] = {
    "arrived": "s since the epoch, UTC: when the request arrived, whether a client was free or not. It is the timestamp"
    ", too, and outer_time_ms counts from it",
    "lag_ms": "ms, part of outer_time_ms: from its arrival until a client sent it (or, if none did, until the end)",
}
"""Further columns, of an open loop."""
SENT_LATE_MS = 10.0
"""From this lag on a request was not sent when it arrived: a client that is free needs less, as a rule."""

_LONGEST_ERROR = 500


class RunFiles:
    """The names of one task's files in its results folder."""

    def __init__(self, folder: Path, task: str) -> None:
        self.folder = folder
        self.task = task
        self.requests = folder / f"{task}.csv"
        self.description = folder / f"{task}.md"
        self.serverlogs = folder / f"{task}-serverlogs.csv"
        self.monitoring = folder / f"{task}-gpu-monitoring.csv"

    @classmethod
    def of(cls, experiment: str, task: str, parent: Path) -> "RunFiles":
        """Name the files of `task` in `parent/results-<experiment>/`."""
        return cls(parent / f"results-{experiment}", task)


def make_row(timestamp: float, copy: int, concurrency: int, result: object) -> Row:
    """Make a request's row from what `run_client` returned.

    A plain four-tuple of the original's kind says by `inner_ms == 0.0` that the request was not served, but not why:
    that is a failure.

    Raises:
        ValueError: the result is not `(outer_ms, inner_ms, setup_ms, cold_start, ...)`, or a value is none of its kind.
    """
    outcome = sound(result)
    served = outcome.status == "ok"
    return Row(
        timestamp=timestamp,
        inner_time_ms=round(outcome.inner_ms, 6) if served else 0.0,
        outer_time_ms=round(outcome.outer_ms, 4),
        setup_time=round(outcome.setup_ms, 4),
        cold_start=outcome.cold_start,
        copy=copy,
        concurrency=concurrency,
        status=outcome.status,
        waited_for_boot=outcome.waited_for_boot,
        gpu=outcome.gpu,
        worker=outcome.worker,
        queued_ms=round(outcome.queued_ms, 4),
        kernel_ms=round(outcome.kernel_ms, 4),
        error=" ".join(outcome.error.split())[:_LONGEST_ERROR],
    )


def columns(*, open_loop: bool) -> Mapping[str, str]:
    """Give the columns that a run has, each with what it means."""
    return {**COLUMNS, **OF_ARRIVALS} if open_loop else COLUMNS


def from_arrival(row: Row, lag_s: float) -> Row:
    """Have a row count from its request's arrival, its time stamp, so long before a client sent it."""
    lag_ms = round(lag_s * 1000, 4)
    return row._replace(arrived=row.timestamp, lag_ms=lag_ms, outer_time_ms=round(row.outer_time_ms + lag_ms, 4))


def encode_row(row: Row) -> bytes:
    """Write a row as one line of CSV, with its line end."""
    *values, error, arrived, lag_ms = row
    if _TO_QUOTE.search(error):  # the one free text
        error = '"' + error.replace('"', '""') + '"'
    cells = ["" if value is None else str(value) for value in values]
    of_arrival = () if arrived is None else (str(arrived), str(lag_ms))
    return (",".join((*cells, error, *of_arrival)) + "\n").encode(errors="backslashreplace")


_TO_QUOTE = re.compile(r'[,"\r\n]')


def decode_row(fields: Mapping[str, str]) -> Row:
    """Read a row back from its columns; those after the seventh may be missing, as in the published files.

    Raises:
        ValueError, KeyError: a value is no such value, or one of the first seven columns is missing.
    """
    inner = float(fields["inner_time_ms"])
    return Row(
        timestamp=float(fields["timestamp"]),
        inner_time_ms=inner,
        outer_time_ms=float(fields["outer_time_ms"]),
        setup_time=float(fields["setup_time"]),
        cold_start=_BOOLEANS[fields["cold_start"]],
        copy=int(fields["copy"]),
        concurrency=int(fields["concurrency"]),
        status=fields.get("status") or ("ok" if inner > 0 else "rejected"),
        waited_for_boot=_BOOLEANS[fields.get("waited_for_boot") or "False"],
        gpu=int(fields["gpu"]) if fields.get("gpu") else None,
        worker=int(fields["worker"]) if fields.get("worker") else None,
        queued_ms=float(fields.get("queued_ms") or 0.0),
        kernel_ms=float(fields.get("kernel_ms") or 0.0),
        error=fields.get("error") or "",
        arrived=float(fields["arrived"]) if fields.get("arrived") else None,
        lag_ms=float(fields.get("lag_ms") or 0.0),
    )


_BOOLEANS = {"True": True, "False": False}


class RowWriter:
    """Appends rows to `<task>.csv`, from as many processes as there are clients.

    Each row is one `write` to a file opened for appending, so rows of several processes never mix, a row is with the
    operating system the moment its request is finished, and killing anything leaves no torn line. It takes no lock,
    which not every file system has. Where there is no room for the whole of a row, its part becomes empty lines.

    Raises:
        ResultsError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None

    def append(self, row: Row) -> None:
        """Append one row.

        Raises:
            ResultsError: it cannot be written.
        """
        self.write(encode_row(row))

    def write(self, lines: bytes) -> None:
        """Append rows that are encoded already, with their line ends.

        Raises:
            ResultsError: they cannot be written.
        """
        try:
            written = os.write(self._file, lines)
            if written < len(lines):
                self._blank(os.lseek(self._file, 0, os.SEEK_CUR) - written, written)
                raise ResultsError(f"no room for the rows of requests in {self._path}")
        except OSError as error:
            raise ResultsError(f"the rows of requests cannot be written to {self._path}: {error.strerror}") from None

    def _blank(self, begin: int, size: int) -> None:
        """Make empty lines of what was written; others may have appended to it since, so it cannot be cut off."""
        file = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(file, b"\n" * size, begin)
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def create_requests(path: Path, *, open_loop: bool = False) -> None:
    """Create `<task>.csv` with its header, and its folder.

    Raises:
        ResultsError: the file is there already (an earlier run is never overwritten), or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(",".join(columns(open_loop=open_loop)) + "\n")
    except FileExistsError:
        raise _earlier_run(path) from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def check_no_earlier_run(path: Path) -> None:
    """Raise `ResultsError` if there is a `<task>.csv` already; `create_requests` would, but later."""
    if path.exists():
        raise _earlier_run(path)


def _earlier_run(path: Path) -> ResultsError:
    return ResultsError(f"{path} holds an earlier run: move it away, or choose another --task-name")


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run's folder aside, as the scripts do: to `<folder>.<date>-<time>` (UTC); tell where it is now.

    Raises:
        ResultsError: it cannot be moved.
    """
    if not folder.exists():
        return None
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    try:
        return folder.rename(aside)
    except OSError as error:
        raise ResultsError(f"{folder} holds an earlier run, which cannot be moved aside: {error.strerror}") from None


class RowReader:
    """Reads rows as they are appended: each call of `new_rows` gives those that came since the last.

    Lines that are no row are counted in `malformed`; `problem` says what the first of them lacks.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._names: list[str] = []
        self._rest = b""
        self.malformed = 0
        self.problem = ""

    def new_rows(self) -> Iterator[Row]:
        """Give the rows that are complete by now; a last line without its end waits for the rest of it."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            if not line.strip():
                continue
            try:
                (fields,) = csv.reader([line.decode(errors="replace")])
                if not self._names:
                    self._names = fields
                    continue
                row = decode_row(dict(zip(self._names, fields, strict=False)))
            except (ValueError, KeyError, csv.Error) as error:
                self.malformed += 1
                self.problem = self.problem or f"{type(error).__name__}: {error}"
            else:
                yield row

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Read all complete rows of a `<task>.csv`, ours or a published one.

    Raises:
        ResultsError: the file cannot be read, or a row is none.
    """
    try:
        reader = RowReader(path)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    with contextlib.closing(reader):
        rows = list(reader.new_rows())
    if reader.malformed:
        raise ResultsError(f"{path} is not a file of requests: {reader.problem}")
    return rows
