"""How the claims on boots and on what each GPU does are judged in one run."""

import math

import numpy as np
import pandas as pd

from kaas.analysis import booted, series
from kaas.analysis.judging import Finding, UnclearError
from kaas.analysis.replay import Replay
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats
from kaas.analysis.setting import Setting

PLACES_TAKEN = 0.9
"""Of all, when a request is refused."""
IDLE_BEFORE = 0.25
"""At most so busy is a GPU before its boot, in parts of what it is after it."""
SHORTEST_GAP = 0.75
"""At least so long is it, in parts of the usual time, from the end of one kernel to that of the next."""
_REFUSED_FREELY = 0.1
_SOME_TIME_S = 10.0
_OVERLAPS_AT_LEAST = 15


def one_cold_start(setting: Setting) -> Finding:
    """Count boots and cold starts, and the boots in whose time there is none."""
    setting.needs_log()
    cold = int(setting.run.requests["cold_start"].sum())
    boots = booted.boots(setting.run)
    found = f"{cold} cold starts, {len(boots)} boots"
    unmatched = int(boots["request"].isna().sum())
    if unmatched:
        found += f", {unmatched} of them without one in its time"
    return Finding(found, cold == len(boots) and not unmatched)


def all_used(setting: Setting) -> Finding:
    """Compare the first refusal with the last boot, and count the refusals while places were free."""
    setting.needs_log()
    if setting.gpus is None:
        raise UnclearError("The number of GPUs is not known.")
    used, last_boot = len(setting.first_boots), setting.first_boots.iloc[-1]
    refusals = _refusals(setting.run)
    if len(refusals) == len(setting.run.requests):
        raise UnclearError("Every request was refused.")
    if not len(refusals):
        if used < setting.gpus:
            raise UnclearError(f"No request was refused, and {used} of {setting.gpus} GPUs were used.")
        if used == 1:
            raise UnclearError("No request was refused, and there was one GPU only.")
        return Finding(f"all {used} GPUs booted by {last_boot:.1f} s, no request refused")
    first = float(refusals.min())
    before = int((setting.first_boots <= first).sum())
    found = f"{before} of {setting.gpus} GPUs booted when the first of {len(refusals)} was refused at {first:.1f} s"
    if not setting.workers_per_gpu:
        return Finding(found, before >= setting.gpus)
    places = setting.gpus * setting.workers_per_gpu
    taken = _taken_around(setting.replay, refusals)
    freely = int((taken < PLACES_TAKEN * places - 1).sum())
    found += f", {freely} of them with fewer than nine tenths of {places} places taken (of the first: {taken[0]:.0f})"
    return Finding(found, before >= setting.gpus and freely <= _REFUSED_FREELY * len(refusals))


def _taken_around(replayed: Replay, times: Floats) -> Floats:
    """Give the most places that were taken at once within a second of each time, by the replay."""
    placed = replayed.placed.dropna(subset=["worker"])
    came = np.concatenate([placed["arrival"], replayed.unanswered["arrival"]])
    at = np.concatenate([placed["release"], came])
    order = np.argsort(at, kind="stable")
    taken = np.append(0, np.cumsum(np.repeat([-1, 1], [len(placed), len(came)])[order]))
    edges = [np.searchsorted(at[order], times + apart) for apart in (-booted.CLOCKS_APART_S, booted.CLOCKS_APART_S)]
    return np.array([taken[low : high + 1].max() for low, high in zip(*edges, strict=True)], dtype="float64")


def _refusals(run: Run) -> Floats:
    """Give when requests were refused, by the server's log; without it, when they came back, which is at once."""
    logged = run.events["elapsed"][run.events["event"] == "rejected"]
    return np.sort((run.ends[run.requests["status"] == "rejected"] if logged.empty else logged).to_numpy())


def needed(setting: Setting) -> Finding:
    """Compare the boots with those that the rule of placement makes of the run's own arrivals and ends."""
    setting.needs_log()
    found, expected = setting.first_boots, setting.replay.boots.groupby("gpu")["elapsed"].min()
    lengths = setting.steps["end"] - setting.steps["begin"]
    step = max(booted.CLOCKS_APART_S, float(lengths.median()) if len(lengths) else 0.0)
    last = float(setting.run.requests["elapsed"].max()) - step
    off = (found - expected).dropna()
    # Whether what is due at the very end still happens is not told.
    only = [
        f"GPU {gpu} was {'booted' if gpu in found.index else 'due'} at {at:.1f} s, and {what}"
        for there, other, what in ((found, expected, "not needed"), (expected, found, "not booted"))
        for gpu, at in there.items()
        if gpu not in other.index and at < last
    ]
    within = int((off.abs() <= step).sum())
    words = f"{within} of {len(off)} boots within a step ({step:.3g} s) of when the replay has them"
    if len(off):
        words += f", {off.min():+.2f} to {off.max():+.2f} s off"
    orderly = found.index.to_list() == sorted(found.index)
    served = setting.run.requests[setting.run.requests["status"] == "ok"].dropna(subset=["gpu"])
    too_early = int(
        (served["gpu"].map(found).fillna(math.inf).astype("float64") > setting.run.ends[served.index]).sum()
    )
    also = [*only, *([] if orderly else ["not in the order of the GPUs' numbers"])]
    also += [f"{too_early} requests served by a GPU that was not booted"] if too_early else []
    return Finding("; ".join([words, *also]), within == len(off) and len(off) > 0 and not also)


def works(setting: Setting) -> Finding:
    """Compare the utilization of each GPU before its boot with that after it."""
    setting.needs_log()
    sampled = setting.run.sampled.dropna(subset=["utilization_pct"])
    if sampled.empty:
        raise UnclearError("No utilization was logged.")
    judged, early, idle = 0, [], []
    for gpu, of in sampled.groupby("gpu"):
        boot = float(setting.first_boots.get(gpu, math.inf))
        before = of["utilization_pct"][of["elapsed"] < boot - booted.CLOCKS_APART_S]
        after = of["utilization_pct"][of["elapsed"] > boot]
        if math.isfinite(boot) and setting.run.duration - boot < _SOME_TIME_S:
            continue
        judged += 1
        work = float(after.mean()) if len(after) else 100.0
        if len(before) and before.mean() > IDLE_BEFORE * work:
            early.append(gpu)
        if len(after) and not work > 0:
            idle.append(gpu)
    if not judged:
        raise UnclearError(f"No GPU was booted more than {_SOME_TIME_S:g} s before the end.")
    found = f"of {judged} GPUs {len(early)} worked before their boot, {len(idle)} never after it"
    return Finding(found, not early and not idle)


def serial(setting: Setting) -> Finding:
    """Measure how soon a kernel ends after another on the same GPU."""
    setting.needs_log()
    if setting.is_virtual:
        raise UnclearError("The GPUs are virtual: their kernels run on several cores.")
    gaps = gaps_of_one_gpu(setting)
    if len(gaps) < _OVERLAPS_AT_LEAST:
        raise UnclearError(f"Too few requests overlapped while there was one GPU only: {len(gaps)}.")
    short, usual = float(np.quantile(gaps, 0.05)), float(np.median(gaps))
    found = (
        f"while there was one GPU, from the end of one kernel to that of the next: {usual:.3g} s, and 95 % of "
        f"{len(gaps)} more than {short:.3g} s (at least {SHORTEST_GAP * usual:.3g})"
    )
    return Finding(found, short >= SHORTEST_GAP * usual > 0)


def gaps_of_one_gpu(setting: Setting) -> Floats:
    """Give the s from the end of each kernel to that of the next, where both requests were there at once, on one GPU.

    Only before the second GPU was booted is it known from any file which GPU served a request.
    """
    run, boots = setting.run, setting.first_boots
    until = float(boots.iloc[1]) if len(boots) > 1 else math.inf
    served = run.requests[run.requests["status"] == "ok"]
    arrival = served["elapsed"] + served["setup_time"].fillna(0.0) / 1000
    frame = pd.DataFrame({"arrival": arrival, "end": arrival + series.inside_ms(served) / 1000})
    frame = frame[frame["end"] < until].sort_values("end")
    together = frame["arrival"] < frame["end"].shift()
    return frame["end"].diff()[together].to_numpy(dtype="float64")
