import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import request, write_run

from kaas.analysis import runs, statistics

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


def test_the_interval_of_two_values_is_their_range() -> None:
    # A quarter of the resamples is twice the one, a quarter twice the other.
    assert statistics.bootstrap_mean([1.0, 3.0]) == (2.0, 1.0, 3.0)


def test_fewer_than_two_values_leave_no_interval_and_unknown_ones_do_not_count() -> None:
    assert statistics.bootstrap_mean([5.0, math.nan]) == pytest.approx((5.0, math.nan, math.nan), nan_ok=True)
    assert statistics.bootstrap_mean([math.nan]) == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert statistics.bootstrap_mean([1.0, math.nan, 3.0]) == (2.0, 1.0, 3.0)


def test_the_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(7).normal(100.0, 20.0, size=400)
    error = values.std(ddof=1) / 20

    mean, low, high = statistics.bootstrap_mean(values)

    assert mean == pytest.approx(values.mean())
    assert ((mean - low) / error, (high - mean) / error) == pytest.approx((1.96, 1.96), rel=0.05)


@given(NUMBERS)
def test_an_interval_is_the_same_each_time_holds_the_mean_and_lies_within_the_values(values: list[float]) -> None:
    interval = statistics.bootstrap_mean(values, resamples=1000)

    assert interval == statistics.bootstrap_mean(values, resamples=1000)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.mean + slack
    assert interval.mean - slack <= interval.high <= max(values) + slack


def test_less_confidence_is_a_narrower_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    wide, narrow = (statistics.bootstrap_mean(values, confidence=part) for part in (0.95, 0.5))

    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_a_slope_is_not_turned_by_an_outlier() -> None:
    assert statistics.slope([1, 2, 3, 4, 5], [10, 12, 14, 16, 18]) == 2.0
    assert statistics.slope([1, 2, 3, 4, 5], [10, 12, 900, 16, 18]) == 2.0
    assert math.isnan(statistics.slope([3, 3], [1, 2]))


@pytest.mark.parametrize(
    ("y", "agreement"),
    [
        ([1, 2, 3, 4], 1.0),
        ([1, 1, 2, 2], 1.0),  # a step is no flaw
        ([4, 3, 2, 1], -1.0),
        ([1, 2, 3, 1], 0.2),  # three pairs agree, two do not, and one says nothing
        ([2, 2, 2, 2], math.nan),
    ],
)
def test_rank_agreement_tells_if_one_goes_up_and_down_with_the_other(y: list[int], agreement: float) -> None:
    assert statistics.rank_agreement([1, 2, 3, 4], y) == pytest.approx(agreement, nan_ok=True)


def test_steps_are_the_stretches_with_the_same_number_of_clients(tmp_path: Path) -> None:
    served = [request(at / 2, 500, concurrency=1 if at < 4 else 2) for at in range(9)]
    write_run(tmp_path, "task-1", [*served, request(3, 250, "rejected", concurrency=2)])
    (run,) = runs.find_runs(tmp_path)

    # What ends with a step counts for the next one; the last one ends when the last request begins.
    assert statistics.steps(run).to_numpy().tolist() == [[0.0, 2.0, 1.0, 1.5], [2.0, 4.0, 2.0, 2.0]]
    assert statistics.last_step(run) == (2.0, 4.0, 2.0, 2.0)


def test_the_last_step_is_the_longest_with_the_most_clients(tmp_path: Path) -> None:
    clients = [1, 3, 1, 3, 3, 3, 2, 2, 2, 2, 3]
    write_run(tmp_path, "task-1", [request(at, 250, concurrency=number) for at, number in enumerate(clients)])
    (run,) = runs.find_runs(tmp_path)

    assert statistics.last_step(run) == (3.0, 6.0, 3.0, 1.0)


def test_a_run_of_one_request_has_no_step(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 500)])
    (run,) = runs.find_runs(tmp_path)

    assert statistics.steps(run).empty
    assert statistics.last_step(run) is None


def test_in_flight_counts_the_part_of_each_request_that_lies_inside(tmp_path: Path) -> None:
    # Between 1 s and 3 s: 0.5 s, all 2 s, 0.25 s, nothing of the last; over 2 s.
    write_run(tmp_path, "task-1", [request(0, 1500), request(0, 9000), request(2.75, 1000, "timeout"), request(3, 100)])
    (run,) = runs.find_runs(tmp_path)

    assert statistics.mean_in_flight(run, 1.0, 3.0) == 1.375
