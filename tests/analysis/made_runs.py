"""Results folders made of single requests, events and samples, for the tests of what is counted."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kaas import ROOT, description, events, results
from kaas.events import Event
from kaas.results import Outcome, Row, RunFiles

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
    return results.make_row(
        T0 + at, copy, concurrency, Outcome(outer_ms, outer_ms / 2, 1.0, cold, status, waited, **more)
    )


def booted(at: float, gpu: int, workers: int = 2) -> Event:
    return Event("booted", T0 + at, gpu, workers)


def write_requests(folder: Path, task: str, rows: Iterable[Row]) -> RunFiles:
    """Write the requests of a run and nothing else."""
    files = RunFiles(folder, task)
    results.create_requests(files.requests)
    with files.requests.open("ab") as file:
        file.writelines(results.encode_row(row) for row in rows)
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
