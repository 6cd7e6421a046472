"""Results folders made of single requests, events and samples, for the tests of what is counted."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kaas import ROOT, description, events, results
from kaas.events import Event
from kaas.results import Outcome, RunFiles
from kaas.row import Row, encode_row, make_row

T0 = 1_700_000_000.0
MONITORING_HEADER = "timestamp,gpu,bus_id,uuid,utilization_pct,power_w,energy_j,memory_mib,sm_clock_mhz,temperature_c\n"
PUBLISHED = ROOT.parent / "shared" / "paper-results"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published results are not beside the project")


def request(
    at: float,
    outer_ms: float = 100.0,
    status: str = "ok",
    *,
    copy: int = 0,
    concurrency: int = 1,
    cold: bool = False,
    waited: bool = False,
    **more: Any,
) -> Row:
    """Give a request that begins `at` seconds after `T0`; `more` are further fields of its outcome."""
    return make_row(T0 + at, copy, concurrency, Outcome(outer_ms, outer_ms / 2, 1.0, cold, status, waited, **more))


def booted(at: float, gpu: int, workers: int = 2) -> Event:
    return Event("booted", T0 + at, gpu, workers)


def write_requests(folder: Path, task: str, rows: Iterable[Row]) -> RunFiles:
    """Write the requests of a run and nothing else."""
    files = RunFiles(folder, task)
    results.create_requests(files.requests)
    with files.requests.open("ab") as file:
        file.writelines(encode_row(row) for row in rows)
    return files


def write_run(
    folder: Path,
    task: str,
    rows: Iterable[Row],
    happened: Iterable[Event] = (),
    samples: Iterable[tuple[float, int, float | None]] = (),
    *,
    watts: Iterable[tuple[float, int, float]] = (),
    parameters: Mapping[str, object] | None = None,
) -> RunFiles:
    """Write the files of a run; samples are elapsed, GPU and utilization in percent, or with `watts` its power."""
    files = write_requests(folder, task, rows)
    asked = {"Client": "a client"} if parameters is None else parameters
    description.begin(files.description, files.requests, T0, asked, {"Host": "a host"})
    log = folder / f"{task}-server.log"
    log.write_text("".join(events.format(event) + "\n" for event in happened))
    events.sort_log(log, files.serverlogs)
    lines = [f"{T0 + at},{gpu},virtual:{gpu},,{'' if of is None else of},,,,,\n" for at, gpu, of in samples]
    lines += [f"{T0 + at},{gpu},virtual:{gpu},,,{of},,,,\n" for at, gpu, of in watts]
    files.monitoring.write_text(MONITORING_HEADER + "".join(lines))
    return files


def closed_loop(folder: Path, task: str = "task-1", *, clients: int = 6, interval: float = 3.0) -> RunFiles:
    """Write a whole run as a load generator does: each client asks again at once, and rows come as requests end.

    One more client each `interval` s, two workers to a GPU; GPU g is booted for client 2g. Requests take some 0.6 s.
    """
    rows: list[tuple[float, Row]] = []
    happened, cold_at = [], []
    for copy in range(clients):
        at, number = copy * interval + 0.01, 0
        while at < clients * interval:
            cold = copy % 2 == 0 and number == 0
            outer_ms = 1100.0 if cold else 520.0 + 13 * (7 * copy + number) % 160
            outcome = Outcome(outer_ms, outer_ms / 2, 50.0, cold, "ok", False, copy // 2, copy)
            concurrency = 1 + int(at // interval)
            rows.append((at + outer_ms / 1000, make_row(round(T0 + at, 6), copy, concurrency, outcome)))
            if cold:
                happened.append(booted(at + 0.051, copy // 2))
                cold_at.append(at)
            at, number = at + outer_ms / 1000 + 0.0002, number + 1
    end = max(rows)[0]
    parameters = {
        "Client": "a client",
        "Minimum parallel requests": 1,
        "Maximum parallel requests": clients,
        "Step size": 1,
        "Interval": f"{interval:g}",
        "Server number of GPUs": len(cold_at),
        "Server workers per GPU": 2,
    }
    samples = [
        (tick / 10, gpu, 70.0 if cold_at[gpu] + 0.5 < tick / 10 < end else 0.0)
        for tick in range(int(end * 10) + 1)
        for gpu in range(len(cold_at))
    ]
    ordered = [row for _, row in sorted(rows, key=lambda of: of[0])]
    files = write_run(folder, task, ordered, happened, samples, parameters=parameters)
    lines = [f"{T0 + at!r},{gpu},virtual:{gpu},,{of},{60 + of},,,,\n" for at, gpu, of in samples]
    files.monitoring.write_text(MONITORING_HEADER + "".join(lines))
    facts = {"Requests ok": len(rows), "Ended": "at the end of the ramp"}
    description.end(files.description, T0 + end + 0.1, end + 0.1, facts)
    return files
