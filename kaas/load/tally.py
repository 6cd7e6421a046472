"""What the rows of a run add up to, while it runs and at its end."""

from array import array
from collections import Counter, defaultdict, deque

import numpy as np

from kaas.results import Row

_WINDOW = 5.0
"""Seconds of the run that "now" means."""


class Tally:
    """Counts rows as they come. Times are in milliseconds; `now` is in seconds since the run began.

    What is recent goes by when a row was read: the time stamps in it follow every step of the system's clock.
    """

    def __init__(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.warm_ms = array("d")
        self.cold_ms = array("d")
        self._errors: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._recent: deque[tuple[float, float]] = deque()  # when a row came, and the completion time in it

    def add(self, row: Row, now: float) -> None:
        """Count one row."""
        self.by_status[row.status] += 1
        if row.error:
            self._errors[row.status][row.error] += 1
        if row.status == "ok":
            (self.cold_ms if row.cold_start else self.warm_ms).append(row.outer_time_ms)
            self._recent.append((now, row.outer_time_ms))

    @property
    def failed(self) -> int:
        """Requests that were neither served nor refused."""
        return self.by_status.total() - self.by_status["ok"] - self.by_status["rejected"]

    def reasons(self) -> list[tuple[str, str]]:
        """Tell of each status the commonest error text, refusals left out: their reason is clear."""
        return [
            (status, errors.most_common(1)[0][0])
            for status, errors in sorted(self._errors.items())
            if status != "rejected"
        ]

    def recent(self, now: float) -> tuple[float, float, float]:
        """Tell served requests per second, median and 95th percentile of their time, over the last seconds."""
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()
        times = [time for _, time in self._recent]
        # A run that has only begun is younger than the window.
        window = min(max(now, 0.001), _WINDOW)
        return len(times) / window, percentile(times, 50), percentile(times, 95)


def percentile(values: "array[float] | list[float]", percent: float) -> float:
    """Tell a percentile of some values, interpolated between the two beside it; 0.0 of none."""
    return float(np.percentile(values, percent)) if len(values) else 0.0
