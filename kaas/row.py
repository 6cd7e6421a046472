"""One request as one row of `<task>.csv`: its columns, made from what a client returned, written and read."""

import re
from collections.abc import Mapping
from typing import NamedTuple

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


def columns_of_run(*, open_loop: bool) -> Mapping[str, str]:
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
