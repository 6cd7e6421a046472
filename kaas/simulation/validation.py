"""How far does the model predict a run? Fitted to the first repeat of a results folder, it is held against the others.

What was set (ramp, GPUs, workers, policy) is known from the description; of the other repeats nothing is.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from kaas import description
from kaas.errors import ResultsError
from kaas.policy import named
from kaas.ramp import Ramp
from kaas.simulation import fitting, observed, ways
from kaas.simulation.experiment import simulate
from kaas.simulation.model import Model
from kaas.simulation.observed import Observed
from kaas.simulation.setting import PAPER, Setting

_MOST_WAITING = 1024
"""Of a queue: the server's default, since no description tells another."""


def validate(folder: Path, seeds: range) -> str:
    """Fit the model to the first repeat, simulate it with many seeds, and say how far that is from the other repeats.

    Args:
        folder: a results folder with two repeats at least.
        seeds: one for each simulated run.

    Raises:
        ResultsError: there are not two repeats, or the first tells too little.
    """
    first, *others = observed.read(folder)
    if not others:
        raise ResultsError(f"{folder} has one repeat only: it takes two, one to fit the model to and one to predict")
    setting = _setting(description.read(folder / f"{first.name}.md"))
    fitted = fitting.fit([first], setting.gpus, setting.workers_per_gpu)
    model = Model(**{name: one.value for name, one in fitted.items()})  # type: ignore[arg-type]
    simulated = (simulate(model, setting, seed) for seed in seeds)
    predicted = [observed.of_rows(one.rows, interval=first.interval) for one in simulated]
    lines = [["", "fitted to", "predicted", "measured", "error"]]
    for name, figure in _figures(setting).items():
        values = [np.array([figure(run) for run in runs], dtype=float) for runs in ([first], predicted, others)]
        cells = [ways.mean(one, ".4g", ".2g") for one in values]
        lines.append([name, *cells, _error(*(_mean(one) for one in values[1:]))])
    return (
        f"{ways.columns(lines)}\n{_steps(predicted, others)}\nFitted to {first.name}; measured: "
        f"{', '.join(run.name for run in others)}; predicted: {len(predicted)} simulated runs, not measured"
    )


def _setting(told: Mapping[str, str]) -> Setting:
    """Read what was set; what a description does not tell, as a published one, is the paper's."""

    def number(name: str, default: float) -> float:
        try:
            return float(told.get(name, default))
        except ValueError:
            raise ResultsError(f"the description says {name}: {told[name]}, which is no number") from None

    ramp = Ramp(
        int(number("Minimum parallel requests", PAPER.min_clients)),
        int(number("Maximum parallel requests", PAPER.max_clients)),
        int(number("Step size", PAPER.step_size)),
        number("Interval", PAPER.interval),
    )
    waiting = _MOST_WAITING if told.get("Server when full") == "queue" else 0
    gpus = int(number("Server number of GPUs", Setting.gpus))
    return Setting(
        gpus=gpus,
        workers_per_gpu=int(number("Server workers per GPU", Setting.workers_per_gpu)),
        shape=ramp,
        policy=partial(named, told.get("Server policy", "paper"), waiting),
        idle_timeout=number("Server idle timeout [s]", 0.0),
        backoff=number("Backoff", 0.0),
        gpus_per_host=gpus,
        observed=False,
    )


def _figures(setting: Setting) -> dict[str, Callable[[Observed], float]]:
    def booted(gpu: int, run: Observed) -> float:
        return float(run.boots[gpu]) if gpu < len(run.boots) else float("nan")

    figures: dict[str, Callable[[Observed], float]] = {
        f"GPU {gpu} booted at [s]": partial(booted, gpu) for gpu in range(1, setting.gpus)
    }
    return figures | {
        "requests": len,
        "refused": lambda run: float((~run.ok).sum()),
        "served [1/s]": lambda run: run.throughput(0.0, setting.shape.duration),
        "completion time, p50 [s]": lambda run: float(np.percentile(run.outer[run.ok], 50)),
        "completion time, p95 [s]": lambda run: float(np.percentile(run.outer[run.ok], 95)),
    }


def _steps(predicted: list[Observed], others: list[Observed]) -> str:
    """Say how far the mean completion time in each step is off."""
    found, wanted = ([run.completion() for run in runs] for runs in (predicted, others))
    off = {}
    for step in sorted(set().union(*found) & set().union(*wanted)):
        ours, theirs = (np.mean([run[step] for run in runs if step in run]) for runs in (found, wanted))
        off[step] = abs(float(ours / theirs - 1))
    if not off:
        return "Completion time in each step: not known"
    worst = max(off, key=off.__getitem__)
    mean = float(np.mean(list(off.values())))
    return f"Completion time in each step: {mean:.1%} off on average, {off[worst]:.1%} at most, in step {worst}"


def _mean(values: observed.Floats) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _error(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.1%}" if measured and not np.isnan(predicted + measured) else "-"
