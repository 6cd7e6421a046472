"""What the rule of placement makes of a run's own arrivals and ends: which GPUs it boots and when.

Pure. The rule is that of the server itself (kaas.policy). What it decides follows from when invocations come and go,
so the boots of a run can be checked against its requests: no clock or log of the server goes into it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from kaas.analysis import series
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats, Numbers
from kaas.placement import Placement
from kaas.policy import Paper

HELD_OF_THE_REST = 0.2
"""The part of what a request takes besides setup and kernel in which its place is still held.

The only parameter: found on the published repeats 1 and 2, whose boots all come out right from 0.18 to 0.22. What comes
after it are the reply's way and the client's own clearing up, which are nothing to the server.
"""
_NEAR_S = 5.0
"""Other clients' setups that tell how long that of a request without a reply took: those begun within this."""
_STOPS_WITHIN_S = 0.2
"""How long it may take until all clients know that the run is over."""

_RELEASED, _STOPPED, _REFUSED, _ARRIVED, _UNANSWERED = range(5)
"""In the order in which they happen at one moment."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What the rule gives for a run; all times are elapsed seconds."""

    boots: pd.DataFrame
    """In order: `elapsed`, `gpu`, and `request`, the row of the one that caused it (missing: one without a reply)."""
    placed: pd.DataFrame
    """For each request (by its row): `arrival`, `release`, `refused`, `taken` (places, when it came), `gpu` and
    `worker` (missing if it was refused, or the rule had no place for it), and `unused`: when that worker had last been
    released or booted."""
    unanswered: pd.DataFrame
    """For each request that never had a reply, and holds its place for ever: `copy`, `silent since`, and as above."""

    @cached_property
    def demand(self) -> Numbers:
        """How many requests needed a place, as steps over elapsed seconds, whether there was one or not."""
        taken = self.placed[~self.placed["refused"]]
        came = np.concatenate([taken["arrival"], self.unanswered["arrival"]])
        at = np.concatenate([taken["release"], came])
        order = np.argsort(at, kind="stable")
        steps = np.repeat([-1, 1], [len(taken), len(came)])[order].cumsum()
        return pd.Series(np.append(0, steps), index=np.append(0.0, at[order]))

    def peak(self, begin: float, end: float) -> int:
        """Give the highest demand from one elapsed second to another."""
        steps = self.demand
        first, after = np.searchsorted(steps.index, [begin, end])
        return int(steps.iloc[max(0, first - 1) : max(1, after)].max())


def replay(
    run: Run, gpus: int, workers_per_gpu: int, *, held: float = HELD_OF_THE_REST, lost_places: bool = True
) -> Replay:
    """Place a run's requests anew, each from when its input was set up until its place was given back.

    A place is given back when the kernel has ended and `held` of what remains is over. A refused request takes none.
    A client that fell silent had sent one request more, which holds its place for ever; it is taken to have arrived
    after a setup as that of the others at that time. Task runners that the server's log says were stopped are stopped.

    Args:
        run: any.
        gpus: of the server.
        workers_per_gpu: of each.
        held: the part of a request's remaining time in which it holds its place.
        lost_places: whether requests without a reply hold a place at all.
    """
    requests = run.requests
    arrival, release = _times(run, held)
    refused = (requests["status"] == "rejected").to_numpy()
    placed = pd.DataFrame({"arrival": arrival, "release": release, "refused": refused})
    unanswered = silent(run) if lost_places else silent(run).iloc[:0]
    stopped = run.events[run.events["event"] == "stopped"]

    rows = np.arange(len(requests))
    moments = [
        (release[~refused], _RELEASED, rows[~refused]),
        (stopped["elapsed"].to_numpy(), _STOPPED, stopped["gpu"].to_numpy()),
        (arrival[refused], _REFUSED, rows[refused]),
        (arrival[~refused], _ARRIVED, rows[~refused]),
        (unanswered["arrival"].to_numpy(), _UNANSWERED, np.arange(len(unanswered)) + len(rows)),
    ]
    at = np.concatenate([times for times, _, _ in moments])
    kind = np.concatenate([np.full(len(times), number) for times, number, _ in moments])
    of = np.concatenate([which for _, _, which in moments]).astype("int64")
    order = np.lexsort((kind, at))

    worker, taken, unused, boots = _place(
        zip(at[order].tolist(), kind[order].tolist(), of[order].tolist(), strict=True),
        len(rows) + len(unanswered),
        gpus,
        workers_per_gpu,
    )
    numbers = np.array(worker, dtype="int64")
    frame = pd.DataFrame({"taken": taken, "worker": pd.arrays.IntegerArray(numbers, numbers < 0), "unused": unused})
    frame["gpu"] = frame["worker"] // workers_per_gpu
    booted = pd.DataFrame(boots, columns=["elapsed", "gpu", "request"])
    booted["request"] = booted["request"].astype("Int64").where(booted["request"] < len(rows))
    return Replay(
        booted.astype({"elapsed": "float64", "gpu": "int64"}),
        placed.join(frame.iloc[: len(rows)]),
        unanswered.join(frame.iloc[len(rows) :].reset_index(drop=True)),
    )


def silent(run: Run, margin_s: float = _STOPS_WITHIN_S) -> pd.DataFrame:
    """Give the clients that fell silent: `copy`, `silent since` and when their last request came to the server.

    A client sends its next request as soon as it has a reply. One that had a reply, and then paused for longer than any
    client ever did although others still began requests, sent one that got none; so did one, known by those that were
    started after it, of which there is no row. What it took to set up is the median of what it took others then.

    Args:
        run: any.
        margin_s: by how much longer than any pause the silence must be.
    """
    requests, ends = run.requests, run.ends
    copies, last_begin = requests["copy"], float(requests["elapsed"].max())
    begins, last = requests["elapsed"].groupby(copies).min(), ends.groupby(copies).max()
    pauses = requests["elapsed"] - ends.groupby(copies).shift()
    since = last[last + max(0.0, pauses.fillna(0.0).max()) + margin_s < last_begin]
    if last.index.max() < 2 * len(last):  # else the numbers are not those of clients that were started in turn
        never = np.setdiff1d(np.arange(last.index.max()), last.index)
        started = np.interp(never, begins.index.to_numpy(dtype="float64"), begins.to_numpy())
        since = pd.concat([since, pd.Series(started, index=never)])
    frame: pd.DataFrame = since.sort_values().rename("silent since").rename_axis("copy").reset_index()
    near = [(requests["elapsed"] - at).abs() < _NEAR_S for at in frame["silent since"]]
    setups = [requests["setup_time"][chosen].median() / 1000 for chosen in near]
    frame["arrival"] = frame["silent since"] + pd.Series(setups, dtype="float64").fillna(0.0)
    return frame


def _times(run: Run, held: float) -> tuple[Floats, Floats]:
    """Give when each request came to the server, and when its place was given back."""
    requests = run.requests
    setup, outer = requests["setup_time"].fillna(0.0), requests["outer_time_ms"]
    # A request that failed has no time of its own in the kernel: it is over when its reply is there.
    inside = series.inside_ms(requests).where(requests["status"] == "ok", outer - setup).clip(lower=0.0)
    rest = (outer - setup - inside).clip(lower=0.0)
    arrival = (requests["elapsed"] + setup / 1000).to_numpy(dtype="float64")
    return arrival, arrival + ((inside + held * rest) / 1000).to_numpy(dtype="float64")


def _place(
    moments: Iterable[tuple[float, int, int]], size: int, gpus: int, workers_per_gpu: int
) -> tuple[list[int], list[int], list[float], list[tuple[float, int, int]]]:
    """Give the worker of each request, -1 for none; how many places were taken; how long it was unused; the boots."""
    placement, rule = Placement(gpus, workers_per_gpu), Paper()
    choose, acquire, release = rule.choose, placement.acquire, placement.release
    worker = [-1] * size
    taken, unused = [0] * size, [float("nan")] * size
    idle_since = [0.0] * (gpus * workers_per_gpu)
    boots: list[tuple[float, int, int]] = []
    now = 0
    for moment, kind, which in moments:
        if kind == _RELEASED:
            held = worker[which]
            if held >= 0:
                release(held)
                idle_since[held] = moment
                now -= 1
        elif kind == _STOPPED:
            if which in placement.booted and not placement.in_flight(which):
                placement.stop(which)
        else:
            taken[which] = now
            if kind == _REFUSED:
                continue
            gpu = choose(placement)
            if gpu is None:
                gpu = rule.boot(placement, waiting=1)
                if gpu is None:
                    continue
                workers = placement.boot(gpu)
                boots.append((moment, gpu, which))
                idle_since[workers[0] : workers[-1] + 1] = [moment] * len(workers)
            worker[which] = place = acquire(gpu)
            unused[which] = idle_since[place]
            now += 1
    return worker, taken, unused, boots
