"""When requests arrive in an open loop, as pure sequences of seconds: nobody waits for a reply before the next comes.

A recorded sequence needs no class: a tuple of seconds is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from random import Random
from typing import Protocol


class Arrivals(Protocol):
    """Seconds from the start, in order; the same each time that they are gone through."""

    def __iter__(self) -> Iterator[float]:
        """Give one after the other."""


@dataclass(frozen=True)
class Constant:
    """`rate` arrivals a second, evenly, the first at 0 s, for `duration` seconds."""

    rate: float
    duration: float

    def __iter__(self) -> Iterator[float]:
        """Give one after the other."""
        number = 0
        while (at := number / self.rate) < self.duration:
            yield at
            number += 1


@dataclass(frozen=True)
class Poisson:
    """`rate` arrivals a second on average, each independent of all others (a Poisson process), for `duration` seconds.

    A seed gives the same ones whenever and wherever.
    """

    rate: float
    duration: float
    seed: int = 1

    def __iter__(self) -> Iterator[float]:
        """Give one after the other."""
        drawn = Random(self.seed)  # noqa: S311 - nothing secret
        at = 0.0
        while (at := at - log(1.0 - drawn.random()) / self.rate) < self.duration:
            yield at
