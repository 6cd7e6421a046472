"""The pool over workers that do what a test says, in virtual time: each line here is one thing that it promises."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kaas import wire
from kaas.passing import Passing
from kaas.policy import Fleet, Paper, Policy, Queue
from kaas.pool.engine import Tell
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.pool.status import status
from kaas.simulation.loop import VirtualLoop
from kaas.wire import Pieces, Reply, ReplyFrame, Request, RequestFrame


class Worker:
    """A worker that a test speaks for."""

    pid = 1

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.told: list[str] = []

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        self.told.append("call")

    def stop(self) -> None:
        self.told.append("stop")

    def kill(self) -> None:
        self.told.append("kill")

    def be_ready(self) -> None:
        self.tell.ready({"import": 0.1})

    def reply(self, status: str = "ok", payload: bytes = b"") -> None:
        self.tell.replied(ReplyFrame(status, 1, [wire.encode_reply(Reply(status, payload))]))

    def be_lost(self, reason: str = "", *, counts: bool = True) -> None:
        self.tell.broken(reason)
        self.tell.ended("ended by SIGKILL", counts)


class Bench:
    """A pool, its workers by number (the last of each place), and what was answered, in order."""

    def __init__(self, loop: VirtualLoop, policy: Policy, **settings: Any) -> None:
        self.loop = loop
        self.workers: dict[int, Worker] = {}
        self.replies: list[Reply] = []
        self.events: list[str] = []
        emit = lambda event: self.events.append(f"{event.event} {event.detail}".strip())  # noqa: E731
        given = Settings(Path("kernel.py"), **settings)
        self.pool = Pool(given, self, policy, emit, loop=loop, clock=loop.time)  # type: ignore[arg-type]

    def spawn(self, number: int, gpu: int, tell: Tell) -> Worker:
        self.workers[number] = Worker(tell)
        return self.workers[number]

    def ask(self, timeout: float = 0.0) -> None:
        frame: Pieces = [wire.encode_request(Request(wire.INVOKE))]
        self.pool.submit(Invocation(RequestFrame(wire.INVOKE, 7, timeout, frame), self.take))

    def take(self, invocation: Invocation, frame: Pieces) -> None:
        self.replies += wire.reply_decoder().feed(b"".join(frame))

    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def states(self) -> list[str]:
        return [worker["state"] for worker in status(self.pool)["workers"]]

    def statuses(self) -> list[str]:
        return [reply.status for reply in self.replies]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """An event loop in virtual time."""
    made = VirtualLoop()
    yield made
    made.close()


def test_an_invocation_goes_to_a_ready_worker_and_not_to_the_successor_of_a_lost_one(loop: VirtualLoop) -> None:
    bench = Bench(loop, Paper(), workers_per_gpu=2)
    bench.ask()
    for number in (0, 1):
        bench.workers[number].be_ready()
    bench.workers[0].reply()
    bench.workers[0].tell.broken("")
    bench.ask()
    assert bench.states() == ["lost", "busy"]
    bench.workers[1].reply()
    bench.workers[0].tell.ended("ended by SIGKILL", True)
    bench.ask()
    assert bench.states() == ["booting", "busy"]
    bench.ask()
    bench.workers[1].reply()
    assert bench.statuses() == ["ok"] * 3
    bench.pass_time(0.1)
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    assert [reply.waited_for_boot for reply in bench.replies] == [True, False, False, True]


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe no text"])
def test_a_text_that_is_no_text_leaves_the_place_free(loop: VirtualLoop, payload: bytes) -> None:
    bench = Bench(loop, Paper(), workers_per_gpu=1)
    bench.ask()
    bench.workers[0].be_ready()
    bench.workers[0].reply("kernel_error", payload)
    bench.ask()
    bench.workers[0].reply("worker_lost", payload)
    bench.ask()
    bench.workers[0].tell.ended("ended with exit code 1", True)
    bench.pass_time(0.1)
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    assert bench.statuses() == ["kernel_error", "worker_lost", "ok"]
    assert [reply.payload for reply in bench.replies] == [payload, payload, b""]


def test_a_worker_that_says_it_is_of_no_more_use_gets_nothing_more_and_is_killed_if_it_does_not_end(
    loop: VirtualLoop,
) -> None:
    bench = Bench(loop, Queue(10), workers_per_gpu=2, kill_after=2.0)
    for _ in range(3):
        bench.ask()
    for number in (0, 1):
        bench.workers[number].be_ready()
    useless = bench.workers[0]
    useless.reply("worker_lost", b"its GPU context is lost: 719")
    assert (bench.statuses(), bench.states()) == (["worker_lost"], ["lost", "busy"])
    assert bench.replies[0].payload == b"its GPU context is lost: 719"
    bench.workers[1].reply()
    bench.pass_time(1.9)
    assert useless.told == ["call"], "it has time to end by itself"
    bench.pass_time(0.2)
    assert useless.told == ["call", "kill"]
    useless.tell.ended("ended by SIGKILL", True)
    assert "lost its GPU context is lost: 719" in bench.events
    bench.pass_time(0.1)
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    assert bench.statuses() == ["worker_lost", "ok", "ok"]


def test_what_was_said_before_an_end_counts_although_the_end_is_known_first(loop: VirtualLoop) -> None:
    bench = Bench(loop, Paper(), workers_per_gpu=1)
    bench.ask()
    bench.workers[0].be_ready()
    bench.workers[0].tell.broken("")
    bench.workers[0].reply()
    assert (bench.statuses(), bench.states()) == (["ok"], ["lost"])
    bench.workers[0].tell.ended("ended with exit code 0", True)
    assert bench.states() == ["booting"]


def test_boots_that_the_machine_refuses_do_not_count_and_are_tried_after_pauses_that_grow(loop: VirtualLoop) -> None:
    bench = Bench(loop, Paper(), workers_per_gpu=1, idle_timeout=0.0)
    bench.ask()
    tried = []
    for _ in range(8):
        tried.append(loop.time())
        before = bench.workers[0]
        before.be_lost("the machine refuses: MPS is not ready", counts=False)
        while bench.workers[0] is before:
            bench.pass_time(0.5)
    assert [round(b - a) for a, b in pairwise(tried)] == [1, 2, 4, 8, 16, 30, 30]
    bench.workers[0].be_ready()
    bench.ask()
    bench.workers[0].reply()
    assert bench.statuses() == ["worker_lost", "ok"]
    assert "left out" not in "".join(bench.events)


class Ahead(Paper):
    """Boots a GPU when the last worker that is ready gets its invocation."""

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        ready = sum(map(fleet.ready_and_idle, fleet.booted))
        booting = any(not fleet.ready(gpu) for gpu in fleet.booted)
        return fleet.next_to_boot() if waiting or not (ready or booting) else None


def test_a_policy_may_boot_ahead(loop: VirtualLoop) -> None:
    bench = Bench(loop, Ahead(), gpus=3, workers_per_gpu=1)
    bench.ask()
    assert bench.pool.placement.booted == [0]
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    bench.ask()
    assert bench.pool.placement.booted == [0, 1], "nobody waits yet"
    bench.workers[1].be_ready()
    bench.ask()
    assert bench.pool.placement.booted == [0, 1, 2]
    for number in (0, 1):
        bench.workers[number].reply()
    assert [(reply.gpu, reply.cold_start, reply.waited_for_boot) for reply in bench.replies] == [
        (0, True, True),
        (0, False, False),
        (1, False, False),
    ]
    assert status(bench.pool)["counters"]["cold_starts"] == 1


class Counting(Paper):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        self.times += 1
        return super().boot(fleet, waiting)


def test_a_policy_is_asked_when_a_worker_is_ready_or_lost_but_not_once_the_pool_drains(loop: VirtualLoop) -> None:
    bench = Bench(loop, policy := Counting(), workers_per_gpu=2)
    bench.ask()
    for deed in (bench.workers[0].be_ready, bench.workers[1].be_ready, bench.workers[1].be_lost):
        before = policy.times
        deed()
        assert policy.times == before + 1
    bench.pool.draining, before = True, policy.times
    bench.workers[0].be_lost()
    assert policy.times == before


class Strict(Queue):
    """Has no more than one invocation in flight on a GPU, and boots none but the first."""

    def choose(self, fleet: Fleet) -> int | None:
        gpu = fleet.least_loaded()
        return gpu if gpu is not None and not fleet.in_flight(gpu) else None

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        return fleet.next_to_boot() if not fleet.booted and waiting else None


def test_a_policy_may_let_wait_who_could_have_a_place(loop: VirtualLoop) -> None:
    bench = Bench(loop, Strict(1), gpus=2, workers_per_gpu=2)
    for _ in range(3):
        bench.ask()
    assert (bench.statuses(), status(bench.pool)["queued"]) == (["rejected"], 1)
    bench.workers[0].be_ready()
    bench.workers[0].reply()
    bench.workers[0].reply()
    assert bench.statuses() == ["rejected", "ok", "ok"]


class Patient(Queue):
    """Gives nothing to a worker that boots, and boots the second GPU when a worker of the first is ready."""

    def choose(self, fleet: Fleet) -> int | None:
        return next((gpu for gpu in fleet.booted if fleet.ready_and_idle(gpu)), None)

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        return fleet.next_to_boot() if not fleet.booted or sum(map(fleet.ready, fleet.booted)) == 1 else None


def test_who_gets_a_worker_while_that_is_told_to_be_ready_has_not_waited_for_its_boot(loop: VirtualLoop) -> None:
    bench = Bench(loop, Patient(5), gpus=2, workers_per_gpu=2)
    for _ in range(2):
        bench.ask()  # the first is the cold start on worker 0
    bench.workers[1].be_ready()
    assert bench.states() == ["booting", "busy", "booting", "booting"]
    bench.workers[1].reply()
    assert [(reply.worker, reply.waited_for_boot) for reply in bench.replies] == [(1, False)]


def test_to_wait_until_all_are_answered_ends_at_once_where_all_are(loop: VirtualLoop) -> None:
    bench = Bench(loop, Paper())  # Python 3.11 looks again only after the last one may have been answered
    loop.run_until_complete(asyncio.wait_for(bench.pool.invocations.all_closed(), 1.0))
