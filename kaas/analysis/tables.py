"""The numbers of runs as tables: per repeat, pooled over repeats, the boots, Little's law; and all of them as CSV."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from kaas.analysis import booted, claims, dependence, energy, facts, lag, runs, series, statistics, validity
from kaas.analysis.runs import Run
from kaas.analysis.validity import repeats
from kaas.errors import ResultsError

HOW_TO_READ_REPEATS = (
    "Each column is one repeat. Warm requests met a worker that was ready; a cold one made the server boot a task "
    "runner. The last step is the time with the most clients, until the ramp ends. A dash is what is not known or "
    "cannot be trusted (see 'What was checked'). A p95 is given from 20 requests on, a p99 from 100 on. In an open "
    "loop times count from a request's arrival, and 'lag' is how long it then waited for a client."
)
HOW_TO_READ_POOLED = (
    "Each line is one number, over all repeats: its mean with the 95 % interval of that mean (Student's t, which is "
    "wide where the repeats are few), its range, and its standard deviation (of the sample). 'Repeats for 5 %' says "
    "how many repeats an interval of +-5 % of the mean would take, if they go on to scatter like that. For a "
    "percentile, 'all requests' is the same percentile over the requests of all repeats together. One repeat alone "
    "has no interval."
)
HOW_TO_READ_BOOTS = (
    "Each line is one GPU. 'First booted' is the time from a repeat's first request to the GPU's first boot, which is"
    " when the request that caused it came to the server (its begin plus its setup). 'Boot took' is the time from the"
    " boot in the server's log until the last of its workers was ready, where that was logged."
)
HOW_TO_READ_LITTLES_LAW = (
    "Each line checks the time stamps of one repeat. Over its last step, the mean number of requests in flight should"
    " be the throughput times the mean completion time, so that the ratio is 1. Requests that cross the edges of the "
    "step make it differ a little. A clock or a count that is wrong makes it differ a lot."
)

FIRST_BOOTED = "first booted [s]"
BOOT_TOOK = "boot took [s]"
RATIO = "ratio"

_PERCENTILES = {"p50": (0.50, 1), "p95": (0.95, 20), "p99": (0.99, 100)}
"""The part of the requests below it, and how many it takes: with fewer, it would be the slowest one by another name."""
_DIGITS = "%.10g"
"""Of a number in a file: all that were measured, and none that only come of how a machine reckons."""
_COUNTS = ("requests", "ok", "refused", "failed", "cold starts", "waited for a boot besides")
_METHOD = "energy method"
_ZONE = "monitoring's clock ahead of UTC [h]"
_NO_MEANS = (_METHOD, _ZONE)


def per_repeat(found: Sequence[Run]) -> pd.DataFrame:
    """Give the main numbers of each repeat: a row a repeat (index: its task), a column a number, with its unit.

    Counts are whole numbers (Int64). `failed` is every request that was neither ok nor refused; where there are any,
    `failed: <status>` tells them apart. `throughput` is of the requests that were ok, per second of the whole run;
    `throughput in the last step` is that of the longest stretch of time with the most clients, which ends, if nothing
    else ends it, with the ramp (see `statistics.steps`). The clock of the monitoring is known only where its stamps
    were local (see `runs.Run`).
    p95 is given from 20 requests on, p99 from 100 on. NaN, or `-` for the energy method, is what is not known: no time
    of a run whose time stamps cannot be right, and no energy where too little of the run was sampled.
    """
    frame = pd.DataFrame([_numbers(run) for run in found], index=pd.Index([run.task for run in found], name="task"))
    told_apart = sorted(name for name in frame.columns if name.startswith("failed: "))
    counts = [*_COUNTS[:4], *told_apart, *_COUNTS[4:]]
    frame[told_apart] = frame[told_apart].fillna(0)
    return frame[counts + [name for name in frame.columns if name not in counts]].astype(dict.fromkeys(counts, "Int64"))


def boots(found: Sequence[Run]) -> pd.DataFrame:
    """Give when each GPU (index: its number) was booted for the first time, in each repeat.

    Columns have two levels. `first booted [s]` holds a column a repeat (its task): seconds from its first request (see
    kaas.analysis.booted); NaN if the GPU never was. `boot took [s]` holds one for each repeat whose server logged it:
    seconds from the logged boot until the last worker was ready; NaN if one never was.
    """
    first = {run.task: booted.first(run) * (1 if run.timed else statistics.NAN) for run in found}
    took = {run.task: _boots_took(run) for run in found}
    columns = {FIRST_BOOTED: pd.DataFrame(first), BOOT_TOOK: pd.DataFrame(took).dropna(axis="columns", how="all")}
    frame = pd.concat(columns, axis="columns", names=["number", "task"])
    return frame.sort_index().rename_axis("gpu").astype("float64")


def boots_by_task(found: Sequence[Run]) -> pd.DataFrame:
    """Give the same as `boots`, a row for each repeat and GPU (index: task, gpu) and a column for each number."""
    frame, nothing = boots(found), statistics.NAN
    by_task = {
        run.task: pd.DataFrame(
            {name: frame.get((name, run.task), nothing) for name in (FIRST_BOOTED, BOOT_TOOK)}, index=frame.index
        )
        for run in found
    }
    return pd.concat(by_task, names=["task"])


def littles_law(found: Sequence[Run]) -> pd.DataFrame:
    """Compare the mean number of requests in flight with throughput times mean completion time (index: the task).

    Over a whole run the two are the same sum written twice. Over a part of it they are not: requests cross its edges,
    what is counted in flight are the intervals from a request's begin to its end as far as they lie inside, and
    throughput and completion time are of the requests that ended inside. So this takes the last step (see
    `statistics.steps`), where the number of clients is steady, and all requests, whatever became of them.

    Columns: `begin [s]` and `end [s]` of the step, `mean in flight`, `throughput [1/s]`, `mean completion time [ms]`,
    `throughput x time`, and the `ratio` of the mean in flight to it. NaN where the step has no length or no request
    ended in it.

    Source: J. D. C. Little, "A Proof for the Queuing Formula L = lambda W", Operations Research 9 (1961).
    """
    frame = pd.DataFrame([_littles_law(run) for run in found], index=[run.task for run in found])
    frame["throughput x time"] = frame["throughput [1/s]"] * frame["mean completion time [ms]"] / 1000
    frame[RATIO] = frame["mean in flight"] / frame["throughput x time"]
    return frame.rename_axis("task")


def checks(found: Sequence[Run]) -> pd.DataFrame:
    """Give what was checked of each repeat, and what was found (see `validity.table`), those of its kind included."""
    of_runs = [(run.task, check) for run in found for check in run.checks]
    of_repeats = [check for several in runs.by_experiment(found).values() for check in repeats.check(several)]
    return validity.table([*of_runs, *of_repeats])


def numbers(found: Sequence[Run]) -> pd.DataFrame:
    """Give all numbers of each repeat that can be averaged: `per_repeat`, the ratio of Little's law, the boots."""
    first = boots(found)[FIRST_BOOTED].T.add_prefix("GPU ").add_suffix(f" {FIRST_BOOTED}")
    ratio = littles_law(found)[RATIO].rename("Little's law, ratio")
    frame = per_repeat(found).drop(columns=list(_NO_MEANS)).astype("float64")
    return frame.join(ratio).join(first).rename_axis("number", axis="columns")


def pooled(found: Sequence[Run]) -> pd.DataFrame:
    """Give each of `numbers` over the repeats of one experiment (index: the number).

    Columns: `repeats` in which it is known, their `mean`, `ci low` and `ci high` (see `statistics.mean_interval`),
    `min` and `max`; for percentiles, `all requests`: the same one over the requests of all repeats together; `sd`, that
    of the sample, and `repeats for 5 %` (see `statistics.repeats_needed`). What takes two repeats is NaN with fewer.

    Raises:
        ResultsError: the runs are of several experiments.
    """
    one_experiment(found)
    frame = numbers(found)
    intervals = [statistics.mean_interval(values) for values in frame.to_numpy().T]
    together = {"warm": pd.concat([_warm(run) for run in found]), "cold": pd.concat([_cold(run) for run in found])}
    columns = {
        "repeats": frame.count(),
        "mean": [interval.mean for interval in intervals],
        "ci low": [interval.low for interval in intervals],
        "ci high": [interval.high for interval in intervals],
        "min": frame.min(),
        "max": frame.max(),
        "all requests": pd.Series(_percentiles(together)),
        "sd": frame.std(),
        "repeats for 5 %": [statistics.repeats_needed(values) for values in frame.to_numpy().T],
    }
    return pd.DataFrame(columns, index=frame.columns)


def one_experiment(found: Sequence[Run]) -> None:
    """Raise `ResultsError` if the runs are of several experiments: their numbers must not be mixed."""
    names = list(runs.by_experiment(found))
    if len(names) > 1:
        raise ResultsError(f"runs of several experiments cannot be pooled ({', '.join(names)}): take one at a time")


def write(found: Sequence[Run], folder: Path) -> list[Path]:
    """Write all tables as CSV files into `folder`, which is made if need be, and `summary.json`; give their paths.

    These are `table-repeats.csv`, `table-pooled.csv` (of the repeats that are alike, see `repeats.alike`),
    `table-boots.csv`, `table-littles-law.csv`, `table-claims.csv`, `table-within-repeats.csv` and, of the runs of which
    any energy was logged, `table-energy.csv`; earlier ones are replaced, each at once.

    Raises:
        ResultsError: a file cannot be written.
    """
    by_experiment = {name: pooled(repeats.alike(several).pooled) for name, several in runs.by_experiment(found).items()}
    frames = {
        "repeats": per_repeat(found),
        "pooled": pd.concat(by_experiment, names=["experiment"]),
        "boots": boots_by_task(found),
        "littles-law": littles_law(found),
        "claims": claims.check(found),
        "within-repeats": dependence.within(found),
    }
    if by_task := {run.task: energy.energy(run) for run in found if energy.logged(run)}:
        frames["energy"] = pd.concat(by_task, names=["task"]).rename(columns=energy.LABELS)
    told = facts.summary(found, frames | {"validity": checks(found)})
    return [*write_frames(frames, folder), facts.write(told, folder)]


def write_frames(frames: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each frame to `table-<its name>.csv` in `folder`, which is made if need be; give their paths.

    Raises:
        ResultsError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"{folder}: {error.strerror}") from None
    return [_write(frame, folder / f"table-{name}.csv") for name, frame in frames.items()]


def _write(table: pd.DataFrame, path: Path) -> Path:
    def written(begun: Path) -> None:
        table.to_csv(begun, lineterminator="\n", encoding="utf-8", float_format=_DIGITS)

    return facts.put(path, written)


@lru_cache(32)  # for the page, each of its tables, and those on disk
def _numbers(run: Run) -> Mapping[str, float | str]:
    requests = run.requests
    status = requests["status"].value_counts()
    served, refused = int(status.get("ok", 0)), int(status.get("rejected", 0))
    failed = status.drop(["ok", "rejected"], errors="ignore")
    waited = int((requests["waited_for_boot"] & ~requests["cold_start"]).sum())
    step = statistics.last_step(run)
    return {
        "requests": len(requests),
        "ok": served,
        "refused": refused,
        "failed": int(failed.sum()),
        **{f"failed: {name}": int(number) for name, number in failed.items()},
        "cold starts": int(requests["cold_start"].sum()),
        "waited for a boot besides": waited if run.knows_waits else statistics.NAN,
        "duration [s]": run.duration if run.timed else statistics.NAN,
        **_percentiles({"warm": _warm(run), "cold": _cold(run)}),
        "throughput [1/s]": served / run.duration if run.duration and run.timed else statistics.NAN,
        "throughput in the last step [1/s]": statistics.NAN if step is None else step.throughput,
        "energy [J]": statistics.NAN,
        "energy per served request [J]": statistics.NAN,
        _METHOD: energy.UNKNOWN,
        _ZONE: statistics.NAN if run.zone_offset_h is None else run.zone_offset_h,
        **dict.fromkeys(energy.LABELS_OF_RUN.values(), statistics.NAN),
        **(energy.numbers(run) if run.energy_is_covered else {}),
        **(lag.numbers(run) if run.is_open_loop and run.timed else {}),
    }


def _warm(run: Run) -> "pd.Series[float]":
    return run.requests["outer_time_ms"][series.warm(run)]


def _cold(run: Run) -> "pd.Series[float]":
    return run.requests["outer_time_ms"][run.requests["cold_start"] & (run.requests["status"] == "ok")]


def _percentiles(times_ms: "dict[str, pd.Series[float]]") -> dict[str, float]:
    return {
        f"{kind} completion time, {name} [ms]": float(times.quantile(part)) if len(times) >= needed else statistics.NAN
        for kind, times in times_ms.items()
        for name, (part, needed) in _PERCENTILES.items()
    }


def _boots_took(run: Run) -> "pd.Series[float]":
    """Give the seconds of each GPU's first boot; NaN where not all of its workers became ready."""
    boot = (run.events["event"] == "booted").groupby(run.events["gpu"]).cumsum()
    of_first = run.events[boot == 1]
    logged = of_first[of_first["event"] == "booted"].set_index("gpu")
    # A worker that is started anew, in the place of one that was lost, is ready once more.
    ready = of_first[of_first["event"] == "ready"].drop_duplicates(["gpu", "worker"]).groupby("gpu")["elapsed"]
    is_whole = ready.count().reindex(logged.index) >= logged["num_workers"]
    return (ready.max() - logged["elapsed"]).where(is_whole & run.timed)


def _littles_law(run: Run) -> dict[str, float]:
    step = statistics.last_step(run)
    begin, end = (statistics.NAN, statistics.NAN) if step is None else step[:2]
    ended = run.ends.between(begin, end, inclusive="left")
    return {
        "begin [s]": begin,
        "end [s]": end,
        "mean in flight": statistics.mean_in_flight(run, begin, end),
        "throughput [1/s]": int(ended.sum()) / (end - begin),
        "mean completion time [ms]": float(run.requests["outer_time_ms"][ended].mean()),
    }
