"""How the claims on boots and on what each GPU does are judged in one run."""

import math

import numpy as np
import pandas as pd

from kaas.analysis import booted, series
from kaas.analysis.judging import Finding, UnclearError
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
_PLACES_OFF = 0.05
"""By so many of all places, and by one at least, may the count of those that are taken be off."""
_SOME_TIME_S = 10.0
_OVERLAPS_AT_LEAST = 15


def one_cold_start(setting: Setting) -> Finding:
    """Count boots and cold starts, and the boots in whose time there is none."""
    setting.needs_log()
    setting.needs_papers_policy()
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
    setting.needs_papers_policy()
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
    around = booted.CLOCKS_APART_S
    moments, which = np.unique(np.round(refusals, 1), return_inverse=True)
    taken = np.array([setting.replay.peak(at - around, at + around) for at in moments])[which]
    freely = int((taken < PLACES_TAKEN * places - 1).sum())
    found += f", {freely} of them with fewer than nine tenths of {places} places taken (of the first: {taken[0]:.0f})"
    return Finding(found, before >= setting.gpus and freely <= _REFUSED_FREELY * len(refusals))


def _refusals(run: Run) -> Floats:
    """Give when requests were refused, by the server's log; without it, when they came back, which is at once."""
    logged = run.events["elapsed"][run.events["event"] == "rejected"]
    return np.sort((run.ends[run.requests["status"] == "rejected"] if logged.empty else logged).to_numpy())


def needed(setting: Setting) -> Finding:
    """Compare the boots with those that the rule of placement makes of the run's own arrivals and ends.

    What decides are the places: whether all were taken when a GPU was booted, and never more were asked for before.
    When the replay boots it besides stands beside that, but where a place more or less was taken for a moment, the
    next such moment may be far.
    """
    setting.needs_log()
    setting.needs_papers_policy()
    replayed, clocks = setting.replay, booted.CLOCKS_APART_S
    changes = booted.changes(setting.run).to_numpy().tolist()
    places, since, running = 0.0, 0.0, set[float]()
    without_need, late, orderly = 0, 0, True
    for at, workers, gpu in [*changes, (setting.run.duration, 0, -1)]:
        tolerated = max(1, int(_PLACES_OFF * places))
        if len(running) < (setting.gpus or 0) and at - clocks > since + clocks:
            late += replayed.peak(since + clocks, at - clocks) > places + tolerated
        if workers > 0:
            # The request that caused the boot has no place yet.
            without_need += replayed.peak(at - clocks, at + clocks) < places + 1 - tolerated
            orderly &= gpu == min(set(range(setting.gpus or 0)) - running, default=gpu)
            running.add(gpu)
        else:
            running.discard(gpu)
        places, since = places + workers, at
    off = (replayed.boots.groupby("gpu")["elapsed"].min() - setting.first_boots).dropna()
    number = sum(more > 0 for _, more, _ in changes)
    words = [
        f"{number} boots, {without_need} of them while places were free, {late} times more requests than places before "
        "a boot or the end"
    ]
    if len(off):
        of_all = f"{len(off)} of {len(setting.first_boots)} GPUs"
        words.append(f"the replay boots {of_all} {off.min():+.2f} to {off.max():+.2f} s off")
    if not orderly:
        words.append("not in the order of the GPUs' numbers")
    if too_early := _served_too_early(setting):
        words.append(f"{too_early} requests served by a GPU that was not booted")
    return Finding("; ".join(words), not without_need and not late and orderly and not too_early)


def _served_too_early(setting: Setting) -> int:
    served = setting.run.requests[setting.run.requests["status"] == "ok"].dropna(subset=["gpu"])
    first = served["gpu"].map(setting.first_boots).fillna(math.inf).astype("float64")
    return int((first > setting.run.ends[served.index] + booted.CLOCKS_APART_S).sum())


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
