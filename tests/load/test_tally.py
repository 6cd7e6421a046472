import pytest

from kaas.load.tally import Figures, Tally, percentile
from kaas.row import Row


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
    assert tally.between(0.0, 1.0) == Figures(served=1, refused=1, failed=1, p50_ms=100.0, p95_ms=100.0)


def test_the_figures_of_a_step_are_of_what_ended_in_it_whenever_it_was_read() -> None:
    tally = Tally()
    for ended, ms in ((0.5, 10.0), (1.5, 30.0), (0.9, 20.0), (1.0, 40.0)):
        tally.add(row(ms), ended)
    assert tally.between(0.0, 1.0) == Figures(2, 0, 0, 15.0, 19.5)
    assert tally.between(1.0, 2.0) == Figures(2, 0, 0, 35.0, 39.5)


def test_what_is_forgotten_stays_counted() -> None:
    tally = Tally()
    tally.add(row(10.0), 0.5)
    tally.add(row(30.0), 1.5)
    tally.forget(1.0)
    assert tally.between(0.0, 2.0).served == 1
    assert tally.by_status == {"ok": 2}


def test_no_rows_make_no_figures() -> None:
    assert Tally().between(0.0, 1.0) == Figures(0, 0, 0, 0.0, 0.0)
    assert Tally().failed == 0


def test_failures_are_told_by_kind_each_with_its_commonest_reason() -> None:
    tally = tally_of(row(), row(status="rejected"), row(status="timeout"))
    for error in ("broken", "odd", "broken"):
        tally.add(row(status="failed")._replace(error=error), 0.0)
    assert tally.failures() == "3 failed, most often: broken; 1 timeout"


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),  # of none
        ([7.0], 95, 7.0),  # of one
        ([3.0, 1.0, 2.0], 50, 2.0),  # the middle one, whatever their order
        ([1.0, 2.0], 50, 1.5),  # between the two beside it
        ([float(value) for value in range(101)], 95, 95.0),
    ],
)
def test_percentile(values: list[float], percent: int, expected: float) -> None:
    assert percentile(values, percent) == expected
