"""Simulates repeats of an experiment, the published way and this harness's, writes them down and sums them up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kaas.clock import MADE_UP
from kaas.results import RunFiles
from kaas.simulation import files, observed
from kaas.simulation.calibration import Calibration
from kaas.simulation.experiment import Simulated, simulate
from kaas.simulation.model import Model
from kaas.simulation.observed import Floats, Observed
from kaas.simulation.setting import Setting

LAST_MINUTE = 50.0
"""Seconds before the end of the ramp, over which the throughput is counted; not over the last two."""
_BETWEEN = 60.0
"""Seconds from the end of one repeat to the begin of the next."""


class Way(NamedTuple):
    """In what the original and this harness differ, as far as a run shows it."""

    name: str
    keeps_places: bool
    idle_timeout: float
    backoff: float

    def model(self, model: Model) -> Model:
        """Give the model of this way."""
        return replace(model, leaves_after=0.0) if self.keeps_places else model

    def setting(self, setting: Setting) -> Setting:
        """Give the setting of this way."""
        return replace(setting, idle_timeout=self.idle_timeout, backoff=self.backoff)


PUBLISHED = Way("as published", keeps_places=False, idle_timeout=0.0, backoff=0.0)
"""Workers leave unnoticed when they are idle, and their places are lost; nothing is ever stopped."""
HARNESS = Way("as this harness does", keeps_places=True, idle_timeout=60.0, backoff=0.1)
"""No place is lost, and task runners are stopped as a whole."""


def run(
    calibration: Calibration, setting: Setting, way: Way, seeds: range, *, parent: Path, experiment: str
) -> list[Simulated]:
    """Simulate one repeat for each seed, and write each as `results-<experiment>/<experiment>-<number>...`.

    Args:
        calibration: of the GPUs and clients.
        setting: what is to be simulated.
        way: the original's or ours.
        seeds: one for each repeat.
        parent: where the folder is made.
        experiment: names the folder and the files.

    Raises:
        ResultsError: a file is there already, or cannot be written.
    """
    begun, found = MADE_UP, []
    model, setting = way.model(calibration.model), way.setting(setting)
    facts = {"Calibration": calibration.name, "Calibration about": calibration.about, "Way": way.name}
    for number, seed in enumerate(seeds, 1):
        one = simulate(model, setting, seed)
        target = RunFiles.of(experiment, f"{experiment}-{number}", parent)
        files.write(one, model, target, facts, seed=seed, begun=begun)
        begun += one.ended + _BETWEEN
        found.append(one)
    return found


class Summary(NamedTuple):
    """The main numbers of repeats: arrays with a value for each of them; a row for each GPU in `boots`.

    `boots` are in seconds from the first request's begin to when its cold start came to the server (NaN: never);
    `throughput` in 1/s, over the last minute but its end.
    """

    boots: Floats
    requests: Floats
    refused: Floats
    unanswered: Floats
    throughput: Floats


def summary(found: list[Simulated]) -> Summary:
    """Sum up repeats."""
    runs = [observed.of_rows(one.rows) for one in found]
    gpus = found[0].setting.gpus
    boots = np.full((gpus, len(found)), np.nan)
    for number, one in enumerate(found):
        first = min(row.timestamp for row in one.rows)
        for event in reversed(one.events):
            if event.event == "booted":
                boots[event.gpu, number] = event.timestamp - first
    return Summary(
        boots,
        np.array([len(run) for run in runs], dtype=float),
        np.array([(~run.ok).sum() for run in runs], dtype=float),
        np.array([one.unanswered for one in found], dtype=float),
        np.array([late_throughput(run, one.setting.shape.duration) for run, one in zip(runs, found, strict=True)]),
    )


def late_throughput(run: Observed, duration: float) -> float:
    """Tell how many requests a second were served in the last minute of a ramp, in 1/s."""
    return run.throughput(max(0.0, duration - LAST_MINUTE), max(0.0, duration - 2.0))


def table(ways: dict[str, Summary]) -> str:
    """Write summaries side by side, a column for each: means over repeats, and +- their standard deviation."""
    lines: list[tuple[str, Callable[[Summary], Floats]]] = [
        (f"GPU {gpu} booted at [s]", lambda one, gpu=gpu: one.boots[gpu])  # type: ignore[misc]
        for gpu in range(min(len(one.boots) for one in ways.values()))
    ]
    lines += [
        ("requests", lambda one: one.requests),
        ("refused", lambda one: one.refused),
        ("clients without a reply", lambda one: one.unanswered),
        ("served in the last minute [1/s]", lambda one: one.throughput),
    ]
    text = [["", *ways]] + [[name, *(mean(of(one)) for one in ways.values())] for name, of in lines]
    return columns(text)


def columns(text: list[list[str]]) -> str:
    """Write rows of cells below each other, the first of each to the left."""
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = []
    for first, *others in text:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def mean(values: Floats, form: str = ".1f", form_of_spread: str = "") -> str:
    """Write the mean of those values that are known, +- their standard deviation, and of how many of them that is."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "never"
    spread = f" +- {known.std(ddof=1):{form_of_spread or form}}" if len(known) > 1 else ""
    some = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{known.mean():{form}}{spread}{some}"
