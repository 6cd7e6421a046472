"""The load's shape over time, as a pure function of it: how many clients run at each moment.

`Shape` is what the load generator follows, whatever it looks like; the experiment's is the `Ramp`.
"""

from dataclasses import dataclass
from typing import Protocol

from kaas.errors import UsageError

_MOST_CLIENTS = 10_000


class Shape(Protocol):
    """So many clients at a time, each in a closed loop. Times are in seconds from the start."""

    @property
    def most(self) -> int:
        """The largest number of clients."""

    @property
    def duration(self) -> float:
        """How long all of it takes."""

    def clients(self, elapsed: float) -> int:
        """Tell how many clients run; none from the end on."""

    def next_change(self, elapsed: float) -> float:
        """Tell when that number next changes, which is when the next step begins, or the end."""

    def label(self, elapsed: float) -> str:
        """Name the step: `step 3/48`."""


@dataclass(frozen=True)
class Ramp:
    """`min_clients` at first; `step_size` more every `interval` seconds; the last step, of `max_clients`, as long.

    Raises:
        UsageError: there is no such ramp.
    """

    min_clients: int
    max_clients: int
    step_size: int
    interval: float

    def __post_init__(self) -> None:
        if self.min_clients < 1 or self.step_size < 1 or not self.interval > 0:
            raise UsageError("a ramp needs at least 1 client, a step of at least 1 and an interval above 0 s")
        if self.max_clients > _MOST_CLIENTS:
            raise UsageError(f"{self.max_clients} clients are over {_MOST_CLIENTS}")
        if self.max_clients < self.min_clients:
            raise UsageError(f"a ramp from {self.min_clients} clients to {self.max_clients} goes down, not up")

    @property
    def steps(self) -> int:
        """How many different numbers of clients there are; the last step may be a smaller one."""
        return 1 - (self.min_clients - self.max_clients) // self.step_size

    @property
    def most(self) -> int:
        """The clients of the last step."""
        return self.max_clients

    @property
    def duration(self) -> float:
        """Seconds from the first client's start to the end of the last step."""
        return self.steps * self.interval

    def clients(self, elapsed: float) -> int:
        """Tell how many clients run `elapsed` seconds after the start; none from the end on."""
        step = self._step(elapsed)
        return min(self.min_clients + step * self.step_size, self.max_clients) if step < self.steps else 0

    def next_change(self, elapsed: float) -> float:
        """Tell when the next step begins, in seconds from the start; the end's time in the last step and after it."""
        return min(self._step(elapsed) + 1, self.steps) * self.interval

    def label(self, elapsed: float) -> str:
        """Name the step, counted from 1."""
        return f"step {min(self._step(elapsed) + 1, self.steps)}/{self.steps}"

    def _step(self, elapsed: float) -> int:
        step = int(elapsed // self.interval)
        # The quotient of a step's own begin may come out as the step before.
        return step + (elapsed >= (step + 1) * self.interval)
