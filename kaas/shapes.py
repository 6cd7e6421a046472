"""Shapes of the load besides the experiment's ramp (kaas.ramp), as pure functions of time.

In a closed loop a number of clients each send one request after the other. In an open loop requests arrive when they
do, and the clients are there to send them.
"""

from bisect import bisect_right
from dataclasses import dataclass

from kaas.arrivals import Arrivals
from kaas.ramp import Ramp


@dataclass(frozen=True)
class Stepwise:
    """So many clients from one moment on, and so many from the next; a closed loop. Times are in seconds.

    Args:
        name: as a user asks for it (kaas.shape_setting).
        begins: of the steps; the first is 0.0.
        numbers: the clients of each step, which may be 0.
        duration: when the last step ends.
    """

    name: str
    begins: tuple[float, ...]
    numbers: tuple[int, ...]
    duration: float

    @property
    def most(self) -> int:
        """The largest number of clients."""
        return max(self.numbers)

    def clients(self, elapsed: float) -> int:
        """Tell how many clients run; none from the end on."""
        return self.numbers[self._step(elapsed)] if elapsed < self.duration else 0

    def next_change(self, elapsed: float) -> float:
        """Tell when the next step begins; the end's time in the last step and after it."""
        step = self._step(elapsed) + 1
        return self.begins[step] if step < len(self.begins) else self.duration

    def label(self, elapsed: float) -> str:
        """Name the step, counted from 1."""
        return f"step {self._step(elapsed) + 1}/{len(self.begins)}"

    def _step(self, elapsed: float) -> int:
        return max(bisect_right(self.begins, elapsed) - 1, 0)


@dataclass(frozen=True)
class OpenLoop(Stepwise):
    """Requests that arrive when `arrivals` says, and clients to send them: as many all the time.

    What waits for a client that is free is sent late, and its time counts from its arrival all the same. The steps only
    divide the time.
    """

    arrivals: Arrivals = ()


def up_and_down(name: str, ramp: Ramp) -> Stepwise:
    """Make the shape that goes up as the ramp does, and then down by the same steps."""
    up = [ramp.clients(ramp.interval * step) for step in range(ramp.steps)]
    return evenly(name, [*up, *reversed(up[:-1])], ramp.interval)


def bursts(name: str, ramp: Ramp, number: int) -> Stepwise:
    """Make the shape that has the ramp's fewest clients, but its most in every second interval: so many times."""
    return evenly(name, [ramp.min_clients, *[ramp.max_clients, ramp.min_clients] * number], ramp.interval)


def evenly(name: str, numbers: list[int], interval: float) -> Stepwise:
    """Make a shape of steps that are all as long."""
    begins = tuple(step * interval for step in range(len(numbers)))
    return Stepwise(name, begins, tuple(numbers), len(numbers) * interval)


def open_loop(name: str, arrivals: Arrivals, clients: int, duration: float, interval: float) -> OpenLoop:
    """Make an open loop whose steps are an interval long, but for the last, which may be shorter."""
    begins = [0.0]
    while (begin := len(begins) * interval) < duration:
        begins.append(begin)
    return OpenLoop(name, tuple(begins), (clients,) * len(begins), duration, arrivals)
