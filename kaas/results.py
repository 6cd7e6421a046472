"""The files of a run: their names, the request rows and the description; writer beside reader.

A run lies in `results-<experiment>/`, one set of files for each task (one task a repeat):

    <task>.csv                  one row for each request (`Row`)
    <task>.md                   what the columns mean, the parameters, the machine
    <task>-serverlogs.csv       the server's events (kaas.events)
    <task>-gpu-monitoring.csv   utilization and power (kaas.monitor)
    <task>-server.log           all that the server printed

Every time stamp is in seconds since the epoch, UTC.
"""

import csv
import fcntl
import io
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kaas.errors import ResultsError


class Outcome(NamedTuple):
    """What a client module's `run_client` returns: the first four fields at least, as a tuple or as this.

    Times are in milliseconds. `status` is `ok`, a status of the server's replies (kaas.wire), `failed` (the client
    itself failed) or `wrong_result`. Of anything but `ok`, `inner_ms` is 0.0.
    """

    outer_ms: float
    inner_ms: float
    setup_ms: float
    cold_start: bool
    status: str = "ok"
    waited_for_boot: bool = False
    gpu: int | None = None
    worker: int | None = None
    queued_ms: float = 0.0
    kernel_ms: float = 0.0
    error: str = ""


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


COLUMNS: Mapping[str, str] = {
    "timestamp": "s since the epoch, UTC: when the request began",
    "inner_time_ms": "ms: what the kernel measured around upload, launch and download; 0.0 if it was not served",
    "outer_time_ms": "ms: from the request's begin to its end, everything included (task completion time)",
    "setup_time": "ms (not s, whatever its name says): the client's work on its shared memory: made, filled, and freed",
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

_LONGEST_ERROR = 500
_HEADER = ",".join(COLUMNS) + "\n"


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


def make_row(timestamp: float, copy: int, concurrency: int, result: tuple[Any, ...]) -> Row:
    """Make a request's row from what `run_client` returned.

    A plain four-tuple of the original's kind says by `inner_ms == 0.0` that the request was refused.

    Raises:
        ValueError, TypeError: the result is not `(outer_ms, inner_ms, setup_ms, cold_start, ...)`.
    """
    outcome = _outcome(result)
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


def _outcome(result: tuple[Any, ...]) -> Outcome:
    outer_ms, inner_ms, setup_ms, cold_start = result[:4]
    more = {name: getattr(result, name) for name in Outcome._fields[4:] if hasattr(result, name)}
    more.setdefault("status", "ok" if float(inner_ms) > 0.0 else "rejected")
    return Outcome(float(outer_ms), float(inner_ms), float(setup_ms), bool(cold_start), **more)


def encode_row(row: Row) -> bytes:
    """Write a row as one line of CSV, with its line end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode(errors="backslashreplace")


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
        cold_start=_boolean(fields["cold_start"]),
        copy=int(fields["copy"]),
        concurrency=int(fields["concurrency"]),
        status=fields.get("status") or ("ok" if inner > 0 else "rejected"),
        waited_for_boot=_boolean(fields.get("waited_for_boot") or "False"),
        gpu=int(fields["gpu"]) if fields.get("gpu") else None,
        worker=int(fields["worker"]) if fields.get("worker") else None,
        queued_ms=float(fields.get("queued_ms") or 0.0),
        kernel_ms=float(fields.get("kernel_ms") or 0.0),
        error=fields.get("error") or "",
    )


def _boolean(text: str) -> bool:
    return {"True": True, "False": False}[text]


class RowWriter:
    """Appends rows to `<task>.csv`, from as many processes as there are clients.

    Each row is one `write` to a file opened for appending, so rows of several processes never mix, a row is with the
    operating system the moment its request is finished, and killing anything leaves no torn line. Where there is no
    room for the whole of it, none of it is written.

    Raises:
        ResultsError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None

    def append(self, row: Row) -> None:
        """Append one row.

        Raises:
            ResultsError: it cannot be written.
        """
        line = encode_row(row)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file).st_size
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, size)
                raise ResultsError("no room for the rows of requests")
        except OSError as error:
            raise ResultsError(f"the rows of requests cannot be written: {error.strerror}") from None
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def create_requests(path: Path) -> None:
    """Create `<task>.csv` with its header, and its folder.

    Raises:
        ResultsError: the file is there already (an earlier run is never overwritten), or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(_HEADER)
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


class RowReader:
    """Reads rows as they are appended: each call of `new_rows` gives those that came since the last."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._names: list[str] = []
        self._rest = b""

    def new_rows(self) -> Iterator[Row]:
        """Give the rows that are complete by now; a last line without its end waits for the rest of it."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for fields in csv.reader(line.decode(errors="replace") for line in lines if line):
            if self._names:
                yield decode_row(dict(zip(self._names, fields, strict=False)))
            else:
                self._names = fields

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
    try:
        return list(reader.new_rows())
    except (ValueError, KeyError, csv.Error) as error:
        raise ResultsError(f"{path} is not a file of requests: {type(error).__name__}: {error}") from None
    finally:
        reader.close()


def begin_description(
    path: Path, requests: Path, parameters: Mapping[str, object], machine: Mapping[str, object]
) -> None:
    """Write `<task>.md` as it stands when a run begins: columns, parameters (`Name: value`) and machine.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = [
        f"This file describes the fields in the file {requests.parent.name}/{requests.name}.",
        f"The measurements were run starting on {datetime.now(UTC)}.",
        f"The experiment was run on the machine {machine.get('Host', 'unknown')}.",
        "",
        "## Parameters",
        *(f"{name}: {' '.join(str(value).splitlines())}" for name, value in parameters.items()),
        "",
        "## Columns",
        *(f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items()),
        "",
        "## Machine",
        *(f"{name}: {value}" for name, value in machine.items()),
        "",
    ]
    _write(path, "w", lines)


def end_description(path: Path, seconds: float, how: str, counts: Mapping[str, int]) -> None:
    """Append to `<task>.md` how the run ended, how long it took and how many requests of each status it made.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = [
        "",
        "## End",
        *(f"Requests {status}: {number}" for status, number in counts.items()),
        f"Ended: {how}",
        f"The experiment terminated on {datetime.now(UTC)}.",
        f"The experiment ran for {seconds:.3f} s.",
        "",
    ]
    _write(path, "a", lines)


def _write(path: Path, mode: str, lines: list[str]) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write("\n".join(lines))
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}") from None


_PARAMETER = re.compile(r"(?P<name>[A-Z][^:`]*): (?P<value>.*)")


def read_description(path: Path) -> dict[str, str]:
    """Read the `Name: value` lines of a `<task>.md`, ours or a published one; a missing file gives none."""
    matches = filter(None, map(_PARAMETER.fullmatch, _lines(path)))
    return {match["name"]: match["value"] for match in matches}


class Told(NamedTuple):
    """What a description tells in sentences: "" or None where it does not."""

    machine: str = ""
    ran_for_s: float | None = None


_MACHINE = re.compile(r"The experiment was run on the machine (?P<name>.+)\.")
_RAN_FOR = re.compile(
    r"The experiment ran for (?:(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):)?(?P<seconds>\d+(?:\.\d+)?)"
    r"(?: s)?\."
)


def read_told(path: Path) -> Told:
    """Read the machine and the length of a run from a `<task>.md`, ours or a published one (`0:08:06.052530`)."""
    told = Told()
    for line in _lines(path):
        if match := _MACHINE.fullmatch(line):
            told = told._replace(machine=match["name"])
        elif match := _RAN_FOR.fullmatch(line):
            minutes = (int(match["days"] or 0) * 24 + int(match["hours"] or 0)) * 60 + int(match["minutes"] or 0)
            told = told._replace(ran_for_s=minutes * 60 + float(match["seconds"]))
    return told


def _lines(path: Path) -> list[str]:
    """Give the lines of a description, whatever editor has saved it; none if it is missing."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        return []
