"""What a claim is judged by: what was found, how sure that is, and what follows from it for one run or for several."""

from collections.abc import Sequence
from typing import NamedTuple

from kaas.analysis import statistics
from kaas.analysis.statistics import Interval

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_BE_TOLD = "cannot be told"
NOT_TESTABLE = "not testable here"

ONE_SIDED = 0.90
"""Of an interval that misses the truth on either side in 5 %: a limit has one side only."""


class Quantity(NamedTuple):
    """What was measured, with its interval (see `ONE_SIDED`), and the limit that it must keep."""

    name: str
    unit: str
    estimate: Interval
    limit: float
    at_most: bool
    """Whether the limit is the highest that is allowed, else it is the lowest."""

    @property
    def margin(self) -> Interval:
        """By how much the limit is kept: not, where this is below 0."""
        mean, low, high = self.estimate
        if self.at_most:
            return Interval(self.limit - mean, self.limit - high, self.limit - low)
        return Interval(mean - self.limit, low - self.limit, high - self.limit)

    @property
    def verdict(self) -> str:
        """What follows; the limit itself is kept, and an estimate without an interval tells nothing."""
        margin = self.margin
        return HOLDS if margin.low >= 0 else DOES_NOT_HOLD if margin.high < 0 else CANNOT_BE_TOLD

    @property
    def words(self) -> str:
        """What was found, beside the limit."""
        mean, low, high = self.estimate
        return (
            f"{self.name} {mean:.3g}{self.unit} (from {low:.3g} to {high:.3g}; "
            f"at {'most' if self.at_most else 'least'} {self.limit:.3g})"
        )


class Finding(NamedTuple):
    """What one claim found in one run."""

    found: str
    sound: bool = True
    """Whether what was counted is as it should be; what was measured is judged besides."""
    quantities: tuple[Quantity, ...] = ()
    note: str = ""
    testable: bool = True
    """Whether the claim could hold on this machine at all."""

    @property
    def verdict(self) -> str:
        """What follows for the claim."""
        counted = HOLDS if self.sound else DOES_NOT_HOLD
        return worst([counted, *(one.verdict for one in self.quantities)], self.testable)


class UnclearError(Exception):
    """Why a run does not tell."""

    verdict = CANNOT_BE_TOLD


class OtherLoadError(UnclearError):
    """Why its load is none to which the claims could be put."""

    verdict = NOT_TESTABLE


def over_repeats(findings: Sequence[Finding]) -> tuple[str, str]:
    """Give what was found in repeats together, and the verdict.

    What was counted must be as it should in each of them. What was measured is judged by its mean over the repeats,
    with the interval that follows from how much they differ; of one repeat, by its own.
    """
    if len(findings) == 1:
        return findings[0].found, findings[0].verdict
    counted = [HOLDS if finding.sound else DOES_NOT_HOLD for finding in findings]
    together = [_mean(same) for same in zip(*(finding.quantities for finding in findings), strict=True)]
    testable = all(finding.testable for finding in findings)
    verdict = worst([*counted, *(one.verdict for one in together)], testable)
    words = "; ".join(one.words for one in together)
    broken = counted.count(DOES_NOT_HOLD)
    if broken:
        words += f"{'; ' if words else ''}what was counted is not as it should be in {broken} of {len(counted)} repeats"
    return words or f"as it should be in each of {len(findings)} repeats", verdict


def worst(verdicts: Sequence[str], testable: bool) -> str:
    """Give the verdict on what holds only if all of these do; what could not hold here and does not is not testable."""
    verdict = next((one for one in (DOES_NOT_HOLD, CANNOT_BE_TOLD) if one in verdicts), HOLDS)
    return verdict if testable or verdict == HOLDS else NOT_TESTABLE


def _mean(same: Sequence[Quantity]) -> Quantity:
    interval = statistics.mean_interval([one.estimate.mean for one in same], confidence=ONE_SIDED)
    limit = statistics.mean_interval([one.limit for one in same]).mean
    return same[0]._replace(name=f"mean {same[0].name}", estimate=interval, limit=limit)
