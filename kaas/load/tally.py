"""What the rows of a run add up to, while it runs and at its end."""

from array import array
from collections import Counter, defaultdict, deque
from math import inf
from statistics import quantiles
from typing import NamedTuple

from kaas.row import SENT_LATE_MS, Row
from kaas.wire import NO_GPU

SERVED, REFUSED = "ok", "rejected"
_REFUSED_FOR_GOOD = "rejected for good"
ENOUGH_FOR_P95 = 20
"""Requests below which a 95th percentile says nothing but their longest."""


class Figures(NamedTuple):
    """Requests that ended in a part of the run: those served, with median and 95th percentile in ms, and the others.

    Of those refused, some may have been `refused_for_good`: no GPU was left.
    """

    served: int
    refused: int
    failed: int
    p50_ms: float
    p95_ms: float
    refused_for_good: int = 0


class Tally:
    """Counts rows as they come. Times of requests are in milliseconds, those of the run in seconds since it began."""

    def __init__(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.warm_ms = array("d")
        self.cold_ms = array("d")
        self._late = 0  # requests of an open loop that were not sent when they arrived
        self._longest_lag_ms, self._first_late = 0.0, inf
        self._errors: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.no_gpu = ""  # why no GPU is left, as the latest request was told
        self._recent: deque[tuple[float, str, float]] = deque()  # when a request ended, its status and its time

    def add(self, row: Row, ended: float) -> None:
        """Count one row, of a request that ended at that time of the run."""
        self.by_status[row.status] += 1
        if row.error:
            self._errors[row.status][row.error] += 1
        if row.status == SERVED:
            (self.cold_ms if row.cold_start else self.warm_ms).append(row.outer_time_ms)
        status = row.status
        if status == REFUSED and row.error.startswith(NO_GPU):
            self.no_gpu, status = row.error, _REFUSED_FOR_GOOD
        self._recent.append((ended, status, row.outer_time_ms))
        if row.lag_ms > SENT_LATE_MS:
            self._late += 1
            self._longest_lag_ms = max(self._longest_lag_ms, row.lag_ms)
            self._first_late = min(self._first_late, max(ended - row.outer_time_ms / 1000, 0.0))

    @property
    def failed(self) -> int:
        """Requests that were neither served nor refused."""
        return self.by_status.total() - self.by_status[SERVED] - self.by_status[REFUSED]

    def failures(self) -> str:
        """Say what became of those that failed, each kind with its commonest reason."""
        kinds = []
        for status, number in sorted(self.by_status.items()):
            if status not in {SERVED, REFUSED}:
                errors = self._errors[status].most_common(1)
                kinds.append(f"{number} {status}" + (f", most often: {errors[0][0]}" if errors else ""))
        return "; ".join(kinds)

    def why_stop(self, label: str, figures: Figures) -> str:
        """Say why a run need not go on after a step with these figures; nothing if it may still serve requests."""
        if figures.served:
            return ""
        if figures.refused and figures.refused == figures.refused_for_good:
            return f"nothing can be served after {label} ({self.no_gpu})"
        if figures.failed and not figures.refused:
            return f"every request of {label} failed ({self.failures()})"
        if figures.failed and not self.by_status[SERVED]:
            return f"nothing was served up to the end of {label} ({self.failures()})"
        return ""

    def sent_late(self) -> str:
        """Say how many requests of an open loop were sent late; nothing if none was."""
        if not self._late:
            return ""
        return (
            f"{self._late} of {self.by_status.total()} requests were sent more than {SENT_LATE_MS:g} ms after they had "
            f"arrived, by up to {self._longest_lag_ms:.0f} ms, from {self._first_late:.1f} s on"
        )

    def between(self, begin: float, end: float) -> Figures:
        """Add up what ended from `begin` on and before `end`; it must not have been forgotten."""
        of_then = [(status, ms) for ended, status, ms in self._recent if begin <= ended < end]
        served = [ms for status, ms in of_then if status == SERVED]
        for_good = sum(status == _REFUSED_FOR_GOOD for status, _ in of_then)
        refused = for_good + sum(status == REFUSED for status, _ in of_then)
        failed = len(of_then) - len(served) - refused
        return Figures(len(served), refused, failed, percentile(served, 50), percentile(served, 95), for_good)

    def forget(self, before: float) -> None:
        """Let go of when requests ended before that time; they stay counted."""
        self._recent = deque(entry for entry in self._recent if entry[0] >= before)


def percentile(values: "array[float] | list[float]", percent: int) -> float:
    """Tell a percentile of some values, interpolated between the two beside it; 0.0 of none."""
    if len(values) < 2:  # noqa: PLR2004 - of one, that is the one
        return values[0] if values else 0.0
    return quantiles(values, n=100, method="inclusive")[percent - 1]
