import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaas.errors import UsageError
from kaas.load.ramp import Pace, Ramp

patient = settings(deadline=None)

PAPER = Ramp(1, 48, 1, 10.0)
UNEVEN = Ramp(2, 9, 3, 5.0)  # 2, 5, 8, 9 clients


@pytest.mark.parametrize(
    ("ramp", "elapsed", "started", "expected"),
    [
        # The paper's ramp: one more client every 10 s, from 1 to 48
        (PAPER, 0.0, 0, Pace(1, 10.0)),  # 0 s elapsed, none started -> start the first, look again after 10 s
        (PAPER, 0.0, 1, Pace(0, 10.0)),  # 0 s elapsed, it is started -> nothing to do for 10 s
        (PAPER, 4.0, 1, Pace(0, 6.0)),  # 4 s elapsed -> 6 s are left of this step
        (PAPER, 10.0, 1, Pace(1, 10.0)),  # just 10 s elapsed -> the second step has begun
        (PAPER, 25.0, 1, Pace(2, 5.0)),  # a step was slept through -> make up for it
        (PAPER, 25.0, 7, Pace(0, 5.0)),  # more are started than are due -> none is stopped
        (PAPER, 35.0, 3, Pace(1, 5.0)),  # 4 are due, one has died -> start another
        (PAPER, 470.0, 47, Pace(1, 10.0)),  # the last step, of 48, is as long as the others
        (PAPER, 479.5, 48, Pace(0, 0.5)),  # half a second before the end
        (PAPER, 480.0, 48, Pace(0, 0.0, done=True)),  # the end
        (PAPER, 9999.0, 48, Pace(0, 0.0, done=True)),  # long after the end
        # 3 more every 5 s, from 2 to 9: the last step is a smaller one
        (UNEVEN, 0.0, 0, Pace(2, 5.0)),  # the ramp begins with 2 at once
        (UNEVEN, 5.0, 2, Pace(3, 5.0)),  # 5 are due
        (UNEVEN, 10.0, 5, Pace(3, 5.0)),  # 8 are due
        (UNEVEN, 15.0, 8, Pace(1, 5.0)),  # 11 would be due, but 9 are the most
        (UNEVEN, 20.0, 9, Pace(0, 0.0, done=True)),  # the end
        # A step larger than the whole ramp
        (Ramp(1, 3, 10, 1.0), 1.0, 1, Pace(2, 1.0)),  # straight to the most
        (Ramp(1, 3, 10, 1.0), 2.0, 3, Pace(0, 0.0, done=True)),  # two steps in all
        # As many at the end as at the beginning: one step
        (Ramp(4, 4, 1, 2.0), 0.0, 0, Pace(4, 2.0)),
        (Ramp(4, 4, 1, 2.0), 2.0, 4, Pace(0, 0.0, done=True)),
    ],
)
def test_pace(ramp: Ramp, elapsed: float, started: int, expected: Pace) -> None:
    assert ramp.pace(elapsed, started) == expected


@pytest.mark.parametrize(
    ("ramp", "steps", "duration"),
    [
        (PAPER, 48, 480.0),  # the paper's run takes 8 minutes
        (UNEVEN, 4, 20.0),  # 2, 5, 8, 9
        (Ramp(1, 1, 1, 3.0), 1, 3.0),  # one client only
        (Ramp(1, 10, 9, 1.0), 2, 2.0),  # 1, 10: the step fits exactly
        (Ramp(1, 10, 8, 1.0), 3, 3.0),  # 1, 9, 10
        (Ramp(1, 10, 100, 0.5), 2, 1.0),  # 1, 10
    ],
)
def test_steps_and_duration(ramp: Ramp, steps: int, duration: float) -> None:
    assert ramp.steps == steps
    assert ramp.duration == duration


@pytest.mark.parametrize(
    ("elapsed", "clients"),
    [
        (0.0, 2),  # the beginning
        (4.999, 2),  # just before the second step
        (5.0, 5),  # the second step
        (14.999, 8),  # just before the last
        (15.0, 9),  # the last
        (19.999, 9),  # just before the end
        (20.0, 0),  # the end
        (1e9, 0),  # long after it
    ],
)
def test_clients_at(elapsed: float, clients: int) -> None:
    assert UNEVEN.clients_at(elapsed) == clients


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0, 4, 1, 1.0), "at least 1 client"),  # no client at first
        ((1, 4, 0, 1.0), "step of at least 1"),  # it would never get higher
        ((1, 4, -1, 1.0), "step of at least 1"),  # it would go down
        ((1, 4, 1, 0.0), "above 0 s"),  # steps without length
        ((1, 4, 1, -1.0), "above 0 s"),
        ((1, 4, 1, math.nan), "above 0 s"),
        ((4, 3, 1, 1.0), "from 4 clients to 3 goes down"),  # fewer at the end than at the beginning
    ],
)
def test_what_is_no_ramp_is_refused(numbers: tuple[int, int, int, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Ramp(*numbers)


ramps = st.builds(
    lambda least, more, step, interval: Ramp(least, least + more, step, interval),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(1, 70),
    st.floats(0.01, 100.0),
)


@patient
@given(ramps, st.floats(0.0, 1.0))
def test_a_ramp_only_rises_and_stays_within_its_bounds_until_its_end(ramp: Ramp, part: float) -> None:
    earlier, later = sorted((part * ramp.duration * 0.999, ramp.duration * 0.999))
    assert ramp.min_clients <= ramp.clients_at(earlier) <= ramp.clients_at(later) <= ramp.max_clients
    assert ramp.clients_at(later) == ramp.max_clients
    assert ramp.clients_at(ramp.duration * 1.001) == 0


@patient
@given(ramps)
def test_following_the_pace_starts_every_client_and_comes_to_the_end(ramp: Ramp) -> None:
    elapsed, started, looks = 0.0, 0, 0
    while not (pace := ramp.pace(elapsed, started)).done:
        assert pace.start >= 0
        assert pace.wait >= 0
        started += pace.start
        assert started == ramp.clients_at(elapsed)
        elapsed += pace.wait + 1e-9  # nobody wakes up earlier than asked
        looks += 1
    assert started == ramp.max_clients
    assert looks <= ramp.steps + 1
