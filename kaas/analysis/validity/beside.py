"""Rules on what lies beside the requests: do the server's log and the monitoring belong to them, and fit their clock?

Pure, on frames with `timestamp` in seconds since the epoch. Samples are in the order of their file.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kaas.analysis import samples
from kaas.analysis.validity import Check, several
from kaas.analysis.validity.clock import Step

COVERED_AT_LEAST = 0.95
"""The part of a run's time that must have been sampled for a mean over it, or its energy, to be given."""
_SET_BACK_S = 1.0
_HALF_AN_HOUR_S = 1800.0
_EARLY_S = 0.01
_FITS_S = 3.0
_AT_WORK_PCT = 5.0
_AROUND_S = 5.0

_Floats = npt.NDArray[np.float64]


def _cold_windows(requests: pd.DataFrame) -> tuple[_Floats, _Floats]:
    """Give when each cold start can have reached the server at the earliest, and when its reply was there."""
    cold = requests[requests["cold_start"]].sort_values("timestamp")
    arrivals = cold["timestamp"] + cold["setup_time"].fillna(0.0) / 1000
    ends = cold["timestamp"] + cold["outer_time_ms"] / 1000
    return arrivals.to_numpy(dtype="float64"), ends.to_numpy(dtype="float64")


def undo_in_events(events: pd.DataFrame, steps: Sequence[Step], requests: pd.DataFrame) -> pd.DataFrame:
    """Undo in a server's log what the clock was set by.

    The log is in order of its stamps, so that its order tells nothing: what may be of before or of after a step is
    taken to be what fits better, a boot to the time of a cold start, a worker's readiness to its boot, a refusal to
    that of a request. If no boot fits better then, the log is by a clock that was not set, as of another machine.

    Args:
        events: those of the server.
        steps: in the order in which they were found in the requests.
        requests: with the steps undone.
    """
    refused = requests["status"] == "rejected"
    refusals = (requests["timestamp"] + requests["outer_time_ms"] / 1000)[refused].to_numpy()
    windows = _cold_windows(requests)
    for step in steps:
        stamps, righted = events["timestamp"], events["timestamp"] - step.size
        later = (stamps > max(step.after, step.after + step.size / 2)).to_numpy()
        may_be = ~later & (righted >= step.after).to_numpy()
        booted = (events["event"] == "booted").to_numpy()
        later = later | may_be & booted & (_outside(righted, windows) < _outside(stamps, windows))
        boots = events.assign(timestamp=stamps.where(~later, righted))[booted]
        for place in np.flatnonzero(may_be & ~booted):
            of = refusals if events["event"][place] == "rejected" else None
            of = boots["timestamp"][boots["gpu"] == events["gpu"][place]].to_numpy() if of is None else of
            later[place] = _since(righted[place], of) < _since(stamps[place], of)
        new = stamps.where(~later, righted)
        if _outside(new[booted], windows).sum() <= _outside(stamps[booted], windows).sum():
            events = events.assign(timestamp=new)
    return events


def _outside(stamps: "pd.Series[float]", windows: tuple[_Floats, _Floats]) -> _Floats:
    """Give by how much each stamp lies outside the window that is nearest to it; 0 if there are none."""
    at = stamps.to_numpy(dtype="float64")[:, None]
    apart = np.maximum(np.maximum(windows[0] - at, at - windows[1]), 0.0)
    nearest: _Floats = apart.min(axis=1) if apart.shape[1] else np.zeros(len(apart))
    return nearest


def _since(stamp: float, before: _Floats) -> float:
    """Give the seconds since the last of some stamps; infinite if all come after."""
    passed = stamp - before[before <= stamp]
    return float(passed.min()) if passed.size else np.inf


def boots_can_be(events: pd.DataFrame, requests: pd.DataFrame, *, whole_setup: bool) -> Check:
    """Compare each boot with when its cold start can have reached the server: when its client had set its input up.

    A server boots for a request that it has. A log whose boots come before was not written by the server.

    Args:
        events: those of the server.
        requests: with the cold starts.
        whole_setup: all of the setup comes before the request is sent; else its end, after the reply, is a part of it.
    """
    rule = "Every boot follows the arrival of the request that made the server boot."
    cold = requests[requests["cold_start"]].sort_values("timestamp")
    begins, setup = cold["timestamp"].to_numpy(), cold["setup_time"].fillna(0.0).to_numpy() / 1000
    boots = events["timestamp"][events["event"] == "booted"].to_numpy()
    if not len(begins) or not len(boots):
        return Check(rule)
    # That whose time it is of, or is nearest to. Before a client's own begin no clock of the same machine can be.
    place = np.abs(boots[:, None] - (begins + setup)[None, :]).argmin(axis=1)
    known = np.abs(boots - begins[place]) < _AROUND_S + setup[place]
    early = (begins + setup * (1.0 if whole_setup else 0.5))[place] - boots
    is_early = known & (early > _EARLY_S)
    if not is_early.any():
        after = -early[known]
        seen = (
            f"{len(after)} boots, {after.min() * 1000:,.0f} to {after.max() * 1000:,.0f} ms after" if len(after) else ""
        )
        return Check(rule, "", seen)
    by = early[is_early]
    at_begin = np.abs(boots - begins[place])[is_early].max() < _EARLY_S
    why = "they equal the begin of the cold start at its client" if at_begin else "its clock is another, or it is none"
    found = (
        f"{is_early.sum()} of {several(len(boots), 'boot')} in the server's log are {by.min():.2f} to {by.max():.2f} s "
        f"before the request that caused them can have reached the server ({why}): these are no times of a server"
    )
    return Check(rule, found)


def in_order(monitoring: pd.DataFrame, *, local: bool) -> tuple[pd.DataFrame, Check]:
    """Undo what the clock of the samples was set by: at the end of summer time, local stamps go back by an hour.

    The samples of a GPU stand in the file one after the other. Where their stamps go back, the clock was set back. Of
    local stamps, those that leap ahead by whole half hours are of the begin of summer time.
    """
    rule = "The time stamps of the samples go on evenly."
    if monitoring.empty:
        return monitoring, Check(rule)
    gaps = monitoring.groupby("gpu")["timestamp"].diff()
    usual = float(gaps[gaps > 0].median()) if (gaps > 0).any() else 0.0
    leap = gaps - usual
    odd = leap < -_SET_BACK_S
    if local:
        halves = (leap / _HALF_AN_HOUR_S).round()
        odd = odd | (halves >= 1) & ((leap - halves * _HALF_AN_HOUR_S).abs() < _SET_BACK_S)
    if not odd.any():
        return monitoring, Check(rule)
    shift = leap.where(odd, 0.0).groupby(monitoring["gpu"]).cumsum()
    by = float(leap[odd].iloc[0])
    times = int(odd.groupby(monitoring["gpu"]).sum().max())
    more = "" if times == 1 else f", and set {several(times - 1, 'time')} more"
    summer = ", as where summer time ends" if local and abs(by + 3600) < _SET_BACK_S else ""
    found = (
        f"the clock of the samples was set {'back' if by < 0 else 'ahead'} by {abs(by):,.1f} s{summer}{more}: undone"
    )
    return monitoring.assign(timestamp=monitoring["timestamp"] - shift), Check(rule, found)


def undo_ahead(monitoring: pd.DataFrame, steps: Sequence[Step]) -> pd.DataFrame:
    """Undo in the samples where the clock was set ahead; `in_order` does where it was set back.

    If there are samples of the time that was left out, their clock was not set.
    """
    for step in steps:
        stamps = monitoring["timestamp"]
        if step.size > 0 and not stamps.between(step.after + 0.1 * step.size, step.after + 0.9 * step.size).any():
            later = stamps > step.after + step.size / 2
            monitoring = monitoring.assign(timestamp=stamps.where(~later, stamps - step.size))
    return monitoring


def of_the_run(monitoring: pd.DataFrame, events: pd.DataFrame, requests: pd.DataFrame) -> Check:
    """Compare when the GPUs were first seen at work with the times in which they were booted: the cold starts.

    A monitoring of another run, or of a clock that is off by a minute, fits the length of the run all the same. Then
    the GPUs begin to work when none was booted. They are taken in the order of their begin, as they may be numbered
    otherwise in the log. One that was at work from the first sample on tells nothing.
    """
    rule = "The GPUs begin to work when they are booted."
    by_gpu = monitoring.dropna(subset=["utilization_pct"]).sort_values("timestamp", kind="stable").groupby("gpu")
    idle_first = by_gpu["utilization_pct"].first() <= _AT_WORK_PCT
    at_work = monitoring[monitoring["utilization_pct"] > _AT_WORK_PCT].groupby("gpu")["timestamp"].min()
    used = np.sort(at_work[at_work.index.isin(idle_first[idle_first].index)].to_numpy())
    booted = events[events["event"] == "booted"].groupby("gpu")["timestamp"].min().sort_values().to_numpy()
    arrivals, ends = _cold_windows(requests)
    if not len(used) or len(at_work) != len(used) or len(used) != len(booted) or not len(arrivals):
        return Check(rule)
    # A boot ends with its cold start's reply, whoever knows no better.
    place = np.abs(booted[:, None] - arrivals[None, :]).argmin(axis=1)
    late, early = used - np.maximum(booted, ends[place]), booted - used
    off = np.where(late > 0, late, np.where(early > 0, -early, 0.0))
    middle = float(np.median(off))
    # A GPU that has begun to work is seen to do so by the next sample only.
    spacing = float(monitoring.groupby("gpu")["timestamp"].diff().median())
    if -_FITS_S <= middle <= _FITS_S + spacing:
        return Check(rule, "", f"{len(used)} GPUs did")
    found = (
        f"its GPUs begin to work {abs(middle):.0f} s {'after' if middle > 0 else 'before'} they were booted "
        f"(median of {len(used)}): it is of another run, or its clock is off, so it is left out"
    )
    return Check(rule, found)


def covers(monitoring: pd.DataFrame, duration_s: float) -> Check:
    """State how much of the run was sampled, where that is too little for a mean over it.

    A mean over a part of a ramp is that of fewer or of more clients, and energy that was not counted looks saved.
    """
    rule = f"At least {COVERED_AT_LEAST:.0%} of the run were sampled."
    found, seen = [], []
    for columns, what in ((["utilization_pct"], "mean utilization"), (["power_w", "energy_j"], "energy")):
        parts = coverage(monitoring, columns, duration_s)
        seen += [f"{parts.min():.1%} for {what}"] if len(parts) else []
        if len(parts) and parts.min() < COVERED_AT_LEAST:
            of = (
                "every GPU"
                if (parts < COVERED_AT_LEAST).all()
                else several(int((parts < COVERED_AT_LEAST).sum()), "GPU")
            )
            found.append(f"only {parts.min():.0%} of the run were sampled of {of}, so no {what} is given")
    return Check(rule, "; ".join(found), ", ".join(seen))


def coverage(monitoring: pd.DataFrame, columns: Sequence[str], duration_s: float) -> "pd.Series[float]":
    """Give for each GPU the part of the run's time of which it was sampled, from 0 to 1.

    A sample stands for the time until the next, unless that is a gap (see `samples.gaps_from`), and the last for as
    long as is usual.

    Args:
        monitoring: with `elapsed`, in order of time.
        columns: one of which a sample must know.
        duration_s: of the run.
    """
    known = monitoring[monitoring[list(columns)].notna().any(axis="columns")]
    if known.empty or duration_s <= 0:
        return pd.Series(dtype="float64")
    gaps = samples.gaps_from(known)
    usual = known.groupby("gpu")["elapsed"].diff().groupby(known["gpu"]).median().fillna(gaps)
    following = known.groupby("gpu")["elapsed"].shift(-1)
    until = following.where(
        following - known["elapsed"] <= known["gpu"].map(gaps), known["elapsed"] + known["gpu"].map(usual)
    )
    seconds = until.clip(0.0, duration_s) - known["elapsed"].clip(0.0, duration_s)
    return (seconds.groupby(known["gpu"]).sum() / duration_s).clip(upper=1.0)
