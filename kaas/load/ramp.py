"""The load's shape over time, as a pure function of it: how many clients run, and when the next ones start."""

from dataclasses import dataclass
from typing import NamedTuple

from kaas.errors import UsageError

_MOST_CLIENTS = 10_000


class Pace(NamedTuple):
    """What is to be done now: start `start` more clients, then look again after `wait` seconds, or end."""

    start: int
    wait: float
    done: bool = False


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
    def duration(self) -> float:
        """Seconds from the first client's start to the end of the last step."""
        return self.steps * self.interval

    def clients_at(self, elapsed: float) -> int:
        """Tell how many clients run `elapsed` seconds after the start; none from the end on."""
        step = int(elapsed // self.interval)
        if step >= self.steps:
            return 0
        return min(self.min_clients + step * self.step_size, self.max_clients)

    def pace(self, elapsed: float, started: int) -> Pace:
        """Decide what is due `elapsed` seconds after the start, with `started` clients started by now."""
        step = int(elapsed // self.interval)
        if step >= self.steps:
            return Pace(0, 0.0, done=True)
        return Pace(max(self.clients_at(elapsed) - started, 0), (step + 1) * self.interval - elapsed)
