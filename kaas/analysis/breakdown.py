"""What a run's requests and boots are made of: by number of clients, phase, GPU and worker. Pure, as series is."""

import pandas as pd

from kaas.analysis import series
from kaas.analysis.runs import Run

PARTS = ("setup", "queue", "kernel", "rest")
# As the server writes it in a `ready` event: "fork 0.004 s, import 0.021 s".
_PHASE = r"(?P<phase>[^,]+?) (?P<seconds>\d+(?:\.\d+)?) s(?:,|$)"


def knows_queue(run: Run) -> bool:
    """Say if the time in the server's queue and in the kernel was logged; in the published files, it was not."""
    return bool((run.requests["kernel_ms"] > 0).any())


def completion(run: Run, width: int = 1) -> pd.DataFrame:
    """Divide the completion time of the served requests into its parts, by number of clients.

    Columns: the means of `PARTS` in ms, which add up to the mean completion time; `median` of it; `requests`, their
    number. `kernel` is the kernel's call as a whole where that was logged, else what the kernel itself measured (and
    `queue` is NaN); `rest` is what remains: the ways between client and worker. Of an open loop there is `lag`, too:
    how long they had waited for a client.

    Args:
        run: any.
        width: so many numbers of clients make a group; the index is the lowest of each.
    """
    frame = run.requests[run.requests["status"] == "ok"]
    known = knows_queue(run)
    parts = pd.DataFrame(
        {
            "setup": frame["setup_time"].fillna(0.0),
            "queue": frame["queued_ms"] if known else float("nan"),
            "kernel": frame["kernel_ms" if known else "inner_time_ms"],
            "outer": frame["outer_time_ms"],
        }
    )
    parts["rest"] = parts["outer"] - parts[["setup", "queue", "kernel"]].sum(axis="columns")
    names = list(PARTS)
    if run.is_open_loop:
        names = ["lag", *names]
        parts = parts.assign(lag=frame["lag_ms"], rest=parts["rest"] - frame["lag_ms"])
    by_clients = parts.groupby((frame["concurrency"] // width * width).rename("clients"))
    means = by_clients[names].mean()
    return means.assign(median=by_clients["outer"].median(), requests=by_clients.size())


def boots(run: Run) -> pd.DataFrame:
    """Give the phases of each boot, as its slowest worker went through them, in seconds.

    Columns: `gpu`, `elapsed` (when it was booted), `worker`, then each phase by its name in the order of the log, and
    `rest`: what is left until the worker was ready. Empty if the server logged no worker that became ready.
    """
    events = run.events
    booted = events[events["event"] == "booted"][["gpu", "elapsed"]]
    ready = events[events["event"] == "ready"][["gpu", "elapsed", "worker", "detail"]]
    ready = ready.rename(columns={"elapsed": "ready"})
    if booted.empty or ready.empty:
        return pd.DataFrame(columns=["gpu", "elapsed", "worker", "rest"])
    pairs = pd.merge_asof(ready, booted.assign(boot=booted.index), left_on="ready", right_on="elapsed", by="gpu")
    pairs = pairs.dropna(subset=["boot"])
    # A worker that was lost is replaced later, which is no part of the boot.
    pairs = pairs.drop_duplicates(["boot", "worker"])
    slowest = pairs.drop_duplicates("boot", keep="last").set_index("boot").sort_index()
    found = slowest["detail"].str.extractall(_PHASE).reset_index()
    phases = found.assign(seconds=found["seconds"].astype("float64"), phase=found["phase"].str.strip())
    by_phase = phases.pivot_table(index="boot", columns="phase", values="seconds", aggfunc="sum", sort=False)
    frame = slowest[["gpu", "elapsed", "worker"]].join(by_phase)
    known = frame.drop(columns=["gpu", "elapsed", "worker"]).sum(axis="columns")
    frame["rest"] = (slowest["ready"] - slowest["elapsed"] - known).clip(lower=0.0)
    return frame.fillna(dict.fromkeys(by_phase.columns, 0.0)).reset_index(drop=True)


def cold_starts(run: Run) -> pd.DataFrame:
    """Give the served cold starts: `elapsed`, `booted`, `gpu`, `cold_ms` and `warm_ms`.

    The last is the median of the warm requests that were sent with as many clients, NaN if there was none. `booted` is
    the elapsed second of the boot: the boots are taken in their order, if there are as many; else it is NaN. So is the
    GPU found where it was not logged with the request, and else missing.
    """
    frame = run.requests
    medians = frame[series.warm(run)].groupby("concurrency")["outer_time_ms"].median()
    every = frame[frame["cold_start"]].reset_index(drop=True)
    booted = run.events[run.events["event"] == "booted"][["elapsed", "gpu"]].reset_index(drop=True)
    booted = booted.astype({"gpu": "Int64"}) if len(booted) == len(every) else booted.iloc[:0]
    booted = booted.reindex(every.index)
    cold = every.assign(gpu=every["gpu"].fillna(booted["gpu"]), booted=booted["elapsed"])
    cold = cold.assign(warm_ms=every["concurrency"].map(medians).astype("float64"))
    cold = cold[cold["status"] == "ok"].rename(columns={"outer_time_ms": "cold_ms"})
    return cold[["elapsed", "booted", "gpu", "cold_ms", "warm_ms"]].reset_index(drop=True)


def by_worker(run: Run) -> "pd.Series[int]":
    """Count the served requests of each worker (index: `gpu`, `worker`); empty if the files do not say who served."""
    frame = run.requests[run.requests["status"] == "ok"].dropna(subset=["gpu", "worker"])
    return frame.groupby(["gpu", "worker"]).size().rename("requests")
