"""The one clock of a run: the epoch, read once when the run starts, plus this machine's monotonic clock.

All programs of a run count from the same pair: so their time stamps fit together, and a wall clock that is set
meanwhile tears no file. The scripts draw the pair once (`python -m kaas.clock`) and hand it on in KAAS_CLOCK; a program
that is started by hand draws its own. What the wall clock did meanwhile, a `Watch` finds out.
"""

import os
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from kaas import emulator
from kaas.errors import UsageError

VARIABLE = "KAAS_CLOCK"
MADE_UP = 946_684_800.0
"""2000-01-01 00:00:00 UTC: what was not measured is of that year, and nobody takes it for a measurement of today."""
_YEAR = 366 * 24 * 3600


class Clock(NamedTuple):
    """A pair of readings at one moment: seconds since the epoch (UTC), and seconds of `time.monotonic`."""

    epoch: float
    monotonic: float

    @classmethod
    def draw(cls) -> Self:
        """Read both clocks now; what an emulator plays is of the year 2000."""
        epoch = time.time()
        if os.environ.get(emulator.VARIABLE):
            epoch = MADE_UP + epoch % _YEAR
        return cls(epoch, time.monotonic())

    @classmethod
    def of_run(cls) -> Self:
        """Take the pair that the run's script has drawn, or draw one.

        Raises:
            UsageError: KAAS_CLOCK is no such pair, or one from before this machine was started.
        """
        text = os.environ.get(VARIABLE, "")
        if not text:
            return cls.draw()
        try:
            clock = cls(*map(float, text.split(":")))
            fits = 0.0 <= clock.monotonic <= time.monotonic() and clock.epoch >= 0.0
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise UsageError(f"{VARIABLE} is {text!r}, which is not of a run on this machine: unset it")
        return clock

    def now(self) -> float:
        """Tell the run's time, in seconds since the epoch."""
        return self.at(time.monotonic())

    def at(self, monotonic: float) -> float:
        """Tell the run's time at a reading of `time.monotonic`, in seconds since the epoch."""
        return self.epoch + (monotonic - self.monotonic)

    def __str__(self) -> str:
        return f"{self.epoch!r}:{self.monotonic!r}"


def in_words(seconds: float) -> str:
    """Say how long something takes: `3 s`, `1 min 40 s`, `1 h 5 min`."""
    whole = max(round(seconds), 0)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    larger, smaller = (f"{hours} h", f"{minutes} min") if hours else (f"{minutes} min", f"{rest} s")
    return f"{rest} s" if whole < 60 else larger if smaller.startswith("0 ") else f"{larger} {smaller}"  # noqa: PLR2004


class Readings(NamedTuple):
    """The machine's clocks at one moment, in seconds; `suspended` is how long it has slept since it was started."""

    monotonic: float
    wall: float
    suspended: float = 0.0


def read_clocks() -> Readings:
    """Read all clocks of this machine; one that does not tell how long it slept counts none."""
    slept = 0.0
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux; there alone it can be told from a wall clock that was set
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return Readings(time.monotonic(), time.time(), slept)


class Watch:
    """Finds out, look by look, what the wall clock did beside the run's clock, and where the run stood still.

    Args:
        clock: the run's.
        read: reads the machine's clocks.
    """

    STEP = 0.1
    """Seconds between two looks beyond which the wall clock was set, not slewed; it drifts by some microseconds."""
    GAP = 3.0
    """Seconds without a look after which the run must have stood still; it looks several times a second."""

    def __init__(self, clock: Clock, read: Callable[[], Readings] = read_clocks) -> None:
        self._clock = clock
        self._read = read
        self._first = self._last = read()
        self._stepped = 0.0
        self._notes: list[str] = []

    def look(self) -> None:
        """Compare the clocks; call it several times a second."""
        before, now = self._last, self._read()
        self._last = now
        passed = now.monotonic - before.monotonic
        slept = now.suspended - before.suspended
        step = now.wall - before.wall - passed - slept
        at = f"at {self._clock.at(before.monotonic):.3f}"
        if slept > self.STEP:
            self._notes.append(f"the machine slept for {slept:.1f} s {at}")
        if passed > self.GAP:
            self._notes.append(
                f"the run stood still for {passed:.1f} s {at}: it was stopped, or the machine overloaded"
            )
        if abs(step) > self.STEP:
            self._stepped += step
            self._notes.append(f"the wall clock was set by {step:+.3f} s {at}")

    def notes(self) -> dict[str, str]:
        """Describe what was found, for the description of the run; times are the run's own."""
        self.look()
        first, last = self._first, self._last
        slept = last.suspended - first.suspended
        drift = last.wall - first.wall - (last.monotonic - first.monotonic) - slept - self._stepped
        found = {"Clock": "the epoch when the run began, plus the machine's monotonic clock"}
        found["Wall clock drift [s]"] = f"{drift:+.6f}"
        if self._notes:
            found["Clock notes"] = "; ".join(self._notes)
        return found


if __name__ == "__main__":
    print(Clock.draw())  # noqa: T201
