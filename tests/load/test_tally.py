import pytest

from kaas.load.tally import Tally, percentile
from kaas.results import Row


def row(outer_ms: float = 100.0, status: str = "ok", *, cold: bool = False) -> Row:
    return Row(1_700_000_000.0, outer_ms / 2, outer_ms, 1.0, cold, copy=0, concurrency=1, status=status)


def tally_of(*rows: Row) -> Tally:
    tally = Tally()
    for one in rows:
        tally.add(one, 0.0)
    return tally


def test_rows_are_counted_by_status() -> None:
    tally = tally_of(row(), row(), row(status="rejected"), row(status="worker_lost"), row(status="wrong_result"))
    assert tally.by_status == {"ok": 2, "rejected": 1, "worker_lost": 1, "wrong_result": 1}


def test_a_refusal_is_no_failure_and_all_else_that_was_not_served_is() -> None:
    assert tally_of(row(), row(status="rejected")).failed == 0
    assert tally_of(row(), row(status="failed"), row(status="timeout"), row(status="wrong_result")).failed == 3


def test_cold_starts_are_kept_apart_from_warm_requests() -> None:
    tally = tally_of(row(outer_ms=900.0, cold=True), row(outer_ms=100.0), row(outer_ms=200.0))
    assert list(tally.cold_ms) == [900.0]
    assert list(tally.warm_ms) == [100.0, 200.0]


def test_the_time_of_a_request_that_was_not_served_is_never_averaged_in() -> None:
    tally = tally_of(row(outer_ms=1.0, status="rejected"), row(outer_ms=100.0), row(outer_ms=9999.0, status="timeout"))
    assert list(tally.warm_ms) == [100.0]
    assert tally.recent(0.1)[1:] == (100.0, 100.0)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        # One request of 500 ms whose row came at each of the seconds 0.5 to 9.5, and asked at `now`:
        (10.0, (1.0, 500.0, 500.0)),  # 5 of them came in the last 5 s
        (9.75, (1.0, 500.0, 500.0)),  # those of 5.5, 6.5, 7.5, 8.5 and 9.5
        (12.0, (0.6, 500.0, 500.0)),  # only those of 7.5, 8.5 and 9.5
        (14.5, (0.2, 500.0, 500.0)),  # one came just 5 s ago
        (20.0, (0.0, 0.0, 0.0)),  # none for a long time
    ],
)
def test_the_rate_is_that_of_the_last_five_seconds(now: float, expected: tuple[float, float, float]) -> None:
    tally = Tally()
    for second in range(10):
        tally.add(row(500.0), second + 0.5)
    assert tally.recent(now) == pytest.approx(expected)


def test_a_run_that_has_only_begun_is_rated_over_its_own_age() -> None:
    assert tally_of(row(500.0), row(500.0)).recent(1.0)[0] == pytest.approx(2.0)
    assert tally_of(row()).recent(0.0)[0] > 0


def test_a_step_of_the_systems_clock_does_not_change_what_is_recent() -> None:
    tally = Tally()
    for now, hours in ((1.0, 0), (2.0, -1), (3.0, 1)):
        tally.add(row()._replace(timestamp=1_700_000_000.0 + now + 3600 * hours), now)
    assert tally.recent(4.0) == pytest.approx((0.75, 100.0, 100.0))
    assert tally.recent(7.5) == pytest.approx((0.2, 100.0, 100.0))


def test_no_rows_make_no_rate() -> None:
    assert Tally().recent(0.0) == (0.0, 0.0, 0.0)
    assert Tally().failed == 0


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),  # of none
        ([7.0], 95, 7.0),  # of one
        ([3.0, 1.0, 2.0], 50, 2.0),  # the middle one, whatever their order
        ([1.0, 2.0], 50, 1.5),  # between the two beside it
        ([float(value) for value in range(101)], 95, 95.0),
        ([1.0, 5.0], 100, 5.0),  # the largest
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected
