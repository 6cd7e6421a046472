import random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kaas.placement import Placement
from kaas.policy import Paper

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], stateful_step_count=40
)


class Place(NamedTuple):
    worker: int
    gpu: int
    boots: bool


def acquire(placement: Placement) -> Place | None:
    """Do what the pool does with the paper's policy."""
    policy = Paper()
    gpu = policy.choose(placement)
    boots = gpu is None
    if gpu is None:
        gpu = policy.boot(placement, 1)
        if gpu is None:
            return None
        placement.boot(gpu)
    return Place(placement.acquire(gpu), gpu, boots)


class Model:
    """DESIGN.md's rule, word by word, by looking at everything each time."""

    def __init__(self, gpus: int, workers_per_gpu: int) -> None:
        self.gpus = gpus
        self.m = workers_per_gpu
        self.busy: dict[int, set[int]] = {}  # of each booted GPU
        self.left_out: set[int] = set()
        self.ready: set[int] = set()

    def acquire(self) -> Place | None:
        # Without workers that are left out, the GPU with the fewest in flight is full only if all are.
        with_idle = [gpu for gpu in self.busy if self.idle(gpu)]
        if with_idle:
            gpu = min(with_idle, key=lambda number: (len(self.busy[number]), number))
            worker = min(self.ready & set(self.idle(gpu)) or self.idle(gpu))
            self.busy[gpu].add(worker)
            return Place(worker, gpu, boots=False)
        not_booted = [gpu for gpu in range(self.gpus) if gpu not in self.busy and self.workers(gpu)]
        if not not_booted:
            return None
        gpu = min(not_booted)
        worker = min(self.workers(gpu))
        self.busy[gpu] = {worker}
        return Place(worker, gpu, boots=True)

    def release(self, worker: int) -> None:
        self.busy[worker // self.m].remove(worker)

    def stop(self, gpu: int) -> None:
        del self.busy[gpu]
        self.ready -= set(self.workers(gpu))

    def leave_out(self, worker: int) -> bool:
        gpu = worker // self.m
        self.left_out.add(worker)
        self.ready.discard(worker)
        self.busy[gpu].discard(worker)
        if self.workers(gpu):
            return False
        del self.busy[gpu]
        return True

    def set_ready(self, worker: int, ready: bool) -> None:
        (self.ready.add if ready else self.ready.discard)(worker)

    def workers(self, gpu: int) -> list[int]:
        return [worker for worker in range(gpu * self.m, (gpu + 1) * self.m) if worker not in self.left_out]

    def idle(self, gpu: int) -> list[int]:
        return [worker for worker in self.workers(gpu) if worker not in self.busy[gpu]]

    def all_usable(self) -> list[int]:
        return [worker for gpu in sorted(self.busy) for worker in self.workers(gpu)]

    def all_busy(self) -> list[int]:
        return sorted(worker for workers in self.busy.values() for worker in workers)

    def resting(self) -> list[int]:
        return sorted(gpu for gpu, workers in self.busy.items() if not workers)


class Against(RuleBasedStateMachine):
    @initialize(gpus=st.integers(1, 5), workers_per_gpu=st.integers(1, 4))
    def begin(self, gpus: int, workers_per_gpu: int) -> None:
        self.model = Model(gpus, workers_per_gpu)
        self.placement = Placement(gpus, workers_per_gpu)

    @rule()
    def acquire(self) -> None:
        assert acquire(self.placement) == self.model.acquire()

    @rule()
    def acquire_until_full(self) -> None:
        while (place := self.model.acquire()) is not None:
            assert acquire(self.placement) == place
        assert acquire(self.placement) is None

    @precondition(lambda self: self.model.all_busy())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.model.all_busy()))
        self.model.release(worker)
        self.placement.release(worker)

    @precondition(lambda self: self.model.all_busy())
    @rule(data=st.data())
    def release_all_of_a_gpu(self, data: st.DataObject) -> None:
        gpu = data.draw(st.sampled_from(self.model.all_busy())) // self.model.m
        for worker in sorted(self.model.busy.get(gpu, ())):
            self.model.release(worker)
            self.placement.release(worker)

    @precondition(lambda self: self.model.resting())
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        gpu = data.draw(st.sampled_from(self.model.resting()))
        self.model.stop(gpu)
        self.placement.stop(gpu)

    @precondition(lambda self: self.model.all_usable())
    @rule(data=st.data())
    def leave_out(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.model.all_usable()))
        assert self.placement.leave_out(worker) == self.model.leave_out(worker)

    @precondition(lambda self: self.model.all_usable())
    @rule(data=st.data(), ready=st.booleans())
    def become_ready_or_lost(self, data: st.DataObject, ready: bool) -> None:
        worker = data.draw(st.sampled_from(self.model.all_usable()))
        self.model.set_ready(worker, ready)
        self.placement.set_ready(worker, ready=ready)

    @rule(worker=st.integers(-2, 25))
    def leave_out_what_is_not_in_use(self, worker: int) -> None:
        if worker not in self.model.all_usable():
            with pytest.raises(ValueError, match="cannot be left out"):
                self.placement.leave_out(worker)

    @rule(worker=st.integers(-2, 25))
    def release_what_is_not_in_flight(self, worker: int) -> None:
        if worker not in self.model.all_busy():
            with pytest.raises(ValueError, match="no invocation"):
                self.placement.release(worker)

    @rule(gpu=st.integers(-1, 6))
    def stop_what_is_not_resting(self, gpu: int) -> None:
        if gpu not in self.model.resting():
            with pytest.raises(ValueError, match="cannot be stopped"):
                self.placement.stop(gpu)

    @invariant()
    def same_account(self) -> None:
        if hasattr(self, "model"):
            assert self.placement.booted == sorted(self.model.busy)
            for gpu, workers in self.model.busy.items():
                assert self.placement.in_flight(gpu) == len(workers)
                ready = self.model.ready & set(self.model.workers(gpu))
                assert self.placement.ready(gpu) == len(ready)
                assert self.placement.ready_and_idle(gpu) == len(ready - workers)
            for gpu in range(self.model.gpus):
                assert self.placement.workers(gpu) == self.model.workers(gpu)
            loads = {gpu: len(workers) for gpu, workers in self.model.busy.items() if self.model.idle(gpu)}
            assert self.placement.most_loaded() == min(loads, key=lambda gpu: (-loads[gpu], gpu), default=None)
            assert self.placement.taken == len(self.model.all_busy())
            assert self.placement.places == len(self.model.all_usable())
            assert self.placement.exhausted == (len(self.model.left_out) == self.model.gpus * self.model.m)


TestAgainstTheRuleWordByWord = Against.TestCase
TestAgainstTheRuleWordByWord.settings = patient


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_long_random_histories_follow_the_rule(gpus: int, workers_per_gpu: int, seed: int) -> None:
    model, placement, draw = Model(gpus, workers_per_gpu), Placement(gpus, workers_per_gpu), random.Random(seed)
    for _ in range(300):
        busy, resting = model.all_busy(), model.resting()
        match draw.choice(("acquire", "acquire", "release", "ready", "lost", "stop", "leave out")):
            case "acquire":
                assert acquire(placement) == model.acquire()
            case "release" if busy:
                worker = draw.choice(busy)
                model.release(worker)
                placement.release(worker)
            case ("ready" | "lost") as event if usable := model.all_usable():
                worker = draw.choice(usable)
                model.set_ready(worker, event == "ready")
                placement.set_ready(worker, ready=event == "ready")
            case "stop" if resting:
                gpu = draw.choice(resting)
                model.stop(gpu)
                placement.stop(gpu)
            case "leave out" if (usable := model.all_usable()) and draw.random() < 0.1:
                worker = draw.choice(usable)
                assert placement.leave_out(worker) == model.leave_out(worker)
    assert placement.booted == sorted(model.busy)


# The lines of the rule, one by one


def places(placement: Placement, number: int) -> list[Place | None]:
    return [acquire(placement) for _ in range(number)]


@pytest.mark.parametrize(
    ("released", "expected"),
    [
        # Two GPUs of two workers, all four busy, then these are released, and one more comes:
        ([0, 3], Place(0, 0, boots=False)),  # one in flight on each GPU -> the lowest number of equals
        ([2, 3], Place(2, 1, boots=False)),  # none in flight on GPU 1, two on GPU 0 -> the fewest, lowest worker
        ([3], Place(3, 1, boots=False)),  # only GPU 1 has an idle worker
        ([1, 0], Place(0, 0, boots=False)),  # both of GPU 0, in the other order -> its lowest worker all the same
        ([0, 2, 3], Place(2, 1, boots=False)),  # one in flight on GPU 0, none on GPU 1
        ([3, 2, 1, 0], Place(0, 0, boots=False)),  # nothing in flight anywhere
        ([], None),  # all are full and no GPU is left
    ],
)
def test_the_gpu_with_the_fewest_in_flight_gives_its_lowest_idle_worker(
    released: list[int], expected: Place | None
) -> None:
    placement = Placement(2, 2)
    places(placement, 4)
    for worker in released:
        placement.release(worker)
    assert acquire(placement) == expected


def test_gpus_are_booted_one_after_the_other_each_when_the_booted_ones_are_full() -> None:
    assert places(Placement(3, 2), 7) == [
        Place(0, 0, boots=True),
        Place(1, 0, boots=False),
        Place(2, 1, boots=True),
        Place(3, 1, boots=False),
        Place(4, 2, boots=True),
        Place(5, 2, boots=False),
        None,
    ]


@settings(deadline=None)
@given(released=st.lists(st.integers(0, 999), unique=True), stops=st.booleans())
def test_of_a_thousand_gpus_the_lowest_that_can_be_taken_comes_first(released: list[int], stops: bool) -> None:
    placement = Placement(1000, 1)
    assert places(placement, 1001) == [*(Place(gpu, gpu, boots=True) for gpu in range(1000)), None]
    for gpu in released:
        placement.release(gpu)
        if stops:
            placement.stop(gpu)
    expected = [Place(gpu, gpu, boots=stops) for gpu in sorted(released)]
    assert places(placement, len(released) + 1) == [*expected, None]


def test_a_worker_that_boots_is_taken_only_if_no_ready_one_of_its_gpu_is_idle() -> None:
    placement = Placement(2, 3)
    acquire(placement)
    for worker in (1, 2):
        placement.set_ready(worker, ready=True)
    placement.release(0)
    placement.set_ready(0, ready=False)  # it was lost, and boots again
    assert places(placement, 4) == [
        Place(1, 0, boots=False),
        Place(2, 0, boots=False),
        Place(0, 0, boots=False),  # it boots, but another GPU is booted only when this one is full
        Place(3, 1, boots=True),
    ]


def test_of_two_gpus_the_less_loaded_is_taken_even_if_it_boots() -> None:
    placement = Placement(2, 2)
    places(placement, 4)
    for worker in (0, 1):
        placement.set_ready(worker, ready=True)
    for worker in (1, 2, 3):
        placement.release(worker)
    assert acquire(placement) == Place(2, 1, boots=False)


def test_a_gpu_that_is_booted_or_full_takes_no_more() -> None:
    placement = Placement(1, 1)
    acquire(placement)
    with pytest.raises(ValueError, match="cannot be booted"):
        placement.boot(0)
    with pytest.raises(ValueError, match="no idle worker"):
        placement.acquire(0)


def test_no_gpu_is_booted_while_a_booted_one_has_an_idle_worker() -> None:
    placement = Placement(3, 2)
    places(placement, 4)
    placement.release(1)
    assert acquire(placement) == Place(1, 0, boots=False)
    assert acquire(placement) == Place(4, 2, boots=True)


def test_a_stopped_gpu_is_booted_again_and_the_lowest_number_first() -> None:
    placement = Placement(3, 1)
    places(placement, 3)
    for gpu in (2, 0):
        placement.release(gpu)
        placement.stop(gpu)
    assert placement.booted == [1]
    assert places(placement, 3) == [Place(0, 0, boots=True), Place(2, 2, boots=True), None]


def test_a_refusal_changes_nothing() -> None:
    placement = Placement(1, 1)
    acquire(placement)
    before = repr(placement)
    assert places(placement, 3) == [None, None, None]
    assert repr(placement) == before
    placement.release(0)
    assert acquire(placement) == Place(0, 0, boots=False)


def test_one_worker_on_one_gpu_serves_again_and_again() -> None:
    placement = Placement(1, 1)
    assert acquire(placement) == Place(0, 0, boots=True)
    for _ in range(1000):
        placement.release(0)
        assert acquire(placement) == Place(0, 0, boots=False)


@pytest.mark.parametrize(
    "worker",
    [
        1,  # idle on a booted GPU
        2,  # of a GPU that is not booted
        99,  # of no GPU at all
        -1,
    ],
)
def test_a_worker_without_an_invocation_cannot_be_released(worker: int) -> None:
    placement = Placement(2, 2)
    acquire(placement)
    with pytest.raises(ValueError, match=f"worker {worker} "):
        placement.release(worker)
    assert places(placement, 4) == [
        Place(1, 0, boots=False),
        Place(2, 1, boots=True),
        Place(3, 1, boots=False),
        None,
    ]


def test_a_worker_cannot_be_released_twice() -> None:
    placement = Placement(1, 2)
    acquire(placement)
    placement.release(0)
    with pytest.raises(ValueError, match="worker 0 "):
        placement.release(0)


@pytest.mark.parametrize("gpu", [0, 1, 99, -1])  # busy, not booted, not there, not there
def test_only_a_booted_gpu_without_invocations_can_be_stopped(gpu: int) -> None:
    placement = Placement(2, 2)
    acquire(placement)
    with pytest.raises(ValueError, match=f"GPU {gpu} cannot be stopped"):
        placement.stop(gpu)
    assert placement.booted == [0]


def test_a_worker_that_is_left_out_gets_no_invocation_even_if_its_gpu_is_booted_again() -> None:
    placement = Placement(1, 3)
    places(placement, 3)
    assert not placement.leave_out(1)
    for worker in (0, 2):
        placement.release(worker)
    placement.stop(0)
    assert places(placement, 3) == [Place(0, 0, boots=True), Place(2, 0, boots=False), None]


def test_a_gpu_with_a_worker_left_out_is_full_sooner_and_the_others_go_on() -> None:
    placement = Placement(2, 3)
    acquire(placement)
    placement.leave_out(1)
    assert places(placement, 4) == [
        Place(2, 0, boots=False),
        Place(3, 1, boots=True),
        Place(4, 1, boots=False),
        Place(5, 1, boots=False),
    ]
    assert acquire(placement) is None


def test_a_gpu_all_of_whose_workers_are_left_out_is_never_booted_again() -> None:
    placement = Placement(2, 2)
    acquire(placement)
    assert [placement.leave_out(0), placement.leave_out(1)] == [False, True]
    assert (placement.booted, placement.exhausted) == ([], False)
    assert places(placement, 3) == [Place(2, 1, boots=True), Place(3, 1, boots=False), None]
    assert [placement.leave_out(3), placement.leave_out(2)] == [False, True]
    assert (acquire(placement), placement.exhausted) == (None, True)


def test_its_repr_reads_like_a_sentence() -> None:
    placement = Placement(3, 2)
    assert repr(placement) == "<Placement nothing booted; 3 not booted>"
    places(placement, 3)
    assert repr(placement) == "<Placement GPU 0: 2/2, GPU 1: 1/2; 1 not booted>"
    placement.release(0)
    assert repr(placement) == "<Placement GPU 0: 1/2, GPU 1: 1/2; 1 not booted>"
    placement.leave_out(3)
    assert repr(placement) == "<Placement GPU 0: 1/2, GPU 1: 1/1; 1 not booted>"
