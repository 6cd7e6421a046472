"""Random histories of the real pool in virtual time."""

import asyncio
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from stormy import ALMOST, CALM, STORM, StormyEngine, Stream, Taker

from kaas import wire
from kaas.events import Event
from kaas.passing import Passing
from kaas.placement import Placement
from kaas.policy import NAMES, named
from kaas.pool.account import ANSWERS, OUTCOMES
from kaas.pool.invocations import Invocation
from kaas.pool.nodes import Nodes
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.pool.status import status
from kaas.simulation.loop import VirtualLoop
from kaas.wire import Pieces, Reply, Request, RequestFrame


class DeliberateError(Exception):
    """Raised where nothing should be: by a client's way back, and by the metrics."""


class WatchedPlacement(Placement):
    """Checks that an idle GPU is stopped when it has been for long enough, and that who is ready comes first."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.settings.gpus, pool.settings.workers_per_gpu)
        self._pool, self._m, self._timeout = pool, pool.settings.workers_per_gpu, pool.settings.idle_timeout
        self._time = pool.clock
        self._idle_since: dict[int, float] = {}

    def boot(self, gpu: int) -> list[int]:
        self._idle_since[gpu] = self._time()
        return super().boot(gpu)

    def acquire(self, gpu: int) -> int:
        taken = super().acquire(gpu)
        slots = self._pool.runners[gpu].slots
        assert slots[taken].state == "idle" or "idle" not in {
            slot.state for slot in slots.values() if not slot.invocation
        }
        return taken

    def release(self, worker: int) -> int:
        self._idle_since[worker // self._m] = self._time()
        return super().release(worker)

    def leave_out(self, worker: int) -> bool:
        if self.in_flight(worker // self._m):
            self._idle_since[worker // self._m] = self._time()
        return super().leave_out(worker)

    def stop(self, gpu: int) -> None:
        idle = self._time() - self._idle_since[gpu]
        assert abs(idle - self._timeout) < ALMOST, f"GPU {gpu} is stopped when it was idle for {idle} s"
        super().stop(gpu)


class History:
    """One history, of a seed."""

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.random = random = Random(seed)
        self.loop = loop
        self.settings = Settings(
            Path("kernel.py"),
            gpus=random.randint(1, 4),
            workers_per_gpu=random.randint(1, 4),
            when_full=random.choice(("reject", "queue")),
            max_queue=random.choice((1, 5, 100)),
            queue_timeout=random.choice((0.0, 0.5, 3.0)),
            idle_timeout=random.choice((0.0, 0.5, 3.0)),
            call_timeout=random.choice((0.0, 1.0, 4.0)),
            boot_timeout=random.choice((1.0, 3.0)),
            kill_after=random.choice((0.5, 2.0)),
            drain_timeout=random.choice((0.1, 5.0)),
        )
        self.engine = StormyEngine(random, self.settings, loop)
        self.events: list[Event] = []
        most = self.settings.max_queue if self.settings.when_full == "queue" else 0
        self.policy = named(random.choice(NAMES), most)
        self.pool = Pool(
            self.settings,
            self.engine,
            self.policy,
            self.events.append,
            loop=loop,
            clock=loop.time,
            observe=self.fail_sometimes,
        )
        self.pool.placement = WatchedPlacement(self.pool)
        self.wait_as_before = self.pool.invocations.wait
        self.pool.invocations.wait = self.wait  # type: ignore[method-assign]
        self.waits_since: dict[Invocation, float] = {}
        self.asked: list[Invocation] = []
        self.answers: dict[Invocation, Reply] = {}
        self.gone: set[Invocation] = set()
        self.lazy: set[Invocation] = set()
        self.streams: dict[Invocation, Stream] = {}
        self.wrong: list[BaseException] = []

    def ask(self, timeout: float = 0.0, leave_after: float | None = None) -> Invocation:
        if not self.pool.draining:
            self.assert_places_are_counted()
        frame: Pieces = [wire.encode_request(Request(wire.INVOKE))]
        ends = bool(timeout or leave_after is not None or self.settings.call_timeout) and not self.engine.calm
        stream = None
        if self.random.random() < 0.3:
            stream = Stream(self.engine, stalls=ends and self.random.random() < 0.2)
        rest = stream.rest if stream else None
        invocation = Invocation(RequestFrame(wire.INVOKE, len(self.asked), timeout, frame, rest), self.take)
        self.asked.append(invocation)
        if stream:
            self.streams[invocation] = stream
        if ends and self.random.random() < 0.2:
            self.lazy.add(invocation)
        self.pool.submit(invocation)
        if leave_after is not None:
            self.loop.call_later(leave_after, self.leave, invocation)
        return invocation

    def wait(self, invocation: Invocation) -> None:
        self.waits_since[invocation] = self.loop.time()
        self.wait_as_before(invocation)

    def lose_node(self) -> None:
        """Some GPUs go, and come back later."""
        here = sorted(set(range(self.settings.gpus)) - self.engine.away)
        gpus = self.random.sample(here, self.random.randint(0, len(here)))
        self.loop.call_later(self.random.uniform(0.0, 3.0), self.find_node, gpus)
        self.engine.lose_node(set(gpus))
        Nodes(self.pool).withdraw(gpus, "its node is gone")

    def find_node(self, gpus: list[int]) -> None:
        self.engine.away -= set(gpus)
        Nodes(self.pool).offer(gpus, "found again")

    def leave(self, invocation: Invocation) -> None:
        if invocation not in self.answers:
            self.gone.add(invocation)
            if invocation in self.streams:
                self.streams[invocation].ceased = True
            self.pool.abandon(invocation)
            assert invocation not in self.pool.invocations.waiting, "gone, and still in the queue"

    def take(self, invocation: Invocation, frame: Pieces) -> None:
        if (rest := invocation.reply) is not None and rest.left:
            self.begin_to_take(invocation, rest)
            return
        if not self.engine.calm and self.random.random() < 0.01:
            self.gone.add(invocation)  # it has not been told
            raise DeliberateError
        try:
            self.check(invocation, frame)
        except AssertionError as error:  # the pool goes on, whatever a client's way back raises
            self.wrong.append(error)

    def begin_to_take(self, invocation: Invocation, rest: Passing) -> None:
        """Take a large reply, now or when its turn comes; or never, and nobody else must suffer from that."""
        rest.cut = partial(self.gone.add, invocation)  # its connection ends
        if invocation in self.lazy:
            if self.random.random() < 0.5:
                Taker(self.engine, rest)
                rest.pause()
        elif self.engine.calm or self.random.random() < 0.5:
            Taker(self.engine, rest)
        else:
            self.loop.call_later(self.random.uniform(0.0, 1.0), self.take_in_turn, rest)

    def take_in_turn(self, rest: Passing) -> None:
        if not rest.dropped:
            Taker(self.engine, rest)

    def check(self, invocation: Invocation, frame: Pieces) -> None:
        assert invocation not in self.answers, "answered twice"
        assert invocation not in self.gone, "answered though its client has gone"
        assert invocation not in self.pool.invocations.waiting, "answered, and still in the queue"
        (self.answers[invocation],) = wire.reply_decoder().feed(b"".join(frame))
        waited, timeout = self.loop.time() - invocation.accepted, invocation.request.timeout
        assert not timeout or waited <= timeout + ALMOST, f"answered after {waited} s, not within {timeout}"
        if b"not done within" in self.answers[invocation].payload:
            assert waited >= timeout - ALMOST, f"out of time after {waited} s, and not {timeout}"
        if b"queued for" in self.answers[invocation].payload:
            queued = self.loop.time() - self.waits_since[invocation]
            assert abs(queued - self.settings.queue_timeout) < ALMOST, f"queued for {queued} s"
            slots = (slot for runner in self.pool.runners.values() for slot in runner.slots.values())
            assert all(slot.invocation is not invocation for slot in slots), "it has a place"

    def assert_places_are_counted(self) -> None:
        placement = self.pool.placement
        slots = [slot for runner in self.pool.runners.values() for slot in runner.slots.values()]
        assert placement.taken == sum(map(placement.in_flight, placement.booted))
        assert placement.taken == sum(slot.invocation is not None for slot in slots)
        assert placement.places == sum(slot.state != "left out" for slot in slots)
        if self.pool.invocations.waiting:
            assert self.policy.choose(placement) is None, "somebody waits, and there is a place"

    def fail_sometimes(self, *_: Any) -> None:
        if self.random.random() < 0.01:
            raise DeliberateError

    async def run(self) -> None:
        """Let it storm; then either end in the midst of it, or look whether all is well when it is over."""
        random, at = self.random, 0.0
        pace = random.choice((1.0, 5.0, 20.0))
        while (at := at + random.expovariate(pace)) < STORM:
            timeout = random.choice((0.0, random.uniform(0.01, 5.0)))
            leave = random.uniform(0.0, 3.0) if random.random() < 0.1 else None
            self.loop.call_at(at, self.ask, timeout, leave)
        for _ in range(random.choice((0, 0, 1, 5))):
            self.loop.call_at(random.uniform(0.0, STORM), self.lose_node)
        if random.random() < 0.5:
            await asyncio.sleep(random.uniform(0.0, STORM))
        else:
            await asyncio.sleep(STORM)
            self.engine.calm = True
            await asyncio.sleep(CALM)
            await self.assert_all_is_well()
        await self.end()

    async def assert_all_is_well(self) -> None:
        """Nothing is in flight, and every worker that is not left out serves, all of them at once."""
        assert status(self.pool)["in_flight"] == 0, self.pool
        workers = sum(len(self.pool.placement.workers(gpu)) for gpu in range(self.settings.gpus))
        asked = [self.ask() for _ in range(workers)]
        await asyncio.sleep(CALM)
        assert Counter(self.answers[one].status for one in asked) == Counter(ok=workers), self.pool
        assert len({self.answers[one].worker for one in asked}) == workers
        extra = self.ask()
        await asyncio.sleep(CALM)
        assert self.answers[extra].status == ("ok" if workers else "rejected")

    async def end(self) -> None:
        """Drain, or end at once; nothing is left, and the account closes."""
        begun, draining = self.loop.time(), asyncio.create_task(self.pool.drain())
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.uniform(0.0, 1.0))
            self.pool.abort()
        await draining
        lasted, limit = self.loop.time() - begun, self.settings.drain_timeout + self.settings.kill_after
        assert lasted < limit + 1.0, f"it drained for {lasted} s"
        await asyncio.sleep(CALM)  # whatever is still due
        self.engine.calm = True
        assert self.ask() in self.answers
        account = self.pool.account
        assert account["accepted"] == len(self.asked) == sum(account[outcome] for outcome in OUTCOMES)
        assert account["abandoned"] == len(self.gone)
        assert len(self.answers) == sum(account[answer] for answer in ANSWERS) == len(self.asked) - len(self.gone)
        assert (status(self.pool)["in_flight"], status(self.pool)["workers"]) == (0, [])
        assert not self.engine.alive
        assert len(self.pool.deadlines) == 0, "something is due for ever"


def run(seed: int) -> Counter[str]:
    """Run the history of a seed; count what happened."""
    raised: list[BaseException] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, DeliberateError):
            raised.append(error or AssertionError(context))

    logging.disable()
    loop = VirtualLoop()
    try:
        loop.set_exception_handler(note)
        history = History(seed, loop)
        loop.run_until_complete(history.run())
    finally:
        loop.close()
        logging.disable(logging.NOTSET)
    for error in (*raised, *history.wrong):
        raise error
    return Counter(event.event for event in history.events if event.event != "rejected") + history.pool.account
