"""What is found of a parameter: its value, how sure that is, and where it comes from; and how that is found."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kaas.simulation.observed import Flags, Floats, Observed

_BLOCKS, _STRETCH = 12, 10.0
"""Groups of stretches of so many seconds, each of which is left out in turn."""
_ROBUST = 1.4826
"""From the median deviation to the standard deviation, of what is normal."""
ASSUMED = float("nan")
"""The error of what the run does not tell."""


class Fit(NamedTuple):
    """One parameter: value, standard error (NaN if it is assumed), and where it comes from."""

    value: float | tuple[float, ...]
    plus_minus: float | tuple[float, ...]
    source: str


Fits = dict[str, Fit]


def estimate(pool: Observed, of: Callable[[Flags], Floats]) -> tuple[Floats, Floats]:
    """Give what `of` finds in the requests chosen, of all, and its standard errors."""
    group = (pool.begin // _STRETCH).astype(int) % _BLOCKS
    parts = np.array([of(group != block) for block in range(_BLOCKS)])
    return of(np.ones(len(pool), dtype=bool)), np.nanstd(parts, axis=0) * np.sqrt(_BLOCKS - 1)


def fits(pool: Observed, of: Callable[[Flags], Sequence[float]], sources: dict[str, str]) -> Fits:
    """Fit parameters, none below 0: those whose sources are given, in their order."""
    values, errors = estimate(pool, lambda chosen: np.array(of(chosen)))
    return {
        name: Fit(max(0.0, float(value)), float(error), source)
        for (name, source), value, error in zip(sources.items(), values, errors, strict=True)
    }


def robust(values: Floats) -> float:
    """Give the standard deviation, whatever a few outliers are; 0.0 of nothing."""
    return float(_ROBUST * np.median(np.abs(values - np.median(values)))) if len(values) else 0.0


def median(values: Floats) -> float:
    """Give the median; NaN of nothing."""
    return float(np.median(values)) if len(values) else float("nan")


def line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Fit a straight line, and again without what is far from it: intercept, slope and spread around it."""
    kept = np.ones(len(x), dtype=bool)
    slope = intercept = spread = 0.0
    for _ in range(2):
        flat = not kept.any() or np.ptp(x[kept]) == 0
        slope, intercept = (0.0, median(y)) if flat else np.polyfit(x[kept], y[kept], 1)
        off = y - intercept - slope * x
        spread = robust(off)
        kept = np.abs(off) <= max(4 * spread, 1e-9)
    return float(intercept), float(slope), spread
