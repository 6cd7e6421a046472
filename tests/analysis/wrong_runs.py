"""What could be wrong with a run: each function gives a run as it would be, made of a right one. Nothing is random."""

from dataclasses import replace

import numpy as np
import pandas as pd

from kaas.analysis.runs import Run

_KERNELS_SHARED = (0.65, 40.8, 82.2, 125.0, 169.7, 222.7, 271.6, 347.3)
"""When the GPUs of the published experiment would be booted if kernels took turns on a GPU (mean of 10 simulations)."""


def utilization(run: Run, percent: float) -> Run:
    """Let each GPU be so busy all the time."""
    return replace(run, monitoring=run.monitoring.assign(utilization_pct=percent))


def boots_at(run: Run, times: "np.ndarray | list[float]") -> Run:
    """Boot the GPUs at other times, fewer if fewer are given, each with a cold start that comes to the server then."""
    order = run.events.sort_values("elapsed", kind="stable").iloc[: len(times)]
    arrival = (run.requests["elapsed"] + run.requests["setup_time"] / 1000).to_numpy()
    cold = np.zeros(len(arrival), dtype="bool")
    came = []
    for at in times:
        nearest = int(np.abs(np.where(cold, np.inf, arrival - at)).argmin())
        cold[nearest] = True
        came.append(arrival[nearest] + 0.004)
    events = order.assign(elapsed=sorted(came))
    return replace(run, events=events, requests=run.requests.assign(cold_start=cold))


def one_gpu_late(run: Run) -> Run:
    boots = np.sort(run.events["elapsed"].to_numpy())
    return boots_at(run, [boots[0], *boots[2:]])


def boots_as_if_kernels_were_shared(run: Run) -> Run:
    return boots_at(run, list(_KERNELS_SHARED))


def boots_twice_as_early(run: Run) -> Run:
    return boots_at(run, np.sort(run.events["elapsed"].to_numpy()) / 2)


def boots_at_random(run: Run) -> Run:
    return boots_at(run, np.sort(np.random.default_rng(5).uniform(0, run.duration, len(run.events))))


def concurrency_shuffled(run: Run) -> Run:
    shuffled = np.random.default_rng(5).permutation(run.requests["concurrency"].to_numpy())
    return replace(run, requests=run.requests.assign(concurrency=shuffled))


def half_refused_after_the_last_boot(run: Run) -> Run:
    requests = run.requests
    last = float(run.events["elapsed"].max())
    refused = ((requests["elapsed"] > last) & (np.arange(len(requests)) % 2 == 0)).to_numpy()
    outer = requests["outer_time_ms"].where(~refused, requests["setup_time"] + 150)
    return replace(
        run,
        requests=requests.assign(
            status=requests["status"].astype("str").where(~refused, "rejected"),
            outer_time_ms=outer,
            inner_time_ms=requests["inner_time_ms"].where(~refused, 0.0),
        ),
    )


def half_of_the_clients_dead(run: Run, since: float = 240.0) -> Run:
    """Let every second client, or each that comes later, ask no more; their number is counted as if they did."""
    dead = (run.requests["copy"] % 2 == 0) & (run.requests["elapsed"] > since)
    return replace(run, requests=run.requests[~dead].reset_index(drop=True))


def half_of_the_clients_never_there(run: Run) -> Run:
    return half_of_the_clients_dead(run, since=60.0)


def gpus_of_the_log_shuffled(run: Run) -> Run:
    return replace(run, events=run.events.assign(gpu=run.events["gpu"].map(_shuffled(run))))


def gpus_of_the_monitoring_shuffled(run: Run) -> Run:
    return replace(run, monitoring=run.monitoring.assign(gpu=run.monitoring["gpu"].map(_shuffled(run))))


def one_in_a_hundred_ten_times_as_long(run: Run) -> Run:
    longer = pd.Series(np.where(np.arange(len(run.requests)) % 100 == 50, 10.0, 1.0))
    return replace(run, requests=run.requests.assign(outer_time_ms=run.requests["outer_time_ms"] * longer))


def ten_ms_more_for_each_client(run: Run) -> Run:
    more = run.requests["outer_time_ms"] + 10 * run.requests["concurrency"]
    return replace(run, requests=run.requests.assign(outer_time_ms=more))


def _shuffled(run: Run) -> dict[int, int]:
    gpus = sorted(set(run.events["gpu"]))
    return dict(zip(gpus, np.random.default_rng(3).permutation(gpus).tolist(), strict=True))
