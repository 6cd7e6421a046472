import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaas.errors import UsageError
from kaas.ramp import Ramp

patient = settings(deadline=None)

PAPER = Ramp(1, 48, 1, 10.0)
UNEVEN = Ramp(2, 9, 3, 5.0)  # 2, 5, 8, 9 clients


@pytest.mark.parametrize(
    ("ramp", "elapsed", "clients", "next_change", "label"),
    [
        # The paper's ramp: one more client every 10 s, from 1 to 48
        (PAPER, 0.0, 1, 10.0, "step 1/48"),  # 0 s elapsed -> the first; the second comes after 10 s
        (PAPER, 4.0, 1, 10.0, "step 1/48"),
        (PAPER, 10.0, 2, 20.0, "step 2/48"),  # just 10 s elapsed -> the second step has begun
        (PAPER, 479.5, 48, 480.0, "step 48/48"),  # the last step, of 48, is as long as the others
        (PAPER, 480.0, 0, 480.0, "step 48/48"),  # the end
        (PAPER, 9999.0, 0, 480.0, "step 48/48"),  # long after the end
        # 3 more every 5 s, from 2 to 9: the last step is a smaller one
        (UNEVEN, 0.0, 2, 5.0, "step 1/4"),
        (UNEVEN, 10.0, 8, 15.0, "step 3/4"),
        (UNEVEN, 15.0, 9, 20.0, "step 4/4"),  # 11 would be due, but 9 are the most
        # A step larger than the whole ramp; as many at the end as at the beginning
        (Ramp(1, 3, 10, 1.0), 1.0, 3, 2.0, "step 2/2"),
        (Ramp(4, 4, 1, 2.0), 0.0, 4, 2.0, "step 1/1"),
        # 0.3 is not three times 0.1 for a computer
        (Ramp(1, 9, 1, 0.1), 3 * 0.1, 4, 0.4, "step 4/9"),
    ],
)
def test_shape(ramp: Ramp, elapsed: float, clients: int, next_change: float, label: str) -> None:
    assert (ramp.clients(elapsed), ramp.label(elapsed)) == (clients, label)
    assert ramp.next_change(elapsed) == pytest.approx(next_change)


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
def test_clients(elapsed: float, clients: int) -> None:
    assert UNEVEN.clients(elapsed) == clients


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
    assert ramp.min_clients <= ramp.clients(earlier) <= ramp.clients(later) <= ramp.max_clients
    assert ramp.clients(later) == ramp.max_clients
    assert ramp.clients(ramp.duration * 1.001) == 0


@patient
@given(ramps)
def test_going_from_change_to_change_passes_every_step_once_and_comes_to_the_end(ramp: Ramp) -> None:
    elapsed, seen = 0.0, []
    while elapsed < ramp.duration:
        seen.append(ramp.clients(elapsed))
        elapsed = ramp.next_change(elapsed)
    assert seen == sorted(set(seen))
    assert (len(seen), seen[0], seen[-1]) == (ramp.steps, ramp.min_clients, ramp.max_clients)
