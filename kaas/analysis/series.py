"""What is drawn and counted of a run over its time, derived from its frames: steps, means and counts.

Pure: frames in, numbers out. What does not run over time stands in kaas.analysis.breakdown.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kaas.analysis import energy, samples
from kaas.analysis.runs import Run
from kaas.analysis.validity import ending, rows

Numbers = pd.Series  # of numbers over elapsed seconds
Floats = npt.NDArray[np.float64]

# Nothing drawn for so long is a gap in the samples: even an idle GPU draws something.
_GAP_S = 2.0
_MOST_OF_IT = 0.9
_ASKS_AGAIN_WITHIN_S = 1.0
"""A client that is there, as a rule."""


def clients(run: Run) -> Numbers:
    """Give the number of clients as steps: each value holds from its elapsed second on; the first stands at 0.

    In a closed loop of another shape than the experiment's, it is 0 as long as nobody asks for anything.
    """
    counted = run.requests.sort_values("counted", kind="stable").set_index("counted")["concurrency"]
    if not run.is_steps and not run.is_open_loop:
        counted = pd.concat([_nobody(run), counted]).sort_index(kind="stable")
    steps = counted.groupby(level=0).last()
    begin = pd.Series([steps.iloc[0]], index=[0.0])
    return _only_changes(pd.concat([begin, steps[steps.index > 0]])).rename("clients").rename_axis("elapsed")


def _nobody(run: Run) -> "pd.Series[int]":
    """Give zeros where no request is under way for longer than a client takes to ask again."""
    idle_since = run.ends.cummax()
    is_long = run.requests["elapsed"].shift(-1) - idle_since > _ASKS_AGAIN_WITHIN_S
    return pd.Series(0, index=idle_since[is_long].to_numpy())


def under_way(run: Run) -> Numbers:
    """Give the number of requests that have arrived and have no reply yet, as steps; 0 at the begin."""
    begun = pd.Series(1, index=run.requests["elapsed"].to_numpy())
    ended = pd.Series(-1, index=run.ends.to_numpy())
    return _summed_up(pd.concat([pd.Series([0], index=[0.0]), begun, ended])).rename("under_way")


def demand(run: Run) -> Numbers:
    """Give what there is to do: the clients, or in an open loop the requests that are under way."""
    return under_way(run) if run.is_open_loop else clients(run)


def alive(run: Run) -> Numbers:
    """Give the number of clients that were asked for and still had replies, as `clients` does.

    It is that of `clients` where none hung, the file does not tell clients apart, or clients come and go by the shape.
    """
    asked = clients(run)
    if not run.is_steps:
        return asked.rename("alive")
    silent, never = ending.silent_clients(run.requests)
    if not rows.tells_clients(run.requests) or not (len(silent) or never):
        return asked.rename("alive")
    gone = np.sort(silent.to_numpy())
    times = np.union1d(asked.index.to_numpy(), gone[gone > 0])
    asked_then = asked.to_numpy()[np.searchsorted(asked.index.to_numpy(), times, side="right") - 1]
    started = np.maximum.accumulate(asked_then)
    left = started - np.searchsorted(gone, times, side="right") - np.searchsorted(never, started)
    return _only_changes(pd.Series(np.clip(left, 0, asked_then), index=pd.Index(times, name="elapsed"), name="alive"))


def task_runners(run: Run) -> Numbers:
    """Give the number of task runners as steps, each booted one counting 1 until it is stopped; 0 at the begin.

    Empty if the run has no events.
    """
    return _booted(run, pd.Series(1, index=run.events.index)).rename("task_runners")


def workers(run: Run) -> Numbers:
    """Give the number of workers of all booted task runners, as `task_runners` does."""
    return _booted(run, run.events["num_workers"]).rename("workers")


def in_flight(run: Run) -> Numbers:
    """Give the number of requests at the server as steps, as far as the clients can tell.

    A request counts from when its input was set up until its reply is there; a refused one never does.
    """
    taken = run.requests["status"] != "rejected"
    frame = run.requests[taken]
    begun = pd.Series(1, index=frame["sent"] + frame["setup_time"].fillna(0.0) / 1000)
    ended = pd.Series(-1, index=run.ends[taken])
    return _summed_up(pd.concat([pd.Series([0], index=[0.0]), begun, ended])).rename("in_flight")


def utilization(run: Run, window_s: float) -> pd.DataFrame:
    """Give each GPU's utilization in percent (columns: GPU numbers) as a mean; see `samples.rolling_means`.

    Empty if the run's monitoring has none.
    """
    return samples.rolling_means(run.monitoring, "utilization_pct", window_s)


def mean_utilization(run: Run) -> float:
    """Give the mean in percent over the run of each GPU's own samples, averaged over the GPUs; NaN if there is none.

    It is one of the run only if `run.utilization_is_covered`.
    """
    return float(run.sampled.groupby("gpu")["utilization_pct"].mean().mean())


def power(run: Run, window_s: float) -> pd.DataFrame:
    """Give each GPU's power in watts, as `utilization` does."""
    return samples.rolling_means(run.monitoring, "power_w", window_s)


def warm(run: Run) -> "pd.Series[bool]":
    """Say of each request if a ready worker served it: neither a cold start nor one that waited for a boot."""
    frame = run.requests
    return (frame["status"] == "ok") & ~frame["cold_start"] & ~frame["waited_for_boot"]


def inside_ms(requests: pd.DataFrame) -> "pd.Series[float]":
    """Give what requests took in a worker, queueing for it included; where that was not logged, what the kernel says.

    The published kernel measured itself from before its upload to after its download.
    """
    logged = requests["queued_ms"].fillna(0.0) + requests["kernel_ms"]
    return logged.where(requests["kernel_ms"] > 0, requests["inner_time_ms"])


def completion(run: Run, window_s: float) -> Numbers:
    """Give the median completion time in ms of the warm requests that began in the last `window_s`."""
    chosen = run.requests[warm(run)]
    if chosen.empty:
        return pd.Series(dtype="float64", index=pd.Index([], dtype="float64", name="elapsed"))
    times = pd.Series(chosen["outer_time_ms"].to_numpy(), index=pd.to_timedelta(chosen["elapsed"].to_numpy(), unit="s"))
    medians = pd.Series(times.rolling(pd.Timedelta(seconds=window_s)).median().to_numpy(), index=chosen["elapsed"])
    return medians.groupby(level=0).last().rename("outer_time_ms")


def edges(duration_s: float, most: int = 60) -> Floats:
    """Divide a run into at most about `most` bins of a round width.

    The last ends with the run: it may be up to half a width wider than the others, or narrower. Divide by its own
    width what is a rate.
    """
    width = round_up(duration_s / most) if duration_s > 0 else 1.0
    inner = max(1, round(duration_s / width))
    return np.append(np.arange(inner) * width, duration_s or 1.0)


def round_up(value: float) -> float:
    """Give the next of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ... that is not below the value (above 0)."""
    power_of_ten = 10.0 ** np.floor(np.log10(value))
    step = next(step for step in (1, 2, 5, 10) if value <= step * power_of_ten * (1 + 1e-9))
    return float(f"{step * power_of_ten:.1g}")


def counts(elapsed: "pd.Series[float]", bins: Floats) -> Floats:
    """Count what happened in each bin; what happened at the end of the last is in it."""
    return np.histogram(elapsed, bins)[0].astype("float64")


def means_of_steps(steps: Numbers, bins: Floats) -> Floats:
    """Give the mean of a step function over time in each bin; the first step's value holds before it, too."""
    times, values = steps.index.to_numpy(dtype="float64"), steps.to_numpy(dtype="float64")
    areas = np.append(0.0, np.cumsum(values[:-1] * np.diff(times)))
    place = np.clip(np.searchsorted(times, bins, side="right") - 1, 0, None)
    means: Floats = np.diff(areas[place] + values[place] * (bins - times[place])) / np.diff(bins)
    return means


def peaks_of_steps(steps: Numbers, bins: Floats) -> Floats:
    """Give the highest value of a step function in each bin, as it stood when the bin began included."""
    times, values = steps.index.to_numpy(dtype="float64"), steps.to_numpy(dtype="float64")
    at_begin = values[np.clip(np.searchsorted(times, bins[:-1], side="right") - 1, 0, None)]
    inside = pd.Series(values).groupby(np.searchsorted(bins, times, side="right") - 1).max()
    peaks: Floats = np.fmax(at_begin, inside.reindex(range(len(bins) - 1)).to_numpy())
    return peaks


def throughput(run: Run, bins: Floats) -> pd.DataFrame:
    """Give the requests served in each bin (index: its begin), counted when their reply was there.

    Columns: `served`; `per_s`; `clients`, the mean number in the bin of those alive; `per_client`, which is `per_s`
    divided by it.
    """
    served = _served(run, bins)
    frame = pd.DataFrame({"served": served, "per_s": served / np.diff(bins)}, index=pd.Index(bins[:-1], name="elapsed"))
    frame["clients"] = means_of_steps(alive(run), bins)
    frame["per_client"] = frame["per_s"] / frame["clients"].where(frame["clients"] > 0)
    return frame


def energy_per_request(run: Run, bins: Floats) -> Floats:
    """Give for each bin the joules that all GPUs drew in it, for each request that was served in it.

    NaN where none was served, or where the energy of a part of the bin is not known.
    """
    joules = energy.cumulative(run)
    if joules.empty:
        return np.full(len(bins) - 1, np.nan)
    times, values = joules.index.to_numpy(dtype="float64"), joules.to_numpy(dtype="float64")
    seconds = np.diff(times)
    known = np.where((seconds > _GAP_S) & (np.diff(values) == 0), 0.0, seconds)
    covered = np.diff(np.interp(bins, times, np.append(0.0, np.cumsum(known)))) / np.diff(bins)
    served = _served(run, bins)
    each: Floats = np.full(len(served), np.nan)
    drawn = np.diff(np.interp(bins, times, values))
    np.divide(drawn, served, out=each, where=(served > 0) & (covered > _MOST_OF_IT))
    return each


def at(values: Numbers, grid: Floats, longest_s: float = np.inf) -> Floats:
    """Give for each second of the grid the last value before it; NaN if that is more than `longest_s` old."""
    if values.empty:
        return np.full(len(grid), np.nan)
    times = values.index.to_numpy(dtype="float64")
    place = np.searchsorted(times, grid, side="right") - 1
    known = (place >= 0) & (grid - times[place] <= longest_s)
    return np.where(known, values.to_numpy(dtype="float64")[place], np.nan)


def spread(found: Sequence[Run], grid: Floats, values_of: Callable[[Run, Floats], Floats]) -> pd.DataFrame:
    """Put repeats side by side on a common grid: `median`, `low` and `high` of them (index: the grid, in s).

    A repeat that has ended counts no more.

    Args:
        found: the repeats.
        grid: elapsed seconds.
        values_of: gives a repeat's values on a grid, NaN where it has none.
    """
    repeats = np.array([np.where(grid <= run.duration, values_of(run, grid), np.nan) for run in found])
    by_repeat = pd.DataFrame(repeats)
    columns = {"median": by_repeat.median(), "low": by_repeat.min(), "high": by_repeat.max()}
    return pd.DataFrame(columns).set_index(pd.Index(grid, name="elapsed"))


def _served(run: Run, bins: Floats) -> Floats:
    return counts(run.ends[run.requests["status"] == "ok"], bins)


def _booted(run: Run, weights: "pd.Series[int]") -> Numbers:
    events = run.events
    signs = events["event"].map({"booted": 1, "stopped": -1})
    changes = (signs * weights).set_axis(events["elapsed"]).dropna().astype("int64")
    if events.empty:
        return changes.rename_axis("elapsed")
    begin = pd.Series([0], index=[min(0.0, changes.index.min())] if len(changes) else [0.0])
    return _summed_up(pd.concat([begin, changes]))


def _summed_up(changes: Numbers) -> Numbers:
    return _only_changes(changes.groupby(level=0).sum().cumsum()).rename_axis("elapsed")


def _only_changes(steps: Numbers) -> Numbers:
    return steps[steps.ne(steps.shift())]
