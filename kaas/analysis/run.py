"""One repeat of the experiment as frames, with what was noted and checked of it; kaas.analysis.runs reads it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kaas import description
from kaas.analysis.validity import Check, beside, ending

_NOTHING_TOLD = description.Told()


@dataclass(frozen=True, eq=False)
class Run:
    """One repeat of the experiment.

    `requests` has the columns of kaas.results, `counted`, the elapsed time at which `concurrency` was true, and `sent`,
    that at which a client sent the request: `elapsed`, or in an open loop its lag later;
    `events` those of kaas.events; `monitoring` those of `<task>-gpu-monitoring.csv`. All are in order of `elapsed`.
    `zone_offset_h` is by how many hours the clock of the monitoring was ahead of UTC; None where its times are UTC.
    `checks` is what was checked of the files; what could be mended is mended in the frames. `timed` is whether the time
    stamps of the requests can be right: if not, only durations of single requests are to be given. `files` are those
    that were read. `knows_waits` is whether the requests' file says which waited for a boot.
    """

    task: str
    parameters: Mapping[str, str]
    requests: pd.DataFrame
    events: pd.DataFrame
    monitoring: pd.DataFrame
    notes: tuple[str, ...] = ()
    folder: Path = Path()
    zone_offset_h: float | None = None
    told: description.Told = _NOTHING_TOLD
    checks: tuple[Check, ...] = ()
    timed: bool = True
    files: tuple[Path, ...] = ()
    knows_waits: bool = True

    @cached_property
    def duration(self) -> float:
        """Seconds from the begin of the first request to the end of the last."""
        return float(self.ends.max())

    @cached_property
    def ends(self) -> "pd.Series[float]":
        """The elapsed second at which each request ended, in the order of the requests."""
        return self.requests["elapsed"] + self.requests["outer_time_ms"] / 1000

    @cached_property
    def ramp_end(self) -> float:
        """The elapsed second at which the ramp ended: from then on no request begins, or arrives, and the run drains.

        That is when its last step was to end, or the last request began, if that is later or the ramp is not known or
        did not come so far.
        """
        last = float(self.requests["elapsed"].max())
        asked_s = ending.asked_s(self.parameters)
        return max(last, asked_s) if asked_s is not None and asked_s <= self.duration else last

    @cached_property
    def is_whole(self) -> bool:
        """Whether the run came to its end, as far as its files tell."""
        return not ending.came_to_end(self.requests, self.parameters, self.duration).found

    @property
    def shape(self) -> str:
        """The shape of its load (kaas.shape_setting)."""
        return ending.shape_of(self.parameters)

    @property
    def is_steps(self) -> bool:
        """Whether the clients grew as in the experiment."""
        return self.shape == ending.STEPS

    @cached_property
    def is_open_loop(self) -> bool:
        """Whether requests arrived when they did, and not one after the other."""
        return bool(self.requests["arrived"].notna().any())

    @property
    def made_up(self) -> str:
        """How what looks like a measurement was made, `simulated` say; empty if it was measured."""
        return self.parameters.get("Not measured", "")

    def coverage(self, *columns: str) -> float:
        """Give the part of the run, from 0 to 1, of which the GPU that was sampled least was; NaN if none was.

        Args:
            columns: of the monitoring, one of which a sample must know.
        """
        return float(beside.coverage(self.monitoring, columns, self.duration).min())

    @cached_property
    def utilization_is_covered(self) -> bool:
        """Whether so much of the run was sampled that a mean utilization over it is one."""
        return self.timed and not self.coverage("utilization_pct") < beside.COVERED_AT_LEAST

    @cached_property
    def energy_is_covered(self) -> bool:
        """Whether the samples of power and of energy counters cover so much of the run that its energy is known."""
        return self.timed and not self.coverage("power_w", "energy_j") < beside.COVERED_AT_LEAST

    @cached_property
    def sampled(self) -> pd.DataFrame:
        """What was monitored while the run lasted."""
        return self.monitoring[self.monitoring["elapsed"].between(0.0, self.duration)]

    @property
    def experiment(self) -> str:
        """The task's name without the number of the repeat."""
        return experiment_and_repeat(self.task)[0]

    @property
    def repeat(self) -> int:
        """The number of the repeat, with which the task's name ends; 1 if it bears none."""
        return experiment_and_repeat(self.task)[1]


def experiment_and_repeat(task: str) -> tuple[str, int]:
    """Divide a task's name: the number with which it ends is that of the repeat, 1 if it bears none."""
    match = re.fullmatch(r"(.+)-(\d+)", task)
    return (match[1], int(match[2])) if match else (task, 1)


def not_measured(drawn: Iterable[object]) -> str:
    """Say so if runs, or some of them, were not measured but made up; empty if all were measured."""
    made = [run.made_up for run in _runs(drawn)]
    named = sorted({one.upper() for one in made if one})
    return f"{'' if all(made) else 'in part '}{' and '.join(named)}, not measured" if named else ""


def _runs(drawn: Iterable[object]) -> Iterator[Run]:
    for one in drawn:
        if isinstance(one, Run):
            yield one
        elif isinstance(one, list | tuple):
            yield from _runs(one)
