"""The simulation agrees with the published run, and does not if any part of the mechanism is another."""

import agreement
import numpy as np
import pytest
from agreement import MANY

from kaas import ROOT
from kaas.errors import ResultsError
from kaas.simulation import observed
from kaas.simulation.experiment import Simulated
from kaas.simulation.observed import Observed

FIVE, TWO = range(1, 6), range(1, 3)
"""Seeds."""
WRONG = tuple(agreement.wrong(agreement.published()))


@pytest.fixture(scope="module")
def five() -> list[Simulated]:
    return agreement.run(agreement.published(), FIVE)


@pytest.fixture(scope="module")
def measured() -> list[Observed]:
    try:
        return observed.read(ROOT.parent / "shared" / "paper-results")
    except ResultsError as error:
        pytest.skip(f"the published results are not here: {error}")


def test_a_simulated_run_agrees_with_the_published_ones(five: list[Simulated]) -> None:
    assert agreement.disagreements(five) == []


@pytest.mark.parametrize("what", WRONG)
def test_with_a_wrong_mechanism_it_does_not(what: str) -> None:
    assert agreement.disagreements(agreement.run(agreement.wrong(agreement.published())[what], TWO)) != []


def test_completion_times_agree_at_every_step(five: list[Simulated], measured: list[Observed]) -> None:
    simulated = agreement.completion(five)
    means = {one: np.mean([run.completion()[one] for run in measured]) for one in simulated}
    off = {one: simulated[one] / means[one] - 1 for one in simulated}
    assert {one: round(by, 3) for one, by in off.items() if abs(by) > 0.1} == {}
    assert np.mean(np.abs(list(off.values()))) < 0.03


@pytest.mark.slow
def test_many_simulated_runs_scatter_as_the_published_ones_do() -> None:
    assert agreement.disagreements(agreement.run(agreement.published(), range(1, MANY + 1))) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_with_a_wrong_mechanism_many_do_not(what: str) -> None:
    said = agreement.disagreements(agreement.run(agreement.wrong(agreement.published())[what], range(1, MANY + 1)))
    assert len(said) >= 2, "hardly another mechanism"
