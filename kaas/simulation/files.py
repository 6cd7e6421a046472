"""Writes a simulated run as the files that a run has, and marks every one of them as simulated."""

import contextlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from kaas import description, events, results, samples, shape_setting
from kaas.emulator import NOT_MEASURED
from kaas.errors import ResultsError
from kaas.ramp import Ramp
from kaas.results import RowWriter, RunFiles
from kaas.row import columns_of_run
from kaas.samples import Sample
from kaas.shapes import OpenLoop
from kaas.simulation.experiment import Simulated
from kaas.simulation.gpus import Spans
from kaas.simulation.model import Model
from kaas.simulation.observed import Floats

_TIMES = ("inner_time_ms", "outer_time_ms", "setup_time", "queued_ms", "kernel_ms", "lag_ms")
_EVERY = 0.1
"""Seconds between two samples."""


def write(
    run: Simulated, model: Model, files: RunFiles, facts: Mapping[str, object], *, seed: int, begun: float
) -> None:
    """Write all files of a run.

    Args:
        run: what was simulated.
        model: by which.
        files: where to.
        facts: what else there is to say of it; of its machine, it is said by which `Calibration`.
        seed: of what was drawn.
        begun: the time of its begin, in seconds since the epoch.

    Raises:
        ResultsError: a file is there already, or cannot be written.
    """
    open_loop = isinstance(run.setting.shape, OpenLoop)
    results.create_requests(files.requests, open_loop=open_loop)
    with contextlib.closing(RowWriter(files.requests)) as rows:
        for row in sorted(run.rows, key=lambda one: one.timestamp + one.outer_time_ms / 1000):
            times = {name: round(getattr(row, name), 4) for name in _TIMES}
            at = round(begun + row.timestamp, 6)
            rows.append(row._replace(timestamp=at, arrived=at if open_loop else None, **times))
    machine = f"SIMULATED (calibration {facts['Calibration']})"
    parameters, columns = _parameters(run, files) | dict(facts), columns_of_run(open_loop=open_loop)
    description.begin(files.description, files.requests, begun, parameters, {"Host": machine}, columns=columns)
    counts = Counter(row.status for row in run.rows)
    told: dict[str, object] = {f"Requests {status}": number for status, number in counts.items()}
    told |= {"Seed": seed, "Clients without a reply": run.unanswered, "Ended": "at the end of the ramp"}
    description.end(files.description, begun + run.ended, run.ended, told)
    log = files.folder / f"{files.task}-server.log"
    try:
        happened = [one._replace(timestamp=round(begun + one.timestamp, 6)) for one in run.events]
        lines = [f"{machine}: no server printed this", *map(events.format, happened)]
        log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with files.monitoring.open("x", encoding="utf-8") as file:
            file.write(samples.HEADER)
            file.write(samples.encode(_samples(run, model, begun)))
    except OSError as error:
        raise ResultsError(f"{error.filename}: {error.strerror}") from None
    events.sort_log(log, files.serverlogs)


def _parameters(run: Simulated, files: RunFiles) -> dict[str, object]:
    setting = run.setting
    shape = setting.shape
    ramp: dict[str, object] = {}
    if isinstance(shape, Ramp):
        ramp = {
            "Minimum parallel requests": shape.min_clients,
            "Maximum parallel requests": shape.max_clients,
            "Step size": shape.step_size,
            "Interval": f"{shape.interval:g}",
        }
    return {
        NOT_MEASURED: "simulated",
        "Experiment name": files.folder.name.removeprefix("results-"),
        "Task name": files.task,
        **ramp,
        **shape_setting.noted(shape),
        "Backoff": f"{setting.backoff:g}",
        "Server number of GPUs": setting.gpus,
        "Server workers per GPU": setting.workers_per_gpu,
        "Server idle timeout [s]": f"{setting.idle_timeout:g}",
    }


def _samples(run: Simulated, model: Model, begun: float) -> list[Sample]:
    """Take samples of what each GPU did."""
    gpus = run.gpus
    assert gpus is not None
    at = np.arange(0.0, run.ended, _EVERY)
    shown = [utilization(*spans, at, model) for spans in zip(gpus.kernels, gpus.transfers, strict=True)]
    return [
        Sample(round(begun + time, 3), gpu, f"simulated:{gpu}", utilization_pct=value)
        for time, values in zip(at.tolist(), np.rint(shown).astype(int).T.tolist(), strict=True)
        for gpu, value in enumerate(values)
    ]


def utilization(kernels: Spans, transfers: Spans, at: Floats, model: Model) -> Floats:
    """Tell in percent what a GPU's monitor shows at each of some times: the mean over a window that has passed."""
    window, part = model.utilization_window, model.transfer_utilization
    computing, either = _seconds_in(kernels, at, window), _seconds_in(kernels + transfers, at, window)
    return np.clip(100.0 * (computing + part * (either - computing)) / window, 0.0, 100.0)


def _seconds_in(spans: Spans, at: Floats, window: float) -> Floats:
    """Tell for how much of the window before each time there was any of the spans."""
    if not spans:
        return np.zeros(len(at))
    begins, ends = np.array(sorted(spans)).T
    reached = np.maximum.accumulate(ends)
    # Spans that overlap are one: the seconds that each adds to those before it.
    before = np.append(-np.inf, reached[:-1])
    begins = np.maximum(begins, np.minimum(before, ends))
    ends = np.maximum(begins, ends)
    edges = np.stack([begins, ends], axis=-1).ravel()
    area = np.cumsum(np.stack([np.zeros(len(begins)), ends - begins], axis=-1).ravel())
    return np.asarray(np.interp(at, edges, area) - np.interp(at - window, edges, area))
