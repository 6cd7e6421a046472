"""The requests of a run as arrays, for the fit of a model to them and for what a simulation is held against."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kaas import description, results
from kaas.errors import ResultsError
from kaas.row import COLUMNS, Row

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_LAST = 1.0
"""Seconds before the end of the ramp, in which clients are told to end."""


@dataclass(frozen=True, eq=False)
class Observed:
    """Requests in the order in which they began. Seconds, counted from the first one's begin.

    `company` is how many clients were in setup while one was, on average; `others` how many were when its kernel module
    ended, and `in_flight` how many were between setup and that end when it came there. `interval` is the length of a
    step, NaN if it is not known. `virtual` is whether the GPUs were a laptop's.
    """

    begin: Floats
    setup: Floats
    inner: Floats
    outer: Floats
    clients: Numbers
    copy: Numbers
    cold: Flags
    ok: Flags
    company: Floats
    others: Numbers
    in_flight: Numbers
    warm: Flags
    """Served by a worker that was there, and begun before the clients were told to end."""
    interval: float = float("nan")
    name: str = ""
    virtual: bool = False

    def __len__(self) -> int:
        return len(self.begin)

    def part(self, chosen: Flags) -> "Observed":
        """Give those chosen."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _ARRAYS})

    @cached_property
    def arrival(self) -> Floats:
        """When each came to the server."""
        return self.begin + self.setup

    @cached_property
    def end(self) -> Floats:
        """When each had its reply, and its client had cleared up."""
        return self.begin + self.outer

    @cached_property
    def rest(self) -> Floats:
        """What each took besides setup and kernel module."""
        return self.outer - self.setup - self.inner

    @cached_property
    def ramp_end(self) -> float:
        """When the last request began."""
        return float(self.begin.max())

    @cached_property
    def boots(self) -> Floats:
        """When the cold starts came to the server, in order: GPU 0, 1, and so on, as long as none was stopped."""
        return np.sort(self.arrival[self.cold])

    def throughput(self, begin: float, end: float) -> float:
        """Tell how many requests a second were served in a span of time."""
        return float((self.ok & (self.end > begin) & (self.end <= end)).sum() / (end - begin))

    def completion(self) -> dict[int, float]:
        """Give the mean completion time of the warm requests begun in each step of `interval`, from 1, in seconds.

        By when they began, since `clients` is not counted at the same moment by all: the original counted them when
        a request had ended.
        """
        step = (self.begin // self.interval).astype(np.int64)[self.warm] + 1
        outer = self.outer[self.warm]
        return {int(one): float(outer[step == one].mean()) for one in np.unique(step)}

    def silent(self) -> list[tuple[int, float]]:
        """List the clients that fell silent: number, and when its last request ended (or, without, it must have begun).

        A client asks again as soon as it has a reply, so one that did not while others did for much longer sent one
        request more that never had a reply.
        """
        last = self.ramp_end - _LAST
        ends = {int(one): float(self.end[self.copy == one].max()) for one in np.unique(self.copy)}
        begins = {int(one): float(self.begin[self.copy == one].min()) for one in ends}
        known = sorted(begins)
        never = set(range(max(known) + 1)) - set(known)
        ends |= {one: float(np.interp(one, known, [begins[other] for other in known])) for one in never}
        return sorted(((one, end) for one, end in ends.items() if end < last), key=lambda pair: pair[1])


_ARRAYS = tuple(one.name for one in fields(Observed) if one.name not in {"interval", "name", "virtual"})


def pooled(runs: Sequence[Observed]) -> Observed:
    """Put the requests of several runs one after the other."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(run, name) for run in runs]) for name in _ARRAYS}
    return replace(runs[0], **arrays)


def number_at(at: Floats, begins: Floats, ends: Floats) -> Numbers:
    """Count the spans that a time lies in, for each time."""
    begun = np.searchsorted(np.sort(begins), at, side="right")
    return np.asarray(begun - np.searchsorted(np.sort(ends), at, side="right"), dtype=np.int64)


def number_over_time(begins: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Give the times at which the number of spans changes, in order, and the number from then on."""
    at = np.concatenate([begins, ends])
    order = np.argsort(at, kind="stable")
    return at[order], np.cumsum(np.repeat([1.0, -1.0], len(begins))[order])


def mean_over(begins: Floats, ends: Floats, at: Floats, values: Floats) -> Floats:
    """Give the mean over each span of what has a value from each time `at` on; the value where a span is empty."""
    area = np.append(0.0, np.cumsum(values[:-1] * np.diff(at)))
    length = ends - begins
    mean = (np.interp(ends, at, area) - np.interp(begins, at, area)) / np.where(length > 0, length, 1.0)
    here = values[np.clip(np.searchsorted(at, begins, side="right") - 1, 0, None)]
    return np.asarray(np.where(length > 0, mean, here))


def of_rows(rows: Iterable[Row], *, interval: float = float("nan"), name: str = "") -> Observed:
    """Make arrays of rows.

    Raises:
        ResultsError: there is none.
    """
    ordered = sorted(rows, key=lambda row: row.timestamp)
    if not ordered:
        raise ResultsError(f"{name or 'the run'} holds no request")
    begin = np.array([row.timestamp for row in ordered]) - ordered[0].timestamp
    setup, inner, outer = (
        np.array([getattr(row, column) for row in ordered]) / 1000
        for column in ("setup_time", "inner_time_ms", "outer_time_ms")
    )
    cold, ok = np.array([row.cold_start for row in ordered]), np.array([row.status == "ok" for row in ordered])
    arrival = begin + setup
    left = arrival + inner
    return Observed(
        begin,
        setup,
        inner,
        outer,
        np.array([row.concurrency for row in ordered]),
        np.array([row.copy for row in ordered]),
        cold,
        ok,
        mean_over(begin, arrival, *number_over_time(begin, arrival)),
        number_at(left, begin, arrival),
        number_at(arrival, arrival, left),
        ok & ~cold & (begin < begin.max() - _LAST),
        interval,
        name,
    )


def read(folder: Path) -> list[Observed]:
    """Read the runs of a results folder, in the order of their names.

    Raises:
        ResultsError: it holds none, or a file of it is none.
    """
    found = []
    for path in sorted(folder.glob("*.csv")):
        if path.stem.endswith(("-serverlogs", "-gpu-monitoring")) or not _is_of_requests(path):
            continue
        told = description.read(path.with_suffix(".md"))
        if "Shape" in told:
            raise ResultsError(
                f"{path} is of the shape {told['Shape']}: a model is fitted to clients that grow in steps"
            )
        interval = told.get("Interval", "nan")
        run = of_rows(results.read_rows(path), interval=float(interval), name=path.stem)
        found.append(replace(run, virtual=_is_virtual(path)))
    if not found:
        raise ResultsError(f"{folder} holds no run: name a results folder, such as results-autoscaling")
    return found


def _is_of_requests(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return next(csv.reader(file), [])[:2] == list(COLUMNS)[:2]
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def _is_virtual(path: Path) -> bool:
    """Tell whether the monitoring beside the requests is of virtual GPUs, in its first sample."""
    try:
        with path.with_name(f"{path.stem}-gpu-monitoring.csv").open(encoding="utf-8", errors="replace") as file:
            return ",virtual:" in file.readline() + file.readline()
    except OSError:
        return False
