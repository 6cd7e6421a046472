"""Policies decide what they say, by looking at a fleet and nothing else."""

import pytest

from kaas.placement import Placement
from kaas.policy import NAMES, Ahead, Packing, Paper, Policy, Queue, named


def fleet(loads: list[int], gpus: int = 3, workers: int = 2) -> Placement:
    made = Placement(gpus, workers)
    for gpu, load in enumerate(loads):
        made.boot(gpu)
        for _ in range(load):
            made.acquire(gpu)
    return made


@pytest.mark.parametrize("policy", [Paper(), Queue(5)])
@pytest.mark.parametrize(
    ("loads", "chosen", "boots"),
    [
        ([], None, 0),  # nothing is booted
        ([1], 0, 1),  # GPU 0 has a worker; if nobody may wait for it, GPU 1 would be next
        ([2], None, 1),  # all booted ones are full
        ([2, 1], 1, 2),
        ([1, 1], 0, 2),  # the lowest of equals
        ([1, 0], 1, 2),  # the fewest
        ([2, 2, 2], None, None),  # all are full, and none is left
    ],
)
def test_the_papers_choices(policy: Policy, loads: list[int], chosen: int | None, boots: int | None) -> None:
    looked_at = fleet(loads)
    before = repr(looked_at)
    assert policy.choose(looked_at) == chosen
    assert policy.boot(looked_at, waiting=1) == boots
    assert policy.boot(looked_at, waiting=0) is None
    assert repr(looked_at) == before


@pytest.mark.parametrize(("waiting", "may"), [(0, True), (4, True), (5, False), (6, False)])
def test_so_many_may_wait_in_a_queue_and_nobody_by_the_papers_policy(waiting: int, may: bool) -> None:
    full = fleet([2, 2, 2])
    assert Queue(5).may_wait(full, waiting) == may
    assert not Paper().may_wait(full, waiting)


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([], None),
        ([0, 1], 1),  # where most are
        ([1, 1], 0),  # the lowest of equals
        ([2, 0], 1),  # not where it is full
        ([2, 2, 2], None),
    ],
)
def test_packing_fills_one_gpu_before_it_uses_another(loads: list[int], chosen: int | None) -> None:
    assert Packing().choose(fleet(loads)) == chosen


@pytest.mark.parametrize(
    ("loads", "waiting", "boots"),
    [
        ([], 0, None),  # nothing is booted before somebody comes
        ([], 1, 0),
        ([1], 0, None),  # one place of two
        ([2], 0, 1),
        ([2, 0], 0, None),  # two of four: while GPU 1 boots, its places count
        ([2, 1], 0, 2),  # three of four
        ([1, 0, 0], 1, None),  # none is left
        ([2, 2, 2], 0, None),
    ],
)
def test_ahead_boots_as_soon_as_a_share_of_the_places_is_taken(
    loads: list[int], waiting: int, boots: int | None
) -> None:
    assert Ahead(0.75).boot(fleet(loads), waiting) == boots


def test_places_that_are_left_out_count_for_no_share() -> None:
    looked_at = fleet([1, 0])
    looked_at.leave_out(1)
    looked_at.leave_out(3)
    assert (looked_at.taken, looked_at.places) == (1, 2)
    assert Ahead(0.5).boot(looked_at, 0) == 2


@pytest.mark.parametrize("name", NAMES)
def test_any_policy_comes_with_a_queue_or_without(name: str) -> None:
    full, half = fleet([2, 2, 2]), fleet([1])
    assert not named(name).may_wait(full, 0)
    assert (named(name, 3).may_wait(full, 2), named(name, 3).may_wait(full, 3)) == (True, False)
    assert named(name, 3).choose(half) == named(name).choose(half) == 0
