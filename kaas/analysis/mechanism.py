"""What a run shows besides the claims: why its GPUs were booted when they were, which places it lost, what limited it.

Tables that a reader can check, each from the run's own files. They were made for the published experiment, whose files
tell neither which GPU served a request nor what became of a client that fell silent; docs/published-run.md explains
what they show there. Pure, as series is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kaas.analysis import boot_judges, booted, replay, series, statistics, tables
from kaas.analysis.replay import Replay
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats
from kaas.analysis.setting import Setting, setting_of

LEFT_AFTER_S = 60.0
"""A worker of the original artifact left when it had no request for so long, and its place stayed listed as free."""
_MOST_REQUESTS = 50_000
"""Of a run that is told so much about: of longer ones it would take too long."""
_GROUP = 4
"""So many numbers of clients make a line, and so many requests are enough for a median."""
_SILENT = "the last of a client"
_TO_IDLE = "to an idle worker, in the replay"
_TYPES = {
    "what": "object",
    "came [s]": "float64",
    "client": "Int64",
    "silent since [s]": "float64",
    "GPU": "Int64",
    "worker": "Int64",
    "idle for [s]": "float64",
}


class Table(NamedTuple):
    """One table and the words around it."""

    name: str
    """Of its file."""
    title: str
    frame: pd.DataFrame
    how_to_read: str


def known(run: Run) -> bool:
    """Say if there is anything to tell: the paper's policy and load, GPUs that are not virtual, and not too much."""
    setting = setting_of(run)
    told = not setting.first_boots.empty and bool(setting.gpus and setting.workers_per_gpu) and setting.is_papers_policy
    return told and run.is_steps and not setting.is_virtual and len(run.requests) <= _MOST_REQUESTS


def all_tables(found: Sequence[Run]) -> list[Table]:
    """Give the tables of the runs of which there is anything to tell (see `known`); none, if there are no such runs."""
    settings = [setting_of(run) for run in found if known(run)]
    if not settings:
        return []
    runs = [setting.run for setting in settings]
    return [
        Table(
            "boots-replayed",
            "Every boot, replayed",
            _by_task(settings, boots),
            "Each line is one boot: when the request that caused it came to the server (its begin plus its "
            "setup), when the rule of placement, replayed over the requests of this run, boots that GPU, and by how "
            "much that is off. Beside it, when it would be booted if the requests that never had a reply held no "
            "place, and if a place were held until the client has its reply (instead of "
            f"{replay.HELD_OF_THE_REST:.0%} of what remains after the kernel).",
        ),
        Table(
            "server-logs",
            "Whose clock the server's log bears",
            _by_task(settings, logs),
            "Each line is one boot: what the log says, less the begin of its cold start at the client, and less "
            "that begin plus setup, which is when it came to the server. A server cannot boot before that: where the "
            "second is below 0, the log is none of the server's, and where the first is 0 it bears the client's time "
            "stamps.",
        ),
        Table(
            "lost-places",
            "Lost places",
            _by_task(settings, lost_places),
            "Each line is one repeat: how many clients had a reply and then never asked again while others did, "
            f"and how many requests the replay sends to a worker that had been idle for more than {LEFT_AFTER_S:g} s "
            "since its last request or since it was ready; first until clients ended to begin requests, then after "
            "that. Were workers to leave unnoticed, the two would be the same.",
        ),
        Table(
            "lost-requests",
            "Requests that never had a reply, and those sent to idle workers",
            _by_task(settings, lost_requests),
            "Each line is one request. Of a client that fell silent its last one, with the time at which it "
            "must have come to the server, after a setup as long as others' were then; of the replay, one that was "
            f"sent to a worker idle for more than {LEFT_AFTER_S:g} s (or nearly so: from {LEFT_AFTER_S - 5:g} s on). "
            "Which of two requests that come at nearly the same time went to the idle worker is not told by the "
            "files.",
        ),
        Table(
            "setup",
            "What a setup takes with others at it",
            setups(runs),
            "Each line is so many clients that set up their input at the same time (on average while one did): "
            "how long it took them (median), and so how many setups the machine ends in a second.",
        ),
        Table(
            "host-or-gpus",
            "Where the clients are",
            where_clients_are(runs),
            "Each line is a part of the ramp, over all repeats: how many clients set up their input, how many "
            "had a request at the server, both on average over time, how many requests were served in a second, and "
            "how busy the booted GPUs were. Where more clients only make more of them set up, the machine under the "
            "clients is the limit, and not its GPUs.",
        ),
        Table(
            "kernels",
            "The kernels of one GPU",
            _by_task(settings, kernels),
            "Each line is the steps of the ramp while there was one GPU: what so many clients got from it, how "
            "busy it was, and the time from the end of a kernel to that of the next, where both requests were there "
            "at once. Kernels that run one after the other never end at less than one kernel's time from each other; "
            "kernels that share the GPU do, whenever they began so.",
        ),
    ]


def write(found: Sequence[Run], folder: Path) -> list[Path]:
    """Write the tables as `table-<name>.csv` into `folder`, and give their paths.

    Raises:
        ResultsError: a file cannot be written.
    """
    return tables.write_frames({table.name: table.frame for table in all_tables(found)}, folder)


def boots(setting: Setting) -> pd.DataFrame:
    """Give when each GPU was booted and when the replay has it, as it is and if what matters were otherwise, in s."""
    run, gpus, workers = setting.run, setting.gpus or 0, setting.workers_per_gpu or 0
    frame = setting.first_boots.sort_index().rename("booted").to_frame()

    def first(of: Replay) -> "pd.Series[float]":
        return of.boots.groupby("gpu")["elapsed"].min()

    frame["replayed"] = first(setting.replay)
    frame["off"] = frame["replayed"] - frame["booted"]
    frame["if no place were lost"] = first(replay.replay(run, gpus, workers, lost_places=False))
    frame["if held for all of the rest"] = first(replay.replay(run, gpus, workers, held=1.0))
    return frame.add_suffix(" [s]")


def logs(setting: Setting) -> pd.DataFrame:
    """Give what the log says of each boot beside what the clients' files say of its cold start, in s (index: GPU)."""
    found = booted.boots(setting.run).set_index("gpu")
    columns = {
        "logged [s]": found["logged"],
        "less the cold start's begin [s]": found["logged"] - found["begin"],
        "less begin and setup [s]": found["logged"] - found["came"],
    }
    return pd.DataFrame(columns)


def lost_places(setting: Setting) -> pd.DataFrame:
    """Count the clients that fell silent and the requests that the replay sends to workers that had left."""
    requests, last = lost_requests(setting), float(setting.run.requests["elapsed"].max())
    fell_silent = requests["what"] == _SILENT
    to_one_that_left = (requests["what"] == _TO_IDLE) & (requests["idle for [s]"] > LEFT_AFTER_S)
    before = requests["came [s]"] <= last
    refused = int((setting.run.requests["status"] == "rejected").sum())
    counts = {
        "clients": int(setting.run.requests["copy"].max()) + 1,
        "fell silent": int((fell_silent & before).sum()),
        "sent to a worker that had left": int((to_one_that_left & before).sum()),
        "fell silent, after the last begin": int((fell_silent & ~before).sum()),
        "sent to a worker that had left, after the last begin": int((to_one_that_left & ~before).sum()),
        "refused": refused,
    }
    return pd.DataFrame([counts])


def lost_requests(setting: Setting) -> pd.DataFrame:
    """Give the requests without a reply, and those that the replay sends to a worker that is idle for very long.

    Columns: `what`, `came [s]`, `client`, `silent since [s]`, `GPU`, `worker` and `idle for [s]`.
    """
    replayed = setting.replay
    ready = replayed.boots.assign(ready=replayed.boots["elapsed"] + _until_ready(setting)).set_index("gpu")
    every = pd.concat([replayed.placed.assign(copy=setting.run.requests["copy"]), replayed.unanswered])
    every = every.dropna(subset=["worker"]).astype({"gpu": "int64", "worker": "int64"})
    at_boot = every["unused"] == every["gpu"].map(ready["elapsed"])
    idle = every["arrival"] - every["unused"].where(~at_boot, every["gpu"].map(ready["ready"]))
    sent = every.assign(idle=idle)[idle > LEFT_AFTER_S - 5]
    silent = replayed.unanswered
    columns = ["what", "came [s]", "client", "silent since [s]", "GPU", "worker", "idle for [s]"]
    first = pd.DataFrame(
        {
            "what": _SILENT,
            "came [s]": silent["arrival"],
            "client": silent["copy"],
            "silent since [s]": silent["silent since"],
        }
    )
    second = pd.DataFrame(
        {
            "what": _TO_IDLE,
            "came [s]": sent["arrival"],
            "client": sent["copy"],
            "GPU": sent["gpu"],
            "worker": sent["worker"] % (setting.workers_per_gpu or 1),
            "idle for [s]": sent["idle"],
        }
    )
    frame = pd.concat([one.reindex(columns=columns).astype(_TYPES) for one in (first, second)])
    return frame.sort_values("came [s]", kind="stable", ignore_index=True)


def _until_ready(setting: Setting) -> "pd.Series[float]":
    """Give how long it took until the workers of each boot of the replay were ready: what its cold start waited."""
    requests = setting.run.requests
    rest = requests["outer_time_ms"] - requests["setup_time"].fillna(0.0) - series.inside_ms(requests)
    waited = (rest - rest[series.warm(setting.run)].median()) / 1000
    cold = requests.index[requests["cold_start"]]
    return pd.Series(waited.loc[cold].to_numpy()).reindex(setting.replay.boots.index).fillna(0.0).clip(lower=0.0)


def setups(found: Sequence[Run]) -> pd.DataFrame:
    """Give the median setup of the requests by how many clients were in theirs meanwhile (index), and the rate."""
    together = pd.concat([_setup_and_company(run) for run in found])
    by_number = together.groupby(together["at once"].round().astype("int64").rename("clients in setup"))["setup"]
    frame = pd.DataFrame({"requests": by_number.size(), "setup [s]": by_number.median()})
    frame = frame[frame["requests"] >= _GROUP]
    frame["setups [1/s]"] = frame.index.to_numpy() / frame["setup [s]"]
    return frame


def _setup_and_company(run: Run) -> pd.DataFrame:
    """Give the setup of each request in s, and the mean number of clients that were in theirs meanwhile."""
    begin = run.requests["elapsed"].to_numpy()
    setup = run.requests["setup_time"].fillna(0.0).to_numpy() / 1000
    long = setup > 0
    spans = np.stack([begin[long], (begin + setup)[long]], axis=-1)
    at, number = _number_in(spans)
    area = np.append(0.0, np.cumsum(number[:-1] * np.diff(at)))
    inside = np.interp(spans, at, area) if len(spans) else spans  # a client may have nothing to set up
    return pd.DataFrame({"setup": setup[long], "at once": (inside[:, 1] - inside[:, 0]) / setup[long]})


def where_clients_are(found: Sequence[Run], group: int = _GROUP) -> pd.DataFrame:
    """Give for each group of numbers of clients (index) where they were, what they got, and how busy GPUs were."""
    parts = pd.concat([_where(run, group) for run in found])
    seconds = parts["seconds"].groupby(level=0).sum()
    sums = parts.drop(columns="seconds").mul(parts["seconds"], axis="index").groupby(level=0).sum(min_count=1)
    frame = sums.div(seconds, axis="index")
    names = [f"{first} to {first + group - 1}" if group > 1 else first for first in frame.index]
    return frame.set_axis(pd.Index(names, name="clients"), axis="index")


def _where(run: Run, group: int) -> pd.DataFrame:
    steps = statistics.steps(run)
    edges = np.append(steps["begin"], steps["end"].iloc[-1:])
    requests = run.requests
    came = requests["elapsed"] + requests["setup_time"].fillna(0.0) / 1000
    setup = _means(np.stack([requests["elapsed"], came], axis=-1), edges)
    server = series.means_of_steps(series.in_flight(run), edges)
    runners = series.task_runners(run)
    first_boots = booted.first(run)
    busy = run.sampled[run.sampled["elapsed"] >= run.sampled["gpu"].map(first_boots).fillna(np.inf)]
    step = np.searchsorted(edges, busy["elapsed"], side="right") - 1
    utilization = busy["utilization_pct"].groupby(step).mean().reindex(range(len(steps))).to_numpy()
    return pd.DataFrame(
        {
            "seconds": steps["end"] - steps["begin"],
            "in setup": setup,
            "at the server": server,
            "served [1/s]": steps["throughput"],
            "task runners": series.means_of_steps(runners, edges) if len(runners) else np.nan,
            "utilization of the booted [%]": utilization,
        }
    ).set_axis(((steps["clients"] - 1) // group * group + 1).astype("int64"), axis="index")


def _means(spans: Floats, edges: Floats) -> Floats:
    at, number = _number_in(spans)
    return series.means_of_steps(pd.Series(number, index=at), edges)


def _number_in(spans: Floats) -> tuple[Floats, Floats]:
    """Give the times at which the number of spans changes, and the number from then on."""
    at = np.append(spans[:, 0], spans[:, 1])
    order = np.argsort(at, kind="stable")
    return at[order], np.cumsum(np.repeat([1.0, -1.0], len(spans))[order])


def kernels(setting: Setting) -> pd.DataFrame:
    """Give what the steps show that ended before the second GPU was booted (index: clients), and the kernels' ends."""
    run, first_boots = setting.run, setting.first_boots
    until = float(first_boots.iloc[1]) if len(first_boots) > 1 else np.inf
    ends = run.ends[run.requests["status"] == "ok"]
    # The first of all requests waits for the boot: what comes before the end of it says nothing.
    ready = float(ends.min())
    steps = setting.steps[(setting.steps["end"] <= until) & (setting.steps["end"] > ready)]
    begin = steps["begin"].clip(lower=ready)
    served = [int(((ends > at) & (ends <= end)).sum()) for at, end in zip(begin, steps["end"], strict=True)]
    first = run.sampled[run.sampled["gpu"] == first_boots.index[0]].set_index("elapsed")["utilization_pct"]
    gaps = pd.Series(boot_judges.gaps_of_one_gpu(setting))
    columns = {
        "served [1/s]": served / (steps["end"] - begin),
        "utilization [%]": [first[at:end].mean() for at, end in zip(begin, steps["end"], strict=True)],
        "ends counted": len(gaps),
        "shortest from end to end [s]": gaps.min(),
        "median [s]": gaps.median(),
    }
    return pd.DataFrame(columns, index=steps.index).set_axis(steps["clients"].astype("int64"), axis="index")


def _by_task(settings: Sequence[Setting], of: Callable[[Setting], pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat({setting.run.task: of(setting) for setting in settings}, names=["task"])
    return frame.droplevel([level for level, name in enumerate(frame.index.names) if name is None])  # they count rows
