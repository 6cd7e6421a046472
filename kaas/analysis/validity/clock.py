"""Rules on the clock that stamped the requests: was it set in mid-run, and what was done to its stamps since?

A client sends one request after the other, and its rows stand in the file in that order. So between the end of one and
the begin of the next lies the time that a client takes to ask again: hardly any, the same for all, and never less than
none. A clock that is set while they run adds the same amount to this time, once, of every client.

Pure: frames of requests whose rows are in the order of their file. What is beside them stands in `beside`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from kaas.analysis.validity import Check, rows, several

_BACK_S, _AHEAD_S = 0.25, 2.0
"""From where on a client's pause is another than usual. Time that passes unused looks like a clock set ahead."""
_NOISE_S = 0.001
_MOST_CLIENTS = 0.8
"""The part of the clients that must show a step at once: a client that hangs or is replaced may miss it."""
_NEAR_ROWS = 20
"""So many rows of each client, before and after, are looked at for what it did when others show a step."""
_BESIDE = 5
_MOST_STEPS = 10
_COARSEST, _FINEST = 5, -1
"""Powers of ten, in seconds, to which stamps are found to be rounded."""

_Rows = npt.NDArray[np.intp]


class Step(NamedTuple):
    """The clock was set by `size` seconds, when by its old time `after` was about to pass (seconds since the epoch)."""

    after: float
    size: float


def is_by_begin(requests: pd.DataFrame) -> bool:
    """Say if the rows stand in the order in which they began: they were sorted since, or one client wrote them."""
    return bool(requests["timestamp"].is_monotonic_increasing)


def undo(requests: pd.DataFrame, *, pauses_tell: bool = True) -> tuple[pd.DataFrame, tuple[Step, ...], Check]:
    """Undo what the clock was set by, as far as the order of the rows tells when.

    Set back, it makes rates too high and puts effects before their causes; set ahead, the reverse. Time in which a
    machine sleeps is time that was set ahead: no program ran in it.

    Args:
        requests: of a run.
        pauses_tell: whether a client asks again at once; where it does not, nothing is found.
    """
    rule = "The clock was not set in mid-run."
    steps: list[Step] = []
    if pauses_tell and rows.tells_clients(requests):
        grain = _grain(requests["timestamp"])
        while len(steps) < _MOST_STEPS and (found := _next_step(requests, grain)) is not None:
            step, later = found
            steps.append(step)
            righted = requests["timestamp"].where(~later, requests["timestamp"] - step.size)
            requests = requests.assign(timestamp=righted)
    if not steps:
        return requests, (), Check(rule)
    begin = float(requests["timestamp"].min())
    said = " and ".join(
        f"{'back' if one.size < 0 else 'ahead'} by {abs(one.size):.1f} s at {one.after - begin:.1f} s" for one in steps
    )
    slept = ", or the machine was suspended meanwhile" if any(one.size > 0 for one in steps) else ""
    return requests, tuple(steps), Check(rule, f"the clock was set {said} of the run{slept}: that was undone")


def overlaps(requests: pd.DataFrame) -> tuple[bool, Check]:
    """Say if time stamps can be right: not, if requests of one client overlap, which are sent one after the other.

    If all stamps are round numbers, they were rounded, as spreadsheets do, and are true to that only. Else the clock
    was set back and the rows were sorted since, or rows of several runs were put together: which is wrong is not told.
    """
    rule = "No client has two requests under way at once."
    if not rows.tells_clients(requests):
        return True, Check(rule)
    overlap, grain = -_pauses_in_time(requests), _grain(requests["timestamp"])
    most, number = float(overlap.max()), int((overlap > _BACK_S).sum())
    if grain and _NOISE_S < most <= 1.5 * grain:
        fits = grain * 100 < float(np.ptp(requests["timestamp"]))
        limits = "true to that only" if fits else "not to be trusted, and not given"
        return fits, Check(
            rule, f"the time stamps of its requests were rounded to {grain:,g} s: all times are {limits}"
        )
    if not number:
        return True, Check(rule)
    found = (
        f"{several(number, 'request')} began before the last one of the same client had ended, by up to {most:,.1f} s: "
        "the clock was set back, or rows were put together. As the order in the file does not tell when, no time of "
        "the run is given"
    )
    return False, Check(rule, found)


def overlapping(requests: pd.DataFrame) -> "pd.Series[bool]":
    """Say which requests began before the last one of their client had ended, in order of time, not of the file."""
    return _pauses_in_time(requests) < -_BACK_S


def _pauses_in_time(requests: pd.DataFrame) -> "pd.Series[float]":
    """Give the pauses in order of time; without any below 0, that is the order of each client's rows in the file."""
    pauses = _pauses(requests)
    if not (pauses < 0).any():
        return pauses
    return _pauses(requests.sort_values("timestamp", kind="stable")).reindex(requests.index)


def _pauses(requests: pd.DataFrame) -> "pd.Series[float]":
    """Give the seconds from the end of a client's last request to the begin of this one; NaN for its first."""
    ends = requests["timestamp"] + requests["outer_time_ms"] / 1000
    return requests["timestamp"] - ends.groupby(requests["copy"]).shift()


def _grain(stamps: "pd.Series[float]") -> float:
    """Give the power of ten, from 0.1 s up, of which all stamps are multiples; 0.0 if there is none."""
    some = stamps.to_numpy()
    for power in range(_COARSEST, _FINEST - 1, -1):
        grain = 10.0**power
        if np.abs(some / grain - np.round(some / grain)).max() * grain < 1e-5:  # noqa: PLR2004
            return grain
    return 0.0


def _excess(requests: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Give by how much each pause differs from the usual; NaN where something else explains it.

    That is a client that was refused, and waits; and a single row with a wrong stamp, after which all is as before.
    """
    pauses = _pauses(requests)
    excess = np.array(pauses - pauses.median(), dtype=np.float64)
    by_client = requests["copy"]
    served_before = (requests["status"] == "ok").groupby(by_client).shift(fill_value=True).to_numpy()
    excess[~served_before & (excess > 0)] = np.nan
    following = pd.Series(excess).groupby(by_client.to_numpy()).shift(-1).to_numpy()
    alone = (np.abs(excess) > _BACK_S) & (np.abs(excess + following) < 0.05 * np.abs(excess))
    restored = pd.Series(alone).groupby(by_client.to_numpy()).shift(fill_value=False).to_numpy()
    excess[alone | restored] = np.nan
    return excess


def _next_step(requests: pd.DataFrame, grain: float) -> "tuple[Step, pd.Series[bool]] | None":
    """Find the first step in the file, and say which rows were stamped after it."""
    excess, copies = _excess(requests), requests["copy"].to_numpy()
    back = (excess < -max(_BACK_S, 2 * grain)) & (not is_by_begin(requests))  # sorted since, the file tells of none
    odd = np.flatnonzero(back | (excess > max(_AHEAD_S, 2 * grain)))
    if not odd.size:
        return None
    near = _NEAR_ROWS * int(requests["copy"].nunique())
    overlapped = bool(overlapping(requests).any())
    for first in odd[: 10 * _MOST_STEPS].tolist():
        known = np.unique(copies[max(0, first - near) : first])
        next_two = _first_two(copies, first, first + near, known)
        shown = next_two[np.isin(next_two, odd)]
        size = float(np.median(excess[shown]))
        near_size = odd[np.abs(excess[odd] - size) < max(_BACK_S, 0.05 * abs(size))]
        shown = np.intersect1d(shown, near_size)
        clients = np.unique(copies[shown]).size
        # What is odd in one client only is passed over: it hung, or was replaced. Where no request is overlapped, rows
        # that stand further up or down than their time may just have been put there, so all clients must agree.
        of = np.unique(copies[next_two]) if overlapped else known
        if clients >= _MOST_CLIENTS * of.size and (size < 0 or clients > 1):
            size = float(np.median(excess[shown]))
            shown = near_size[(near_size >= first) & (near_size < first + near)]
            later = _stamped_after(requests, first, shown, first - near, size)
            return Step(float(requests["timestamp"][later].min()) - size, size), pd.Series(later, index=requests.index)
    return None


def _first_two(copies: _Rows, begin: int, end: int, clients: _Rows) -> _Rows:
    """Give the rows of these clients, from `begin` on, that are the first or second of each."""
    after = pd.Series(copies[begin:end])
    number = after.groupby(after).cumcount().to_numpy()
    return begin + np.flatnonzero((number < 2) & np.isin(after.to_numpy(), clients))  # noqa: PLR2004


def _stamped_after(requests: pd.DataFrame, first: int, shown: _Rows, since: int, size: float) -> npt.NDArray[np.bool_]:
    """Say of each row if it was stamped after a step.

    Of the clients that show it, those are from there on: one that had just begun shows it last. Of others it is by the
    row, but that the first row of a new client may stand before: where its end fits those before it better so.
    """
    copies = requests["copy"].to_numpy()
    ends = (requests["timestamp"] + requests["outer_time_ms"] / 1000).to_numpy()
    begins = pd.Series(shown, index=copies[shown]).groupby(level=0).min().to_dict()
    for client in set(np.unique(copies[max(0, since) : first]).tolist()) - set(begins):
        row = int(np.argmax(copies == client))
        if row >= max(1, since):
            beside = float(np.median(ends[max(0, row - _BESIDE) : row]))
            begins[client] = row if abs(ends[row] - size - beside) < abs(ends[row] - beside) else first
    begin_of = pd.Series(copies).map(begins).fillna(first).to_numpy()
    later: npt.NDArray[np.bool_] = np.arange(len(copies)) >= begin_of
    return later
