"""What is drawn and counted of a run, derived from its frames: as steps, means and masks over elapsed seconds."""

import pandas as pd

from kaas.analysis import samples
from kaas.analysis.runs import Run

Numbers = pd.Series  # of numbers over elapsed seconds


def clients(run: Run) -> Numbers:
    """Give the number of clients as steps: each value holds from its elapsed second on; the first stands at 0."""
    counted = run.requests.sort_values("counted", kind="stable").set_index("counted")["concurrency"]
    steps = counted.groupby(level=0).last()
    begin = pd.Series([steps.iloc[0]], index=[0.0])
    return _only_changes(pd.concat([begin, steps[steps.index > 0]])).rename("clients").rename_axis("elapsed")


def task_runners(run: Run) -> Numbers:
    """Give the number of task runners as steps, each booted one counting 1 until it is stopped; 0 at the begin.

    Empty if the run has no events.
    """
    changes = run.events.set_index("elapsed")["event"].map({"booted": 1, "stopped": -1}).dropna().astype("int64")
    if run.events.empty:
        return changes.rename("task_runners")
    begin = pd.Series([0], index=[min(0.0, changes.index.min())] if len(changes) else [0.0])
    steps = pd.concat([begin, changes]).cumsum().groupby(level=0).last()
    return _only_changes(steps).rename("task_runners").rename_axis("elapsed")


def utilization(run: Run, window_s: float) -> pd.DataFrame:
    """Give each GPU's utilization in percent (columns: GPU numbers) as a mean; see `samples.rolling_means`.

    Empty if the run's monitoring has none.
    """
    return samples.rolling_means(run.monitoring, "utilization_pct", window_s)


def power(run: Run, window_s: float) -> pd.DataFrame:
    """Give each GPU's power in watts, as `utilization` does."""
    return samples.rolling_means(run.monitoring, "power_w", window_s)


def warm(run: Run) -> "pd.Series[bool]":
    """Say of each request if a ready worker served it: neither a cold start nor one that waited for a boot."""
    frame = run.requests
    return (frame["status"] == "ok") & ~frame["cold_start"] & ~frame["waited_for_boot"]


def _only_changes(steps: Numbers) -> Numbers:
    return steps[steps.ne(steps.shift())]
