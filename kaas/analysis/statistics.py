"""What tables and claims are reckoned from: the steps of a run's ramp, and statistics of plain numbers.

Pure. Nothing here knows a file or a table.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kaas.analysis import series
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats

NAN = float("nan")


class Interval(NamedTuple):
    """A mean, and the limits between which it lies with some confidence; NaN is what is not known."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Give the mean of `values`, and its percentile bootstrap interval: the same for the same seed.

    NaN among the values are left out. Fewer than two leave no interval. That of two is their own range, which misses
    the true mean half of the time, and that of a few is too narrow: no resample goes beyond what was seen.

    Source: B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7 (1979).
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Interval(NAN, NAN, NAN)
    if known.size == 1:
        return Interval(float(known[0]), NAN, NAN)
    drawn = np.random.default_rng(seed).integers(known.size, size=(resamples, known.size))
    low, high = np.quantile(known[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(known.mean()), float(low), float(high))


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Give the median of the slopes between all pairs of points: outliers do not turn it. NaN if all `x` are equal.

    Source: P. K. Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63 (1968).
    """
    run, rise = _differences(x), _differences(y)
    apart = run != 0
    return float(np.median(rise[apart] / run[apart])) if apart.any() else NAN


def rank_agreement(x: ArrayLike, y: ArrayLike) -> float:
    """Give how far `y` goes up and down with `x`: 1 if always, -1 if always against it, NaN if there is nothing to say.

    Of the pairs of points that differ in both, it is the part that agrees less the part that does not. Other than
    with a correlation of ranks, steps are no flaw: a `y` that stays while `x` grows does not count.

    Source: L. A. Goodman and W. H. Kruskal, "Measures of Association for Cross Classifications", JASA 49 (1954).
    """
    signs = np.sign(_differences(x)) * np.sign(_differences(y))
    return float(signs.sum() / np.abs(signs).sum()) if signs.any() else NAN


class Step(NamedTuple):
    """A stretch of time, in elapsed seconds, with the same number of clients, and the requests served in it per s."""

    begin: float
    end: float
    clients: float
    throughput: float


def steps(run: Run) -> pd.DataFrame:
    """Give the steps of the ramp, in their order, with a column for each field of `Step`.

    A request counts for the throughput of the step in which it ended, if it ended with the status ok. The last step
    ends with the ramp: from then on the clients only leave, one after the other.
    """
    clients = series.clients(run)
    begin = clients.index.to_numpy(dtype=np.float64)
    end = np.append(begin[1:], run.ramp_end)
    clients, begin, end = clients[end > begin], begin[end > begin], end[end > begin]
    served = np.sort(run.ends[run.requests["status"] == "ok"].to_numpy())
    throughput = (np.searchsorted(served, end) - np.searchsorted(served, begin)) / (end - begin)
    columns = (begin, end, clients.to_numpy(), throughput)
    return pd.DataFrame(dict(zip(Step._fields, columns, strict=True)))


def last_step(run: Run) -> Step | None:
    """Give the step with the most clients, the longest if there are several.

    None if it is shorter than the requests that end in it: the rate would be that of chance. None, too, if the time
    stamps of the run cannot be right.
    """
    ramp = steps(run)
    most = ramp[ramp["clients"] == ramp["clients"].max()]
    if most.empty or not run.timed:
        return None
    step = Step(*map(float, most.iloc[int((most["end"] - most["begin"]).argmax())]))
    inside = run.requests["outer_time_ms"][run.ends.between(step.begin, step.end, inclusive="left")]
    return None if step.end - step.begin < inside.median() / 1000 else step


def mean_in_flight(run: Run, begin: float, end: float) -> float:
    """Give the number of requests under way, as seen by the clients, averaged over the time from `begin` to `end`."""
    inside = run.ends.clip(upper=end) - run.requests["elapsed"].clip(lower=begin)
    return float(inside.clip(lower=0).sum()) / (end - begin)


def _differences(values: ArrayLike) -> Floats:
    """Give the difference of each pair of values, the later one less the earlier."""
    array = np.asarray(values, dtype=np.float64)
    earlier, later = np.triu_indices(array.size, 1)
    return array[later] - array[earlier]
