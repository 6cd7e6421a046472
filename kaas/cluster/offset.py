"""Where another machine's monotonic clock stands against ours, measured by round trips. Pure.

The other clock was read at some moment between our question and its answer: in the middle, give or take half of the
round trip, whatever the ways took (Cristian, Probabilistic clock synchronization, Distributed Computing 3, 1989). The
shortest round trip tells most. What was measured ages, since the two clocks do not run alike.
"""

DRIFT = 1e-4
"""Seconds that two clocks may drift apart in a second; quartz is off by some 20 to 50 millionths."""


class Offset:
    """All times are in seconds: `theirs` of the other machine's `time.monotonic`, the others of ours."""

    def __init__(self) -> None:
        self.worst = 0.0
        """The largest uncertainty of a time that was brought to our clock."""
        self._offset = 0.0
        self._uncertainty = float("inf")
        self._measured = 0.0

    def add(self, sent: float, theirs: float, received: float) -> None:
        """Take note of a round trip: it counts if it tells more than what is known by now."""
        if (half := (received - sent) / 2) <= self.uncertainty(received):
            self._offset, self._uncertainty, self._measured = theirs - (sent + half), half, received

    def uncertainty(self, now: float) -> float:
        """Tell by how much a time may be wrong that is brought to our clock now."""
        return self._uncertainty + DRIFT * max(now - self._measured, 0.0)

    def ours(self, theirs: float) -> float:
        """Bring a time of the other clock to ours."""
        time = theirs - self._offset
        self.worst = max(self.worst, self.uncertainty(time))
        return time

    def __str__(self) -> str:
        return f"its clock is known to {1000 * self.worst:.3f} ms"
