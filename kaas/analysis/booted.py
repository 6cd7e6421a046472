"""When each GPU was booted, by one definition for all runs: when the request that caused it came to the server.

That is the begin of its cold start plus its setup. In the server's log a boot follows it by a few ms. But not every log
is one of the server: those of the published repeats with refusals bear the begins of the cold starts at the client, so
that their boots are too early by the setup. Pure, as series is.
"""

import pandas as pd

from kaas.analysis.runs import Run

CLOCKS_APART_S = 1.0
"""By how much the server's clock may differ from that of the clients."""
_ROUNDED_S = 0.001


def boots(run: Run) -> pd.DataFrame:
    """Give each boot that the log has, in its order of time, with its cold start.

    Columns: `gpu`; `workers`, their number; `logged`, elapsed second by the log; `request`, the row of the cold start
    in whose time it lies (missing if there is none); `begin` of that and `came`, which is its begin plus setup (NaN if
    missing); `booted`: `came`, or what was logged where there is no cold start, or it came long before the boot (out
    of a queue).
    """
    requests, ends = run.requests, run.ends
    is_cold = requests["cold_start"]
    cold = sorted(zip(ends[is_cold], requests["sent"][is_cold], requests.index[is_cold], strict=True))
    logged = run.events[run.events["event"] == "booted"].sort_values("elapsed", kind="stable", ignore_index=True)
    frame = logged[["gpu", "num_workers", "elapsed"]].set_axis(["gpu", "workers", "logged"], axis="columns")
    matched: list[int | None] = []
    for boot in frame["logged"]:
        # Of several at that time, the one that ends first is of no use to a later boot.
        around = (one for one in cold if one[1] - CLOCKS_APART_S <= boot <= one[0] + CLOCKS_APART_S)
        match = next(around, None)
        if match:
            cold.remove(match)
        matched.append(None if match is None else int(match[2]))
    frame["request"] = pd.array(matched, dtype="Int64")
    known = frame["request"].dropna().astype("int64")
    begin, setup = (pd.Series(requests[name].loc[known].to_numpy(), known.index) for name in ("sent", "setup_time"))
    frame["begin"] = begin.reindex(frame.index)
    frame["came"] = frame["begin"] + setup.fillna(0.0).reindex(frame.index) / 1000
    is_of_it = frame["logged"] - frame["came"] <= CLOCKS_APART_S
    return frame.assign(booted=frame["came"].where(is_of_it, frame["logged"]))


def first(run: Run) -> "pd.Series[float]":
    """Give the elapsed second at which each GPU (index: its number) was booted for the first time, in order of time."""
    return boots(run).groupby("gpu")["booted"].min().sort_values()


def changes(run: Run) -> pd.DataFrame:
    """Give each boot, and each stop that the log has, in order: `elapsed` second, `workers` more or less, and `gpu`."""
    more = boots(run)[["booted", "workers", "gpu"]].set_axis(["elapsed", "workers", "gpu"], axis="columns")
    stopped = run.events[run.events["event"] == "stopped"]
    fewer = stopped[["elapsed", "num_workers", "gpu"]].set_axis(["elapsed", "workers", "gpu"], axis="columns")
    both = [more, fewer.assign(workers=-fewer["workers"])]
    return pd.concat(both).sort_values("elapsed", kind="stable", ignore_index=True)


def bears_begins(run: Run) -> bool:
    """Say if the log bears the begins of the cold starts at the client, to a ms, and so is none of the server."""
    found = boots(run)
    at_begin = (found["logged"] - found["begin"]).abs() < _ROUNDED_S
    return len(found) > 0 and bool((at_begin & (found["came"] - found["logged"] > 2 * _ROUNDED_S)).all())
