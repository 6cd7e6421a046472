"""Keeps the load to its shape: which clients are due when, and which came late. Pure: it is told the time."""

from collections.abc import Iterator
from typing import NamedTuple

from kaas.ramp import Shape

_LATE = 0.5
_LATE_SHARE = 0.25
"""A step is late if its clients are by more than so many seconds and by more than this share of its length, unless a
user says how late they may be."""


class Step(NamedTuple):
    """A part of the run with so many clients, from `begin` to `end` in seconds from the start."""

    label: str
    begin: float
    end: float
    clients: int


class Pacer:
    """Keeps to a shape: which step it is, how many clients are to be there, and which steps had theirs late.

    The clients of the next step are prepared while this one goes on, so that they can begin when it does.

    Args:
        shape: the load's.
        max_late: seconds by which a step's clients may be late; None for a part of the step.
    """

    def __init__(self, shape: Shape, max_late: float | None = None) -> None:
        self._shape = shape
        self._max_late = max_late
        self.step = self._step_at(0.0)
        self.late: list[str] = []
        self._incomplete = True
        self._is_over = False

    @property
    def wanted(self) -> int:
        """How many clients are to be there, prepared or running: those of this step, and of the next."""
        return max(self.step.clients, self._shape.clients(self.step.end))

    @property
    def _length(self) -> float:
        return self.step.end - self.step.begin

    def over(self, elapsed: float, running: int) -> Iterator[Step]:
        """Go on to the step that it is now; give those that are over, the last one included, once each."""
        while elapsed >= self.step.end and not self._is_over:
            if self._incomplete and (self._max_late is None or self._length > self._max_late):
                self._note(f"never had its {self.step.clients} clients: {running} were running")
            yield self.step
            self._is_over = self.step.end >= self._shape.duration
            if self._is_over:
                return
            self.step, self._incomplete = self._step_at(self.step.end), True

    def have(self, elapsed: float, running: int) -> None:
        """Take notice of how many clients run by now."""
        if self._incomplete and running >= self.step.clients:
            self._incomplete = False
            late = elapsed - self.step.begin
            most = max(self._length * _LATE_SHARE, _LATE) if self._max_late is None else self._max_late
            if late > most:
                self._note(f"had its {self.step.clients} clients {late:.1f} s late")

    def _note(self, what: str) -> None:
        self.late.append(f"{self.step.label} {what}")

    def _step_at(self, begin: float) -> Step:
        shape = self._shape
        return Step(shape.label(begin), begin, shape.next_change(begin), shape.clients(begin))
