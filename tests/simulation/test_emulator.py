"""The emulator in virtual time: what is asked of it takes as long as the model says, whoever is killed meanwhile."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kaas.simulation.calibration import Calibration
from kaas.simulation.emulator import Emulator, Pace
from kaas.simulation.loop import VirtualLoop
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting

PLAIN = Model(
    setup_alone=1.0,
    setup_clients=(1.0, 2.0),
    setup_seconds=(1.0, 1.5),
    upload=0.5,
    kernel=2.0,
    download=0.25,
    rest=1.0,
    rest_held=0.25,
    boot_first=3.0,
    boot=1.0,
)
"""No chance in it."""


class Process:
    """One that is connected to an emulator; `heard` is what it was told, and when."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._reader = asyncio.StreamReader(loop=world.loop)
        self.heard: list[tuple[float, str]] = []
        self._closed = False
        self._served = world.loop.create_task(world.emulator.serve(self._reader, self))  # type: ignore[arg-type]

    def say(self, line: str) -> None:
        self._reader.feed_data(f"{line}\n".encode())

    def die(self) -> None:
        self._reader.feed_eof()

    # As a stream's writer

    def write(self, data: bytes) -> None:
        assert not self._closed
        self.heard.append((round(self._world.loop.time(), 6), data.decode().strip()))

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True


class World:
    """An emulator whose clock is the test's."""

    def __init__(self, model: Model, scale: float = 1.0) -> None:
        self.loop = VirtualLoop()

        async def make() -> Emulator:
            return Emulator(Calibration("plain", model, "for tests"), Setting(gpus=2), scale, 1)

        self.emulator = self.loop.run_until_complete(make())

    def until(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds - self.loop.time()))

    def booted(self, number: int, gpu: int = 0) -> list[Process]:
        """Workers of one GPU that have just booted."""
        workers = [Process(self) for _ in range(number)]
        for one, worker in enumerate(workers):
            worker.say(f"worker {one} {gpu} 0")
        self.until(self.loop.time() + 100.0)
        for worker in workers:
            assert [what for _, what in worker.heard] == ["ready"]
            worker.heard.clear()
        return workers


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(scale: float = 1.0, **changes: Any) -> World:
        made.append(World(replace(PLAIN, **changes), scale))
        return made[-1]

    yield make
    for one in made:
        for task in asyncio.all_tasks(one.loop):
            task.cancel()
        one.loop.run_until_complete(asyncio.sleep(0))
        one.loop.close()


def test_kernels_of_a_gpu_run_in_the_order_in_which_they_came_and_transfers_do_not_wait(
    world: Callable[..., World],
) -> None:
    here = world()
    a, b, c = here.booted(3)
    begun = here.loop.time()
    for worker in (b, c, a):
        worker.say("call")
        here.until(here.loop.time() + 0.1)
    here.until(begun + 50.0)
    # Uploaded after 0.5, 0.6 and 0.7; the kernels end after 2.5, 4.5 and 6.5, the downloads 0.25 later, the rest 0.25.
    told = [[(round(at - begun, 6), what) for at, what in worker.heard] for worker in (b, c, a)]
    assert told == [[(end + 0.25, "measured"), (end + 0.5, "released")] for end in (2.5, 4.5, 6.5)]


def test_a_worker_that_is_killed_in_its_turn_hands_it_on_at_once(world: Callable[..., World]) -> None:
    here = world()
    a, b, c, d = here.booted(4)
    begun = here.loop.time()
    for worker in (a, b, c, d):
        worker.say("call")
        here.until(here.loop.time() + 0.01)
    here.until(begun + 1.0)
    a.die()  # in its turn
    c.die()  # in the queue
    here.until(begun + 50.0)
    assert (a.heard, c.heard) == ([], [])
    assert [what for _, what in b.heard] == ["measured", "released"]
    assert [at - begun for at, _ in (b.heard[0], d.heard[0])] == pytest.approx([3.25, 5.25])


def test_one_killed_while_it_uploads_never_has_a_turn(world: Callable[..., World]) -> None:
    here = world()
    a, b = here.booted(2)
    begun = here.loop.time()
    a.say("call")
    here.until(begun + 0.2)
    a.die()
    b.say("call")
    here.until(begun + 50.0)
    assert b.heard[0][0] - begun == pytest.approx(0.2 + 2.75)


def test_two_gpus_do_not_wait_for_each_other(world: Callable[..., World]) -> None:
    here = world()
    (a,), (b,) = here.booted(1, 0), here.booted(1, 1)
    begun = here.loop.time()
    a.say("call")
    b.say("call")
    here.until(begun + 50.0)
    assert [worker.heard[0][0] - begun for worker in (a, b)] == pytest.approx([2.75, 2.75])


def test_the_workers_of_a_boot_are_ready_at_once_though_they_do_not_come_at_once(world: Callable[..., World]) -> None:
    here = world()
    workers = [Process(here) for _ in range(3)]
    for worker in workers:
        worker.say("worker 0 1 0.5")
        here.until(here.loop.time() + 0.1)
    here.until(20.0)
    # Begun when the first of them was started, half a second before it could say so.
    assert [worker.heard for worker in workers] == [[(2.5, "ready")]] * 3
    late = Process(here)  # another boot, and not the first of all
    late.say("worker 0 1 0.5")
    here.until(40.0)
    assert late.heard == [(20.5, "ready")]


def test_when_nobody_is_connected_any_more_the_next_boot_is_the_first_again(world: Callable[..., World]) -> None:
    here = world()
    (worker,) = here.booted(1)
    worker.die()
    here.until(200.0)
    after = Process(here)
    after.say("worker 0 0 0")
    here.until(300.0)
    assert after.heard == [(203.0, "ready")]


def test_clients_share_the_host_and_clear_up_after_the_place_is_free(world: Callable[..., World]) -> None:
    here = world(rest_spread=0.3)
    (worker,) = here.booted(1)
    begun, clients = here.loop.time(), [Process(here) for _ in range(2)]
    for client in clients:
        client.say("setup")
    here.until(begun + 10.0)
    assert [client.heard for client in clients] == [[(begun + 1.5, "over")]] * 2
    worker.say("call")
    here.until(begun + 20.0)
    held = worker.heard[1][0] - worker.heard[0][0]
    for client, line in zip(clients, ("rest 0", "rest"), strict=True):
        client.heard.clear()
        client.say(line)
    here.until(begun + 30.0)
    # A quarter of what its request took besides was gone with the place; one that was refused has all before it.
    assert clients[0].heard[0][0] - begun - 20.0 == pytest.approx(3 * held, abs=1e-5)
    assert clients[1].heard[0][0] - begun - 20.0 != pytest.approx(4 * held, abs=1e-5)


def test_the_time_scale_shortens_all_times_alike(world: Callable[..., World]) -> None:
    here = world(scale=10.0)
    worker, client = Process(here), Process(here)
    worker.say("worker 0 0 0")
    client.say("setup")
    here.until(1.0)
    assert (worker.heard, client.heard) == ([(0.3, "ready")], [(0.1, "over")])
    worker.say("call")
    here.until(2.0)
    assert worker.heard[1:] == [(1.275, "measured"), (1.3, "released")]


def test_what_follows_from_another_is_not_late_though_its_cause_was_noticed_late() -> None:
    class Late(VirtualLoop):
        """Wakes up a while after it should."""

        def time(self) -> float:
            return super().time() + 0.2

    loop = Late()
    try:
        pace, seen = Pace(loop, 1.0), []

        def first() -> None:
            seen.append(pace.time())
            pace.at(pace.time() + 1.0, lambda: seen.append(pace.time()))

        pace.catch_up(pace.at, 1.0, first)
        loop.run_until_complete(asyncio.sleep(5.0))
        assert seen == [1.0, 2.0]
    finally:
        loop.close()


def test_it_tells_how_busy_each_gpu_is_and_by_what(world: Callable[..., World]) -> None:
    here = world(transfer_utilization=0.3)
    (worker,) = here.booted(1)
    begun, monitor = here.loop.time(), Process(here)
    worker.say("call")
    for after in (0.4, 1.5, 3.5):
        here.until(begun + after)
        monitor.say("samples")
    here.until(begun + 4.0)
    assert [json.loads(what) for _, what in monitor.heard] == [[30.0, 0.0], [100.0, 0.0], [0.0, 0.0]]
    monitor.heard.clear()
    monitor.say("about")
    here.until(begun + 5.0)
    about = json.loads(monitor.heard[0][1])
    assert (about["Not measured"], about["Calibration"], about["Time scale"]) == ("emulated", "plain", "1")


@pytest.mark.parametrize(
    ("line", "said"), [("worker 0 2 0", "it has 2 GPUs"), ("dance", "does not know"), ("call", "does")]
)
def test_what_cannot_be_is_an_error(world: Callable[..., World], line: str, said: str) -> None:
    here = world()
    process = Process(here)
    process.say(line)
    here.until(1.0)
    ((_, told),) = process.heard
    assert told.startswith("error: ")
    assert said in told
