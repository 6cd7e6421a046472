import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import request, write_run

from kaas import comparisons
from kaas.analysis import runs, statistics

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # of 97.5 %, as tables print it
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (120, 1.9799), (math.inf, 1.9600)],
)
def test_students_t_is_that_of_the_tables(degrees: float, quantile: float) -> None:
    assert statistics.t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-4)
    assert statistics.t_quantile(0.025, degrees) == pytest.approx(-quantile, abs=1e-4)
    assert statistics.t_beyond(quantile, degrees) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_an_interval_of_95_percent_covers_the_mean_in_95_percent(repeats: int) -> None:
    samples = np.random.default_rng(7).normal(100.0, 20.0, size=(2000, repeats))

    covered = [low <= 100.0 <= high for _, low, high in map(statistics.mean_interval, samples)]

    # The bootstrap's covered 51, 75 and 84 %.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_fewer_than_two_values_leave_no_interval_and_unknown_ones_do_not_count() -> None:
    assert statistics.mean_interval([5.0, math.nan]) == pytest.approx((5.0, math.nan, math.nan), nan_ok=True)
    assert statistics.mean_interval([math.nan]) == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert statistics.mean_interval([1.0, math.nan, 3.0]) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-3)


@given(NUMBERS)
def test_an_interval_holds_the_mean_and_one_of_less_confidence_lies_within_it(values: list[float]) -> None:
    wide, narrow = (statistics.mean_interval(values, confidence=part) for part in (0.95, 0.5))

    assert wide.low <= narrow.low <= narrow.mean == wide.mean <= narrow.high <= wide.high


def test_the_repeats_that_an_interval_takes_are_those_of_the_published_runs() -> None:
    five = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    # The mean of the last boot over the five published repeats, and its standard deviation.
    assert statistics.repeats_needed(444.1 + 34 * five / five.std(ddof=1)) == 12
    assert statistics.repeats_needed([95.0, 100.0, 105.0]) == 7  # 2.447 * 5 / sqrt(7) is 4.6, of six it is 5.2
    assert statistics.repeats_needed([100.0, 100.0]) == 2
    assert math.isnan(statistics.repeats_needed([100.0]))
    scattered = [100 + 95 / math.sqrt(2), 100 - 95 / math.sqrt(2)]
    assert statistics.repeats_needed(scattered, most=1600) == 1390  # 1.9617 * 95 / 5 is 37.27, whose square is 1389.2
    assert math.isnan(statistics.repeats_needed(scattered))


def test_welchs_comparison_is_that_of_its_textbook_example() -> None:
    # By hand: 2.5 and 5.75; squares of the errors 0.4167 and 1.5625; 4.5 degrees of freedom.
    found = statistics.welch([1, 2, 3, 4], [3, 5, 6, 9])

    assert found.difference.mean == -3.25
    assert found.p == pytest.approx(0.0748, abs=0.0002)
    assert found.difference.low == pytest.approx(-6.99, abs=0.01)
    # Hedges: -3.25 / 1.989 is -1.634, times 1 - 3 / 23.
    assert found.effect.mean == pytest.approx(-1.420, abs=0.001)


def test_where_nothing_scatters_or_a_side_has_one_value_chance_is_not_known() -> None:
    for own, other in (([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0]), ([], [1.0])):
        assert math.isnan(statistics.welch(own, other).p)


def test_holms_correction_takes_the_smallest_first_and_never_falls() -> None:
    corrected = comparisons.holm([0.01, math.nan, 0.04, 0.03, 0.5])

    assert corrected == pytest.approx([0.04, math.nan, 0.09, 0.09, 0.5], nan_ok=True)


def test_a_trend_is_not_turned_by_an_outlier() -> None:
    assert statistics.trend([1, 2, 3, 4, 5], [10, 12, 14, 16, 18]) == (2.0, 2.0, 2.0)
    assert statistics.trend([1, 2, 3, 4, 5], [10, 12, 900, 16, 18]).mean == 2.0
    assert math.isnan(statistics.trend([3, 3], [1, 2]).mean)


def test_the_interval_of_a_trend_covers_it_in_90_percent_if_so_asked() -> None:
    x, generator = np.arange(20.0), np.random.default_rng(2)

    found = [statistics.trend(x, 3 * x + generator.normal(0, 5, size=20), confidence=0.9) for _ in range(500)]

    assert np.mean([low <= 3 <= high for _, low, high in found]) == pytest.approx(0.9, abs=0.04)


def test_the_trend_of_very_many_points_is_found_without_all_their_pairs() -> None:
    x = np.arange(60_000.0)  # all pairs of them are 14 GB

    assert statistics.trend(x, 3 * x).mean == pytest.approx(3.0)


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
