"""Where another clock stands: what round trips tell of it, and how that ages."""

import pytest

from kaas.cluster.offset import DRIFT, Offset


def test_the_other_clock_was_read_in_the_middle_give_or_take_half_of_the_round_trip() -> None:
    offset = Offset()
    offset.add(sent=10.0, theirs=1000.0, received=10.2)
    assert offset.ours(1000.0) == pytest.approx(10.1)
    assert offset.ours(1005.0) == pytest.approx(15.1)
    assert offset.uncertainty(10.2) == pytest.approx(0.1)


def test_a_shorter_round_trip_tells_more_and_a_longer_one_less_until_the_clocks_may_have_drifted() -> None:
    offset = Offset()
    offset.add(10.0, 1000.0, 10.002)
    offset.add(11.0, 1001.5, 12.0)  # one that was held up tells a wrong middle
    assert offset.ours(1001.0) == pytest.approx(11.001)
    later = 10.002 + 2 * 0.001 / DRIFT
    assert offset.uncertainty(later) == pytest.approx(0.003)
    offset.add(later, later + 990.0, later + 0.004)
    assert offset.ours(later + 990.0) == pytest.approx(later + 0.002)


def test_the_worst_that_a_time_may_have_been_wrong_by_is_told() -> None:
    offset = Offset()
    offset.add(10.0, 1000.0, 10.002)
    assert offset.worst == 0.0
    offset.ours(1000.0)
    offset.ours(1000.001 + 0.001 / DRIFT)
    offset.add(30.0, 1020.0, 30.0001)
    offset.ours(1020.0)
    assert offset.worst == pytest.approx(0.002, rel=0.01)
    assert str(offset) == f"its clock is known to {1000 * offset.worst:.3f} ms"
