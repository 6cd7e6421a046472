"""Rules on the rows of requests, one by one: numbers that no request can have. What is impossible is left out.

Pure: each takes the frame of requests in the order of its file, and gives it back without what it found.
"""

import numpy as np
import pandas as pd

from kaas.analysis.validity import Check, several

_EPOCH_S = (1e8, 1e11)
"""Seconds since the epoch lie between: from 1973 until long after us. In ms, all of a run lie above."""
_FAR_S = 600.0
_FAR_RANGES = 10.0
_FAR_PART = 0.01
_OUT_OF_ORDER_S = 5.0
_TELLING = 50
"""Rows whose order is no chance."""

_UNITS = {1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}


def in_seconds(frame: pd.DataFrame) -> tuple[pd.DataFrame, Check]:
    """Bring time stamps to seconds.

    Other programs log milliseconds since the epoch, or less: taken for seconds, a run would last for days. Which it
    is, is told by the size: there is no run before 1973 or after the year 5000.
    """
    rule = "Time stamps are in seconds since the epoch."
    middle = float(frame["timestamp"].median())
    for factor, unit in _UNITS.items():
        if _EPOCH_S[0] * 1e3 <= middle and _EPOCH_S[0] <= middle / factor < _EPOCH_S[1]:
            found = f"the time stamps of its requests are in {unit}: they were taken as such"
            return frame.assign(timestamp=frame["timestamp"] / factor), Check(rule, found)
    return frame, Check(rule)


def possible(frame: pd.DataFrame) -> tuple[pd.DataFrame, Check]:
    """Leave out rows with a number that no request has.

    A time below 0, a negative client or number of clients, or a client whose number is higher than there are requests
    and clients together: clients are numbered from 0 as they start, and each that started sent a request or hangs.
    """
    most = len(frame) + max(0, int(frame["concurrency"].median()))
    reasons = {
        "a time below 0": (frame[["timestamp", "inner_time_ms", "outer_time_ms", "setup_time"]] < 0).any(
            axis="columns"
        ),
        "a number of clients below 1": frame["concurrency"] < 1,
        "a client's number that cannot be": (frame["copy"] < 0) | (frame["copy"] > most),
        "clients that cannot be so many": frame["concurrency"] > most * 100,
    }
    wrong = np.logical_or.reduce([is_wrong.to_numpy() for is_wrong in reasons.values()])
    rule = "Every number of a request is one that it can have."
    if not wrong.any():
        return frame, Check(rule)
    why = ", ".join(f"{int(is_wrong.sum()):,} with {reason}" for reason, is_wrong in reasons.items() if is_wrong.any())
    found = f"{several(int(wrong.sum()), 'request')} with impossible numbers ({why}) left out"
    return frame[~wrong].reset_index(drop=True), Check(rule, found)


def parts_fit(frame: pd.DataFrame) -> Check:
    """Compare the kernel's own time with the request's, of which it is a part.

    A request that took less than its kernel was measured by a clock that was set, or has its numbers mixed up. Nothing
    is left out: which of the two is wrong cannot be told.
    """
    served = frame[frame["status"] == "ok"]
    wrong = int((served["inner_time_ms"] > served["outer_time_ms"]).sum())
    found = (
        f"{several(wrong, 'request')} took less than the kernel in it: the one or the other is wrong" if wrong else ""
    )
    return Check("No request takes less time than the kernel in it.", found)


def tells_clients(frame: pd.DataFrame) -> bool:
    """Say if the rows tell clients apart: a file in which several bear one number does not."""
    return bool((frame["copy"] != frame["copy"].iloc[0]).any() or frame["concurrency"].max() <= 1)


def once(frame: pd.DataFrame) -> tuple[pd.DataFrame, Check]:
    """Leave out what stands in the file twice, as where a part of it was pasted again.

    No client begins two requests in the same microsecond that take equally long.
    """
    rule = "No request stands in the file twice."
    twice = frame.duplicated(["timestamp", "copy", "outer_time_ms", "inner_time_ms"]).to_numpy()
    if not twice.any() or not tells_clients(frame):
        return frame, Check(rule)
    number = int(twice.sum())
    found = f"{several(number, 'row')} {'is' if number == 1 else 'are'} a copy of another: they were counted once"
    return frame[~twice].reset_index(drop=True), Check(rule, found)


def together(frame: pd.DataFrame, overlapping: "pd.Series[bool] | None") -> tuple[pd.DataFrame, Check]:
    """Leave out the few rows whose time stamp is of quite another time.

    A stamp is wrong that is far outside the range in which the middle half of all lie. And rows are written as their
    requests end: so one is wrong that breaks this order by more than a few seconds, and in a file too short to be sure
    of its order lets two requests of its client be under way at once.

    Args:
        frame: the requests.
        overlapping: which of them began before the last one of their client had ended; None if the file was sorted
            since, so that its order says nothing.
    """
    rule = "Every request is of the time of those beside it in the file."
    ends = frame["timestamp"] + frame["outer_time_ms"] / 1000
    low, high = ends.quantile([0.25, 0.75])
    reach = _FAR_RANGES * (high - low) + _FAR_S
    far = ((ends < low - reach) | (ends > high + reach)).to_numpy()
    if overlapping is not None and tells_clients(frame):
        usual = ends.rolling(9, center=True, min_periods=1).median()
        breaks = (ends < ends.shift(fill_value=-np.inf)) | (ends > ends.shift(-1, fill_value=np.inf))
        touched = frame["copy"].isin(frame["copy"][overlapping]) if len(frame) < _TELLING else True
        far = far | (touched & breaks & ((ends - usual).abs() > _OUT_OF_ORDER_S)).to_numpy()
    if not far.any() or far.sum() > max(1, _FAR_PART * len(frame)):
        return frame, Check(rule)
    where = [f"{'-' if seconds < 0 else '+'}{abs(seconds):,.0f} s" for seconds in (ends[far] - ends.median()).head(3)]
    number = int(far.sum())
    found = (
        f"{several(number, 'request')} left out, whose time stamp is far from those around it in the file "
        f"({', '.join(where)}{', ...' if number > len(where) else ''} from the middle of the run)"
    )
    return frame[~far].reset_index(drop=True), Check(rule, found)


def as_sent(frame: pd.DataFrame) -> pd.DataFrame:
    """Have the requests of an open loop count from when a client sent them, as those of a closed loop do.

    Only so has a client one after the other, which most rules rest on.
    """
    if not frame["lag_ms"].any():
        return frame
    lag_ms = frame["lag_ms"]
    return frame.assign(timestamp=frame["timestamp"] + lag_ms / 1000, outer_time_ms=frame["outer_time_ms"] - lag_ms)


def as_arrived(frame: pd.DataFrame) -> pd.DataFrame:
    """Have them count from their arrivals again, in order of these."""
    if not frame["lag_ms"].any():
        return frame
    lag_ms = frame["lag_ms"]
    frame = frame.assign(timestamp=frame["timestamp"] - lag_ms / 1000, outer_time_ms=frame["outer_time_ms"] + lag_ms)
    return frame.sort_values("timestamp", kind="stable", ignore_index=True)
