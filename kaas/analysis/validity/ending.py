"""Rules on how a run ended: did it come to its end, does it last as long as it says, and what is not of it?

Pure. `parameters` are those of the run's description.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from kaas import description
from kaas.analysis.validity import Check, several

_PART = 0.01
_STARTING_S, _ENDING_S = 0.5, 3.0
"""What a run takes besides its requests: its processes start, and are ended."""
_SILENT_FOR_S = 5.0
"""How long a client must be silent at least, at the end of a run, to be noted."""
_NORMALLY = "at the end of the ramp"
_CLOCK_NOTES = "Clock notes"
STEPS = "steps"
"""The experiment's own shape of the load: the ramp, which no description names."""


class Ramp(NamedTuple):
    """From `first` to `most` clients, `step` more each `interval_s`; the last step is as long as the others."""

    first: int
    most: int
    step: int
    interval_s: float

    @property
    def seconds(self) -> float:
        """From the first client's start to the end of the last step."""
        return (1 - (self.first - self.most) // self.step) * self.interval_s


def shape_of(parameters: Mapping[str, str]) -> str:
    """Give the shape of the load (kaas.shape_setting)."""
    return parameters.get("Shape", STEPS)


def asked_s(parameters: Mapping[str, str]) -> float | None:
    """Give for how many seconds load was asked for; None if the description does not tell."""
    if (ramp := ramp_of(parameters)) is not None:
        return ramp.seconds
    text = parameters.get("Shape duration [s]", "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None


def ramp_of(parameters: Mapping[str, str]) -> Ramp | None:
    """Give the ramp that was asked for; None if the description does not tell, or the load had another shape."""
    if shape_of(parameters) != STEPS:
        return None
    names = ("Minimum parallel requests", "Maximum parallel requests", "Step size", "Interval")
    texts = [parameters.get(name, "") for name in names]
    if not all(re.fullmatch(r"\d{1,9}(\.\d+)?", text) for text in texts):
        return None
    first, most, step, interval_s = map(float, texts)
    is_ramp = 1 <= first <= most and step >= 1 and interval_s > 0
    return Ramp(int(first), int(most), int(step), interval_s) if is_ramp else None


def lasted(duration_s: float, told: description.Told) -> Check:
    """Compare the time from the first request to the last reply with that for which the run says that it ran.

    The description was written by a clock of its own. A run that is longer or shorter was stamped by a clock that was
    set, or has rows too many or too few.
    """
    rule = "The requests last as long as the run says that it ran."
    ran_s = told.ran_for_s
    if ran_s is None:
        return Check(rule)
    if -_STARTING_S < ran_s - duration_s < _ENDING_S or abs(ran_s - duration_s) <= _PART * ran_s:
        return Check(rule, "", f"{duration_s:,.1f} s and {ran_s:,.1f} s")
    apart = (
        f"{'longer' if duration_s > ran_s else 'shorter'} by {abs(duration_s / ran_s - 1):.1%}" if ran_s else "longer"
    )
    return Check(rule, f"its requests last {duration_s:,.1f} s, while it says that it ran for {ran_s:,.1f} s ({apart})")


def came_to_end(requests: pd.DataFrame, parameters: Mapping[str, str], duration_s: float) -> Check:
    """Compare how far the ramp came with what was asked for.

    A run that broke off shows the begin of a ramp, which is not to be taken for the whole.
    """
    found = []
    ended = parameters.get("Ended", _NORMALLY)
    if ended != _NORMALLY:
        found.append(f"it was ended early ({ended})")
    seen = ""
    if (ramp := ramp_of(parameters)) is not None:
        most, last = int(requests["concurrency"].max()), float(requests["elapsed"].max())
        seen = f"{most} of {ramp.most} clients"
        late_s = max(ramp.interval_s / 2, float(requests["outer_time_ms"].max()) / 1000) + 1
        if most < ramp.most or last < ramp.seconds - late_s:
            found.append(
                f"it broke off after {duration_s:,.1f} of {ramp.seconds:,.0f} s: the ramp came to {most} of "
                f"{ramp.most} clients"
            )
    return Check("The run came to the end of its ramp.", "; ".join(found), seen)


def stood_still(parameters: Mapping[str, str]) -> Check:
    """Give what the run noted of its clocks while it ran: that the machine was suspended, or a clock was set."""
    rule = "The machine was not suspended, nor its wall clock set, while the run lasted."
    notes = parameters.get(_CLOCK_NOTES, "")
    return Check(rule, f"the run noted: {notes}" if notes else "")


def within(events: pd.DataFrame, duration_s: float) -> tuple[pd.DataFrame, Check]:
    """Leave out what the server logged after the last reply: it is of no request that the files hold.

    That task runners are stopped then is no news.
    """
    after = events["elapsed"] > duration_s
    told = events[after & (events["event"] != "stopped")]["event"].value_counts()
    counts = ", ".join(f"{number} {event}" for event, number in told.items())
    found = (
        f"{several(int(told.sum()), 'event')} of the server after the last reply left out ({counts})" if counts else ""
    )
    return events[~after].reset_index(drop=True), Check("The server's events are of the time of the requests.", found)


def silent_clients(requests: pd.DataFrame) -> "tuple[pd.Series[float], list[int]]":
    """Find the clients that hung: when those had their last reply (index: their number), and which never had any.

    A client hung that is silent at the end for longer than any request took, and any client paused before. Clients are
    numbered from 0, as they start; one that never had a reply is known by those after it.
    """
    ends = requests["elapsed"] + requests["outer_time_ms"] / 1000
    pauses = requests["elapsed"] - ends.groupby(requests["copy"]).shift()
    longest = max(_SILENT_FOR_S, requests["outer_time_ms"].max() / 1000, pauses.fillna(0.0).max())
    last = ends.groupby(requests["copy"]).max()
    never = np.setdiff1d(np.arange(int(last.index.max()) + 1), last.index.to_numpy()).tolist()
    return last[last < requests["elapsed"].max() - longest], never
