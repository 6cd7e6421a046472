"""Statistics of plain numbers that are right with few repeats, and the steps of a run's ramp.

Pure. Nothing here knows a file or a table. What requests of one run that follow each other tell stands in
kaas.analysis.dependence.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kaas.analysis import series
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats

NAN = float("nan")
CONFIDENCE = 0.95
_TO_SCATTER = 2
"""Values that tell how much they scatter."""
_MOST_PAIRED = 1000
"""Points of which all pairs are looked at."""
_AS_NORMAL = 1e5
"""Degrees of freedom from which on Student's t is the normal distribution, to five digits."""


class Interval(NamedTuple):
    """An estimate, and the limits between which the truth lies with some confidence; NaN is what is not known."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean of one sample less that of another, in their unit and in standard deviations; NaN is not known."""

    difference: Interval
    effect: Interval
    """Hedges' g."""
    p: float
    """How often chance alone makes a difference of at least this size."""


def t_quantile(part: float, degrees: float) -> float:
    """Give the value below which a part of Student's t distribution lies; NaN without a degree of freedom.

    With t = sqrt(degrees) * tan(angle) its density is that of cos(angle)^(degrees - 1), which is summed up here
    (to six digits: a test compares with the printed tables).

    Source: Student, "The Probable Error of a Mean", Biometrika 6 (1908).
    """
    if not degrees > 0:
        return NAN
    angles, below = _t_angles(degrees)
    return math.sqrt(min(degrees, _AS_NORMAL)) * math.tan(float(np.interp(part, below, angles)))


def t_beyond(t: float, degrees: float) -> float:
    """Give the part of Student's t distribution that is at least as far from 0 as `t`, on either side."""
    if math.isnan(t) or not degrees > 0:
        return NAN
    angles, below = _t_angles(degrees)
    angle = math.atan(abs(t) / math.sqrt(min(degrees, _AS_NORMAL)))
    return 2 * float(np.interp(-angle, angles, below))


def mean_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Give the mean of independent values, and its interval by Student's t, which is right with two and more.

    NaN among the values are left out. Fewer than two leave no interval.
    """
    known = _known(values)
    if not known.size:
        return Interval(NAN, NAN, NAN)
    mean = float(known.mean())
    if known.size < _TO_SCATTER:
        return Interval(mean, NAN, NAN)
    half = t_quantile((1 + confidence) / 2, known.size - 1) * float(known.std(ddof=1)) / math.sqrt(known.size)
    return Interval(mean, mean - half, mean + half)


def repeats_needed(values: ArrayLike, part: float = 0.05, *, most: int = 1000) -> float:
    """Give how many repeats an interval of +- `part` of the mean takes, if they scatter as these values do.

    NaN if that is not known or more than `most`; two repeats at least.
    """
    known = _known(values)
    if known.size < _TO_SCATTER or known.mean() == 0:
        return NAN
    relative = float(known.std(ddof=1)) / abs(float(known.mean()))

    def narrow_enough(n: int) -> bool:
        return t_quantile((1 + CONFIDENCE) / 2, n - 1) * relative / math.sqrt(n) <= part

    # With each more repeat the interval gets narrower.
    least = bisect_left(range(most + 1), True, lo=_TO_SCATTER, key=narrow_enough)
    return float(least) if least <= most else NAN


def welch(own: ArrayLike, other: ArrayLike) -> Difference:
    """Compare the means of two samples that may scatter differently.

    All is NaN but the difference itself where either side has fewer than two values, or where no value of either
    side differs from another of it: nothing tells then how much they scatter.

    Sources: B. L. Welch, "The Generalization of 'Student's' Problem", Biometrika 34 (1947); L. V. Hedges,
    "Distribution Theory for Glass's Estimator of Effect Size", Journal of Educational Statistics 6 (1981).
    """
    one, two = _known(own), _known(other)
    unknown = Interval(NAN, NAN, NAN)
    if not one.size or not two.size:
        return Difference(unknown, unknown, NAN)
    difference = float(one.mean() - two.mean())
    if min(one.size, two.size) < _TO_SCATTER or not (np.ptp(one) or np.ptp(two)):
        return Difference(Interval(difference, NAN, NAN), unknown, NAN)
    squares = [float(side.var(ddof=1)) / side.size for side in (one, two)]
    error = math.sqrt(sum(squares))
    degrees = sum(squares) ** 2 / sum(of**2 / (side.size - 1) for of, side in zip(squares, (one, two), strict=True))
    half = t_quantile((1 + CONFIDENCE) / 2, degrees) * error
    return Difference(
        Interval(difference, difference - half, difference + half),
        _effect(one, two, difference),
        t_beyond(difference / error, degrees),
    )


def trend(x: ArrayLike, y: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Give the median of the slopes between all pairs of points, which outliers do not turn, and its interval.

    NaN if all `x` are equal. Of very many points, the means of so many neighbours each are taken that there are 1000.

    Source: P. K. Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63 (1968).
    """
    run, rise = (_differences(side) for side in _merged(x, y))
    apart = run != 0
    slopes = np.sort(rise[apart] / run[apart])
    if not slopes.size:
        return Interval(NAN, NAN, NAN)
    points = min(np.size(x), _MOST_PAIRED)
    spread = math.sqrt(points * (points - 1) * (2 * points + 5) / 18)  # of the number of pairs that rise
    ranks = (slopes.size + np.array([-1, 1]) * t_quantile((1 + confidence) / 2, _AS_NORMAL) * spread) / 2
    low, high = slopes[np.clip(np.round(ranks).astype("int64"), 0, slopes.size - 1)]
    return Interval(float(np.median(slopes)), float(low), float(high))


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


@lru_cache(maxsize=16)  # one comparison asks for the same several times
def _t_angles(degrees: float) -> tuple[Floats, Floats]:
    """Give angles from -90 to 90 degrees and the part of Student's t distribution below the tangent of each."""
    degrees = min(degrees, _AS_NORMAL)
    # Of many degrees, only small angles count.
    angles = np.linspace(-np.pi / 2, np.pi / 2, 2 * 4096 + 1) * min(1.0, 12 / math.sqrt(degrees))
    density = np.cos(angles) ** (degrees - 1)
    below = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    return angles, below / below[-1]


def _effect(one: Floats, two: Floats, difference: float) -> Interval:
    degrees = one.size + two.size - 2
    pooled = math.sqrt(((one.size - 1) * one.var(ddof=1) + (two.size - 1) * two.var(ddof=1)) / degrees)
    effect = difference / pooled * (1 - 3 / (4 * degrees - 1))
    error = math.sqrt((one.size + two.size) / (one.size * two.size) + effect**2 / (2 * (one.size + two.size)))
    half = t_quantile((1 + CONFIDENCE) / 2, _AS_NORMAL) * error
    return Interval(effect, effect - half, effect + half)


def _known(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _merged(x: ArrayLike, y: ArrayLike) -> Sequence[Floats]:
    """Give the points, or the means of neighbours if they are very many: all pairs of them would fill the memory."""
    points = [np.asarray(side, dtype=np.float64) for side in (x, y)]
    if points[0].size <= _MOST_PAIRED:
        return points
    order = np.argsort(points[0], kind="stable")
    return [np.array([part.mean() for part in np.array_split(side[order], _MOST_PAIRED)]) for side in points]


def _differences(values: Floats) -> Floats:
    """Give the difference of each pair of values, the later one less the earlier."""
    earlier, later = np.triu_indices(values.size, 1)
    return values[later] - values[earlier]
