"""Policies decide what they say, by looking at a fleet and nothing else."""

import pytest

from kaas.placement import Placement
from kaas.policy import Paper, Policy, Queue


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
