"""Work that is done at once by sharing what does it, and the memory of a host, which clients share to copy."""

import heapq
import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from kaas.simulation.loop import Timeline
from kaas.simulation.model import Model


class Sharing:
    """Processor sharing: `n` pieces of work, each done at the same `speed(n)`.

    A change of `n` costs the logarithm of `n`: all that is at work has had the same since it came, so what is done
    first is known by what each had been told was done when it came.

    Args:
        loop: tells the time.
        speed: tells the work done in a second of each of so many, from now until that number changes.
    """

    def __init__(self, loop: Timeline, speed: Callable[[int], float]) -> None:
        self._loop = loop
        self._speed_of = speed
        self._work: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = count()
        self._had = 0.0  # by each that was there all the time
        self._since = 0.0
        self._speed = 0.0
        self._turn = 0

    def __len__(self) -> int:
        return len(self._work)

    def add(self, work: float, done: Callable[..., object], *values: Any) -> None:
        """Begin with a piece of work, in seconds of one alone at speed 1; `done(*values)` when it is done."""
        self._go_on()
        heapq.heappush(self._work, (self._had + work, next(self._numbers), done, values))
        self._plan()

    def _go_on(self) -> None:
        now = self._loop.time()
        self._had += (now - self._since) * self._speed
        self._since = now

    def _plan(self) -> None:
        self._turn += 1
        number = len(self._work)
        self._speed = speed = self._speed_of(number) if number else 0.0
        if number:
            wait = max(0.0, self._work[0][0] - self._had) / speed
            self._loop.at(self._since + wait, self._first_is_done, self._turn)

    def _first_is_done(self, turn: int) -> None:
        if turn != self._turn:  # somebody else came meanwhile
            return
        self._go_on()
        self._had, _, done, values = heapq.heappop(self._work)
        self._plan()
        done(*values)


class Host:
    """One machine's memory: how long clients take to set up their input, with others at it.

    Its speed wanders: the logarithm is an Ornstein-Uhlenbeck process, looked at whenever the number of clients changes.
    """

    def __init__(self, model: Model, loop: Timeline, normals: Iterator[float]) -> None:
        self._model = model
        self._loop = loop
        self._normals = normals
        self._sharing = Sharing(loop, self._speed)
        self._speeds: list[float] = []  # without noise, of so many
        self._noise = next(normals)
        self._noise_at = 0.0

    def __len__(self) -> int:
        return len(self._sharing)

    def set_up(self, done: Callable[..., object], *values: Any) -> None:
        """Copy one client's input; `done(*values)` then."""
        model, company = self._model, len(self._sharing) + 1
        spread = min(model.setup_spread + model.setup_spread_per_client * company, model.setup_spread_most)
        work = model.setup_alone * (math.exp(spread * next(self._normals)) if spread else 1.0)
        self._sharing.add(work, done, *values)

    def _speed(self, number: int) -> float:
        model = self._model
        while len(self._speeds) <= number:
            self._speeds.append(model.setup_alone / model.setup(max(1, len(self._speeds))))
        speed = self._speeds[number]
        if not model.host_noise or number <= model.host_noise_from:
            return speed
        now = self._loop.time()
        kept = math.exp((self._noise_at - now) / model.host_noise_time)
        self._noise = kept * self._noise + math.sqrt(1.0 - kept * kept) * next(self._normals)
        self._noise_at = now
        part = (number - model.host_noise_from) / (model.host_noise_full - model.host_noise_from)
        return speed * math.exp(model.host_noise * self._noise * min(part, 1.0))
