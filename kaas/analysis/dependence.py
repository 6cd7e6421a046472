"""What requests of one run tell that follow each other: how many independent ones they are worth, and if they drift.

Pure. A request that met a queue is followed by others that meet it, too: so as many numbers tell less than their count
says, and an interval that takes them for independent ones is too narrow.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kaas.analysis import series, statistics
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats
from kaas.analysis.statistics import NAN, Interval

HOW_TO_READ = (
    "Each column is one repeat. Requests that follow each other are alike: after a slow one, the next is likely to be"
    " slow, too. 'Effective number' says how many independent requests all of them are worth. The 95 % interval of a "
    "percentile comes from drawing whole stretches of requests anew (block bootstrap). The lines below tell whether a"
    " step of the ramp is steady: by how much its second half differs from its first, with the 95 % interval over the"
    " steps. An interval without 0 in it shows a drift within the steps; then the mean over a step is a mean of "
    "something that changed."
)

_RESAMPLES = 1000
_MOST_DRAWN = 40_000_000
_LEAST_RESAMPLES = 40
_BLOCKS_AT_LEAST = 8
_IN_A_HALF = 3
"""Requests that each half of a step needs at least."""


def effective_number(values: ArrayLike) -> float:
    """Give how many independent values would make a mean as sure as that of these, which stand in order of time.

    The variance of the means of consecutive batches, as many as are in each, tells; never more than there are. NaN for
    fewer than 64 values, or where none differs from another.

    Source: G. S. Fishman, "Grouping Observations in Digital Simulation", Management Science 24 (1978).
    """
    array = np.asarray(values, dtype=np.float64)
    length = _block(array.size)
    batches = array.size // length if length else 0
    if batches < _BLOCKS_AT_LEAST or not np.ptp(array):
        return NAN
    means = array[: batches * length].reshape(batches, length).mean(axis=1)
    worth = array.size * float(array.var(ddof=1)) / (length * float(means.var(ddof=1)) or NAN)
    return min(worth, float(array.size))


def block_bootstrap(values: ArrayLike, parts: Sequence[float], *, seed: int = 0) -> list[Interval]:
    """Give quantiles of values that stand in order of time, each with its 95 % interval by drawing blocks of them.

    The same seed gives the same. No interval for fewer than 64 values.

    Source: H. R. Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics 17
    (1989); the blocks go round, as in D. N. Politis and J. P. Romano's (1992).
    """
    array = np.asarray(values, dtype=np.float64)
    found = np.quantile(array, parts) if array.size else np.full(len(parts), NAN)
    length = _block(array.size)
    if not length or array.size // length < _BLOCKS_AT_LEAST:
        return [Interval(float(one), NAN, NAN) for one in found]
    blocks = -(-array.size // length)
    draws = int(np.clip(_MOST_DRAWN // array.size, _LEAST_RESAMPLES, _RESAMPLES))
    generator, within = np.random.default_rng(seed), np.arange(length)
    drawn = np.empty((draws, len(parts)))
    for row in drawn:
        places = (generator.integers(array.size, size=(blocks, 1)) + within).ravel()[: array.size] % array.size
        row[:] = np.quantile(array[places], parts)
    limits = np.quantile(drawn, [(1 - statistics.CONFIDENCE) / 2, (1 + statistics.CONFIDENCE) / 2], axis=0)
    return [Interval(*map(float, one)) for one in zip(found, *limits, strict=True)]


def within(found: Sequence[Run]) -> pd.DataFrame:
    """Give what the requests of each repeat tell by themselves (index: the task).

    Columns: `warm requests`, their `effective number` (of the completion times less their straight line over the
    clients), `p50`, `p95` and `p99` of the completion time in ms, each with `low` and `high`; `steps` that have enough
    requests in either half, and by how many percent of the first half's the second half's throughput and median
    completion time differ, again with `low` and `high`. NaN is what is not known.
    """
    return pd.DataFrame([_within(run) for run in found], index=pd.Index([run.task for run in found], name="task"))


@lru_cache(32)  # for the table in the page, and for the one on disk
def _within(run: Run) -> dict[str, float]:
    warm = run.requests[series.warm(run)]
    times = warm["outer_time_ms"]
    around = _about_their_line(warm["concurrency"], times)
    numbers: dict[str, float] = {"warm requests": len(times), "effective number": effective_number(around)}
    parts = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    for name, interval in zip(parts, block_bootstrap(times, list(parts.values())), strict=True):
        numbers |= _columns(f"{name} [ms]", interval)
    halves = _halves(run)
    numbers["steps"] = len(halves)
    for name in ("throughput", "p50"):
        numbers |= _columns(f"second half less first, {name} [%]", statistics.mean_interval(halves[name]))
    return numbers


def _about_their_line(clients: "pd.Series[int]", times: "pd.Series[float]") -> ArrayLike:
    """Give the times less their straight line over the clients, whose growth is no dependence."""
    if clients.nunique() < 2:  # noqa: PLR2004
        return times.to_numpy(dtype="float64")
    line = np.polynomial.Polynomial.fit(clients, times, 1)
    return np.asarray(times.to_numpy() - line(clients.to_numpy()), dtype="float64")


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}


def _halves(run: Run) -> pd.DataFrame:
    """Give by how many percent the second half of each step differs from its first, in throughput and median."""
    steps = statistics.steps(run)
    middle = (steps["begin"] + steps["end"]) / 2
    # The first step waits for the first boot, and is no steady state.
    edges = np.append(np.stack([steps["begin"], middle], axis=-1)[1:].ravel(), steps["end"].iloc[-1:])
    if len(edges) < 3:  # noqa: PLR2004
        return pd.DataFrame({"throughput": [], "p50": []}, dtype="float64")
    warm = series.warm(run)
    ends, times = run.ends[warm].to_numpy(), run.requests["outer_time_ms"][warm].to_numpy()
    half = np.searchsorted(edges, ends, side="right") - 1
    medians = pd.Series(times).groupby(half).median().reindex(range(len(edges) - 1)).to_numpy()
    counts: Floats = np.bincount(half[(half >= 0) & (half < len(edges) - 1)], minlength=len(edges) - 1).astype(
        "float64"
    )
    enough = (counts[::2] >= _IN_A_HALF) & (counts[1::2] >= _IN_A_HALF)
    columns = {"throughput": counts, "p50": medians}
    return pd.DataFrame({name: 100 * (of[1::2][enough] / of[::2][enough] - 1) for name, of in columns.items()})


def _block(size: int) -> int:
    return round(math.sqrt(size))
