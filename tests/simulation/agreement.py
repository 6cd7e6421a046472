"""What a simulation of the published run must come to, from the five published repeats; and where it does not."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kaas.simulation import calibration, observed, ways
from kaas.simulation.experiment import Simulated, simulate
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting

BOOTED = (0.7, 41.3, 92.7, 148.2, 200.9, 253.2, 319.8)
"""GPUs 0 to 6, in seconds after the first request: means of the five repeats, of when each cold start came to the
server. (The means of the published README mix two clocks.)"""
REQUESTS = 2786.0
"""The middle of the five repeats' 2767 to 2805."""
LATE_THROUGHPUT = 8.0
RAMP_END = 480.3
"""No client begins a request after that: what is booted then is an effect of the end."""
PEAKS = (147.0, 150.0)
"""The fourth boot comes before the one or after the other, and both happen."""


MANY = 20
"""Repeats that tell how the last boot scatters."""


def published() -> Model:
    return calibration.load("published").model


def wrong(model: Model) -> dict[str, Model]:
    """The model with one part of the mechanism left out or changed."""
    alone = model.setup_seconds[0]
    return {
        "kernels shared": replace(model, kernels_shared=1.0),
        "setup never saturates": replace(model, setup_seconds=tuple(alone for _ in model.setup_seconds)),
        "workers never leave": replace(model, leaves_after=0.0),
        "place held to the end": replace(model, rest_held=1.0),
        "kernel 5 % longer": replace(model, kernel=1.05 * model.kernel),
    }


def run(model: Model, seeds: Iterable[int]) -> list[Simulated]:
    return [simulate(model, replace(Setting(), observed=False), seed) for seed in seeds]


def disagreements(found: list[Simulated]) -> list[str]:
    """Say in what repeats differ from the published ones; what it takes many seeds to tell is left out for few."""
    told = ways.summary(found)
    boots = np.nanmean(told.boots[:7], axis=1)
    off = boots / BOOTED - 1
    said = [f"GPU {gpu} at {boots[gpu]:.1f} s, {off[gpu]:+.1%}" for gpu in range(1, 7) if not abs(off[gpu]) <= 0.05]
    if not np.abs(off[1:]).mean() <= 0.025:
        said.append(f"GPUs 1 to 6 {np.abs(off[1:]).mean():.1%} off on average")
    if not abs(told.requests.mean() / REQUESTS - 1) <= 0.03:
        said.append(f"{told.requests.mean():.0f} requests")
    if not abs(told.throughput.mean() - LATE_THROUGHPUT) <= 0.4:
        said.append(f"{told.throughput.mean():.2f}/s in the last minute")
    if not 3 <= told.unanswered.mean() <= 8:
        said.append(f"{told.unanswered.mean():.1f} clients ended")
    early, late = int((told.boots[3] < PEAKS[0]).sum()), int((told.boots[3] > PEAKS[1]).sum())
    if not late or (len(found) >= MANY and (early < 3 or early + late < 0.8 * len(found))):
        said.append(f"GPU 3 has no two peaks: {np.sort(told.boots[3]).round(1).tolist()}")
    if len(found) >= MANY:
        last = told.boots[7][told.boots[7] <= RAMP_END]
        if len(last) < MANY / 2 or not 430 <= last.mean() <= 470 or not 15 <= last.std(ddof=1) <= 40:
            said.append(f"GPU 7 at {np.sort(last).round(1).tolist()}")
    return said


def completion(found: list[Simulated]) -> dict[int, float]:
    """Mean completion time in each step, in seconds: the mean of the repeats' means."""
    each = [observed.of_rows(one.rows, interval=10.0).completion() for one in found]
    return {step: float(np.mean([one[step] for one in each if step in one])) for step in each[0]}
