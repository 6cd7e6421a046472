"""The pool over GPUs that come and go with their nodes, in virtual time."""

from collections.abc import Iterator
from random import Random

import pytest
from test_pool import Bench

from kaas.policy import Ahead, Fleet, Paper, Queue
from kaas.pool.nodes import Nodes
from kaas.pool.status import status
from kaas.simulation.loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """An event loop in virtual time."""
    made = VirtualLoop()
    yield made
    made.close()


def two_nodes(loop: VirtualLoop, policy: Paper | None = None) -> Bench:
    """Two GPUs, one on each of two nodes."""
    bench = Bench(loop, policy or Paper(), gpus=0, workers_per_gpu=1)
    Nodes(bench.pool).offer([0], "a")
    Nodes(bench.pool).offer([1], "b")
    bench.pass_time(1.0)
    return bench


def test_what_the_workers_of_a_lost_node_had_is_answered_worker_lost_and_the_others_go_on(loop: VirtualLoop) -> None:
    bench = two_nodes(loop)
    for number in (0, 1):
        bench.ask()
        bench.workers[number].be_ready()
    Nodes(bench.pool).withdraw([0], "node a is lost: no word")
    assert bench.statuses() == ["worker_lost"]
    assert bench.replies[0].error == "worker 0 on GPU 0 was lost: node a is lost: no word"
    assert bench.events[-2:] == ["lost node a is lost: no word", "stopped node a is lost: no word"]
    bench.workers[1].reply()
    bench.ask()
    bench.workers[1].reply()
    assert bench.statuses() == ["worker_lost", "ok", "ok"]
    assert [worker["gpu"] for worker in status(bench.pool)["workers"]] == [1]


def test_what_had_not_begun_on_a_lost_node_goes_to_another_and_not_to_one_more_of_that_node(loop: VirtualLoop) -> None:
    bench = Bench(loop, Paper(), gpus=0, workers_per_gpu=1)
    Nodes(bench.pool).offer([0, 1], "a")
    Nodes(bench.pool).offer([2], "b")
    bench.ask()  # its worker is yet to boot
    Nodes(bench.pool).withdraw([0, 1], "node a is lost")
    bench.workers[2].be_ready()
    bench.workers[2].reply()
    assert [(reply.status, reply.gpu) for reply in bench.replies] == [("ok", 2)]


def test_the_gpus_of_a_lost_node_come_back_with_it_and_are_booted_again(loop: VirtualLoop) -> None:
    bench = two_nodes(loop)
    bench.ask()
    lost = bench.workers[0]
    Nodes(bench.pool).withdraw([0], "node a is lost")
    lost.tell.ended("its node was lost", False)  # whenever the engine says so: it is too late
    bench.pass_time(60.0)
    Nodes(bench.pool).offer([0], "a")
    bench.workers[1].be_ready()
    bench.ask()
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    assert [(reply.status, reply.gpu, reply.cold_start) for reply in bench.replies] == [("ok", 0, True)]


def test_workers_that_were_left_out_get_another_chance_when_their_node_comes_back(loop: VirtualLoop) -> None:
    bench = two_nodes(loop)
    bench.ask()
    for _ in range(5):
        bench.workers[0].be_lost("it cannot load the kernel")
        bench.pass_time(2.0)
    assert status(bench.pool)["by_gpu"][0]["workers"] == 0
    Nodes(bench.pool).withdraw([0], "node a is lost")
    Nodes(bench.pool).offer([0], "a")
    assert status(bench.pool)["by_gpu"][0]["workers"] == 1


@pytest.mark.parametrize("policy", [Paper(), Queue(10)], ids=["reject", "queue"])
def test_without_any_node_requests_are_refused_with_the_reason_until_one_comes_back(
    loop: VirtualLoop, policy: Paper
) -> None:
    bench = two_nodes(loop, policy)
    Nodes(bench.pool).withdraw([1], "node b is lost")
    bench.ask()
    bench.ask()  # waits, if it may
    bench.workers[0].be_ready()
    Nodes(bench.pool).withdraw([0], "node a is lost")
    bench.ask()
    assert sorted(bench.statuses()) == ["rejected", "rejected", "worker_lost"]
    assert bench.replies[-1].error == "no GPU is left, for node a is lost"
    Nodes(bench.pool).offer([0], "a")
    bench.replies.clear()
    for _ in range(2):
        bench.ask()
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    if isinstance(policy, Queue):
        bench.workers[0].reply()
        assert bench.statuses() == ["ok", "ok"]
    else:
        assert bench.statuses() == ["rejected", "ok"]
        assert bench.replies[0].error == "all 2 x 1 workers are busy"


def test_a_node_that_joins_later_is_used_and_those_who_wait_get_its_workers(loop: VirtualLoop) -> None:
    bench = Bench(loop, Queue(10), gpus=0, workers_per_gpu=1)
    Nodes(bench.pool).offer([0], "a")
    for _ in range(2):
        bench.ask()
    bench.workers[0].be_ready()
    Nodes(bench.pool).offer([1], "b")
    bench.workers[1].be_ready()
    for number in (0, 1):
        bench.workers[number].reply()
    assert bench.statuses() == ["ok", "ok"]
    assert status(bench.pool)["gpus"] == 2


@pytest.mark.parametrize("policy", [Paper(), Ahead(1.0)], ids=["paper", "ahead"])
def test_of_the_gpus_that_join_only_those_are_booted_that_those_who_wait_need(loop: VirtualLoop, policy: Paper) -> None:
    bench = Bench(loop, Queue(10, policy), gpus=0, workers_per_gpu=4)
    for _ in range(3):
        bench.ask()
    Nodes(bench.pool).offer([0, 1, 2], "a")
    assert bench.pool.placement.booted == [0]
    for _ in range(2):
        bench.ask()
    assert bench.pool.placement.booted == [0, 1]


def test_what_the_workers_of_a_lost_node_had_counts_no_more_when_the_node_comes_back(loop: VirtualLoop) -> None:
    bench = Bench(loop, Ahead(0.75), gpus=0, workers_per_gpu=4)
    Nodes(bench.pool).offer([0, 1], "a")
    for _ in range(2):
        bench.ask()
    Nodes(bench.pool).withdraw([0, 1], "node a is lost")
    assert (bench.pool.placement.taken, bench.pool.placement.places) == (0, 0)
    Nodes(bench.pool).offer([0, 1], "a")
    bench.ask()
    assert bench.pool.placement.booted == [0], "one of four is no reason to boot ahead"


class Spare(Paper):
    """Has one GPU booted on which nothing is in flight."""

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        return fleet.next_to_boot() if all(map(fleet.in_flight, fleet.booted)) else None


def test_a_policy_is_asked_when_gpus_come_and_go(loop: VirtualLoop) -> None:
    bench = Bench(loop, Spare(), gpus=0, workers_per_gpu=1)
    Nodes(bench.pool).offer([0], "a")
    assert bench.pool.placement.booted == [0], "nobody has asked for anything yet"
    Nodes(bench.pool).offer([1], "b")
    assert bench.pool.placement.booted == [0]
    Nodes(bench.pool).withdraw([0], "node a is lost")
    assert bench.pool.placement.booted == [1]


def decisions(bench: Bench, seed: int) -> list[tuple[str, int | None, int | None, bool]]:
    """What becomes of one sequence of arrivals, boots and completions, whatever the workers are."""
    random = Random(seed)
    for _ in range(400):
        bench.pass_time(random.expovariate(4.0))
        states = {worker["worker"]: worker["state"] for worker in status(bench.pool)["workers"]}
        booting = [number for number, state in states.items() if state == "booting"]
        busy = [number for number, state in states.items() if state == "busy"]
        match random.choice(("arrival", "arrival", "boot", "completion", "completion")):
            case "boot" if booting:
                bench.workers[random.choice(booting)].be_ready()
            case "completion" if busy:
                bench.workers[random.choice(busy)].reply()
            case _:
                bench.ask()
    return [(reply.status, reply.gpu, reply.worker, reply.cold_start) for reply in bench.replies]


@pytest.mark.parametrize("seed", range(5))
def test_one_sequence_is_placed_alike_on_one_node_with_4_gpus_and_on_two_with_2_each(
    loop: VirtualLoop, seed: int
) -> None:
    one = Bench(loop, Paper(), gpus=4, workers_per_gpu=2, idle_timeout=3.0)
    two = Bench(loop, Paper(), gpus=0, workers_per_gpu=2, idle_timeout=3.0)
    Nodes(two.pool).offer([2, 3], "b")
    Nodes(two.pool).offer([0, 1], "a")
    expected = decisions(one, seed)
    events = list(one.events)  # it goes on, in the same time
    assert decisions(two, seed) == expected
    assert two.events == events
    assert {gpu for _, gpu, _, _ in expected} == {None, 0, 1, 2, 3}, "it uses all GPUs, and some are refused"
