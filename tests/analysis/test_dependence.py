import math
from pathlib import Path

import numpy as np
import pytest
from made_runs import PUBLISHED, needs_published, request, write_run

from kaas.analysis import dependence, runs
from kaas.analysis.series import Floats


def autoregressive(number: int, memory: float) -> Floats:
    """Give numbers of which each remembers a part of the one before."""
    values = np.random.default_rng(1).normal(size=number)
    for place in range(1, number):
        values[place] += memory * values[place - 1]
    return values


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8])
def test_numbers_that_remember_those_before_them_are_worth_fewer(memory: float) -> None:
    # Theory: (1 - memory) / (1 + memory) of them.
    worth = dependence.effective_number(autoregressive(20_000, memory)) / 20_000

    assert worth == pytest.approx((1 - memory) / (1 + memory), rel=0.3, abs=0.0)


def test_a_few_numbers_or_equal_ones_do_not_tell() -> None:
    assert math.isnan(dependence.effective_number([1.0, 2.0] * 20))
    assert math.isnan(dependence.effective_number([5.0] * 1000))


def test_an_interval_from_blocks_is_as_wide_as_the_dependence_makes_it() -> None:
    values = autoregressive(4000, 0.8)

    (of_blocks,) = dependence.block_bootstrap(values, [0.5])
    (of_shuffled,) = dependence.block_bootstrap(np.random.default_rng(2).permutation(values), [0.5])

    assert of_blocks.mean == of_shuffled.mean == np.median(values)
    assert of_blocks.low < of_blocks.mean < of_blocks.high
    # The root of (1 + 0.8) / (1 - 0.8) is 3.
    assert (of_blocks.high - of_blocks.low) / (of_shuffled.high - of_shuffled.low) == pytest.approx(2.6, abs=0.6)
    assert dependence.block_bootstrap(values, [0.5]) == [of_blocks]


def test_blocks_of_a_few_numbers_give_no_interval() -> None:
    assert dependence.block_bootstrap([1.0, 2.0], [0.5])[0] == pytest.approx((1.5, math.nan, math.nan), nan_ok=True)
    assert math.isnan(dependence.block_bootstrap([], [0.5])[0].mean)


@pytest.mark.parametrize(("slower", "drift"), [(1.0, 0.0), (2.0, 100.0)])
def test_a_step_whose_second_half_is_slower_is_not_steady(tmp_path: Path, slower: float, drift: float) -> None:
    # Steps of 10 s: in the first half 10 requests of 500 ms, in the second as many as fit.
    rows = []
    for step in range(6):
        rows += [request(10 * step + turn / 2, 499, concurrency=1 + step) for turn in range(10)]
        turns = int(10 / slower)
        rows += [
            request(10 * step + 5 + turn * slower / 2, 499 * slower, concurrency=1 + step) for turn in range(turns)
        ]
    write_run(tmp_path, "task-1", rows)

    found = dependence.within(runs.find_runs(tmp_path)).loc["task-1"]

    assert found["steps"] == 5  # the first waits for its boot
    assert found["second half less first, p50 [%]"] == pytest.approx(drift, abs=1)
    assert found["second half less first, throughput [%]"] == pytest.approx(-50 if drift else 0, abs=10)


def test_a_run_of_one_request_tells_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 500)])

    found = dependence.within(runs.find_runs(tmp_path)).loc["task-1"]

    assert (found["warm requests"], found["steps"], found["p50 [ms]"]) == (1, 0, 500)
    assert found.isna().sum() == 13


@needs_published
def test_the_published_completion_times_are_worth_a_tenth_of_as_many_independent_ones() -> None:
    found = dependence.within(runs.find_runs(PUBLISHED))

    assert (found["effective number"] / found["warm requests"]).between(0.05, 0.15).all()
