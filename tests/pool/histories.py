"""Random histories of the real pool in virtual time: an engine whose workers do all that workers ever did."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from kaas import wire
from kaas.events import Event
from kaas.passing import Passing, Piece
from kaas.placement import Placement
from kaas.policy import NAMES, named
from kaas.pool.account import ANSWERS, OUTCOMES
from kaas.pool.engine import Tell
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.pool.status import status
from kaas.simulation.loop import VirtualLoop
from kaas.wire import Pieces, Reply, ReplyFrame, Request, RequestFrame

STORM = 20.0
"""Seconds in which things go wrong; then they do no more."""
CALM = 200.0
"""Seconds after which all must be well again: longer than any pause and limit."""
ALMOST = 1e-6


class DeliberateError(Exception):
    """Raised where nothing should be: by a client's way back, and by the metrics."""


def draw(random: Random, *fates: tuple[str, float]) -> str:
    return random.choices([fate for fate, _ in fates], [weight for _, weight in fates])[0]


class Stream:
    """The rest of a large payload, which comes bit by bit unless it must wait; it may cease, or never go on."""

    def __init__(self, engine: "StormyEngine", stalls: bool = False, last: Callable[[], object] = bool) -> None:
        self.engine, self.stalls, self.last = engine, stalls, last
        self.rest = Passing(engine.random.randint(1, 4))
        self.reading, self.ceased = True, False
        self.rest.come_from(self)
        self.come()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def come(self) -> None:
        if self.ceased or not self.rest.left or (self.stalls and self.rest.left == 1):
            return
        self.engine.later(self.engine.random.uniform(0.0, 0.005 if self.engine.calm else 0.8), self.come)
        if self.reading:
            if self.rest.left == 1:
                self.last()
            self.rest.received(1)


class Taker:
    """Who takes a large payload, and now and then cannot for a while."""

    def __init__(self, engine: "StormyEngine", rest: Passing, taken: Callable[[], object] = bool) -> None:
        self.engine, self.rest, self.taken = engine, rest, taken
        rest.hand_on(self)

    def write(self, data: Piece) -> None:
        assert not self.rest.dropped, "given more of what was dropped"
        if not self.rest.left:
            self.taken()
        elif self.engine.random.random() < 0.3:
            self.rest.pause()
            self.engine.later(self.engine.random.uniform(0.0, 0.005 if self.engine.calm else 0.5), self.rest.resume)

    def is_closing(self) -> bool:
        return False


class Worker:
    """A worker that is a few timers. It checks that it is told nothing that it must not be told."""

    def __init__(self, engine: "StormyEngine", gpu: int, tell: Tell) -> None:
        self.engine, self.gpu, self.tell, self.random = engine, gpu, tell, engine.random
        self.pid: int | None = None
        self.alive, self.useless, self.dying, self.stopped, self.in_call = True, False, False, False, False
        self.taking: Passing | None = None
        self.replying: Stream | None = None
        self.limit = engine.now() + engine.settings.boot_timeout  # when it must have been killed or be done
        getattr(self, f"boot_{engine.fate_of_boot(gpu)}")(self.random.uniform(0.01, 0.9 if engine.calm else 2.0))

    # Its boot

    def boot_succeeds(self, seconds: float) -> None:
        self.engine.later(seconds, self.be_ready)

    def boot_fails(self, seconds: float) -> None:
        self.engine.later(seconds, self.break_down, "it cannot load the kernel: \udcff", True)

    def boot_refused(self, seconds: float) -> None:
        self.engine.later(seconds, self.break_down, "the machine refuses", False)

    def boot_dies(self, seconds: float) -> None:
        self.engine.later(seconds, self.end, "ended by SIGSEGV", True)

    def boot_hangs(self, seconds: float) -> None:
        pass

    def be_ready(self) -> None:
        if self.alive and not self.useless and not self.stopped:
            self.pid, self.limit = next(self.engine.numbers), float("inf")
            self.tell.ready({"fork": 0.001, "import": 0.01})
            if not self.engine.calm and self.random.random() < 0.1:
                self.engine.later(self.random.expovariate(0.2), self.break_down, "", True)

    # Worker

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        ready = self.pid is not None and self.alive and not (self.useless or self.dying or self.stopped)
        assert ready, "given an invocation before it is ready, or after it is of no more use"
        assert not self.in_call, "given two invocations"
        self.in_call = True
        limit = self.engine.settings.call_timeout
        self.limit = self.engine.now() + limit if limit else float("inf")
        self.taking = rest
        if rest is None:
            self.begin_call()
        else:
            Taker(self.engine, rest, self.begin_call)
            if not self.engine.calm and self.random.random() < 0.1:
                deed = self.random.choice((self.break_down, self.end))
                self.engine.later(self.random.uniform(0.0, 1.0), deed, "", True)

    def begin_call(self) -> None:
        if self.alive:
            getattr(self, f"call_{self.engine.fate_of_call()}")(
                min(self.random.expovariate(2.0), 0.9 if self.engine.calm else 9.0)
            )

    def stop(self) -> None:
        self.stopped = True
        half = self.taking is not None and self.taking.left
        if (half or not self.in_call) and self.random.random() < 0.8:
            self.engine.later(self.random.uniform(0.0, 0.3), self.end, "ended with exit code 0", True)

    def kill(self) -> None:
        self.useless = True
        self.engine.later(self.random.choice((0.0, 0.01, 0.5)), self.end, "ended by SIGKILL", True)

    # Its call

    def call_succeeds(self, seconds: float) -> None:
        self.engine.later(seconds, self.reply, Reply("ok", b"x", kernel_ns=5))

    def call_raises(self, seconds: float) -> None:
        self.engine.later(seconds, self.reply, Reply("kernel_error", b"\xff no text"))

    def call_dies(self, seconds: float) -> None:
        self.engine.later(seconds, self.break_down, "", True)

    def call_ends(self, seconds: float) -> None:
        """Its end is told, and nothing before it."""
        self.engine.later(seconds, self.end, "ended by SIGKILL", True)

    def call_replies_and_ends(self, seconds: float) -> None:
        """In either order: what it said last may be read only when its end is known."""
        if self.random.random() < 0.5:
            self.engine.later(seconds, self.tell_of_end)
        self.engine.later(seconds + 0.05, self.reply, Reply("ok", b"x"))
        self.engine.later(seconds + 0.05, self.break_down, "", True)

    def tell_of_end(self) -> None:
        if self.alive and not (self.useless or self.stopped):
            self.dying = True
            self.tell.broken("")

    def call_hangs(self, seconds: float) -> None:
        pass

    def call_ends_itself(self, seconds: float) -> None:
        """It says that it is of no more use; then it ends, or hangs and must be killed."""
        self.engine.later(seconds, self.reply, Reply("worker_lost", b"its context is lost"))

    def call_is_nonsense(self, seconds: float) -> None:
        self.engine.later(seconds, self.reply, Reply(self.random.choice(("rejected", "timeout"))))

    def reply(self, reply: Reply) -> None:
        if self.stopped and self.alive:
            self.end("ended with exit code 0", True)
        elif self.alive and not self.useless and reply.status == "ok" and self.random.random() < 0.3:
            self.replying = Stream(self.engine, last=self.call_is_over)
            frame: Pieces = [wire.encode_reply(reply)]
            self.tell.replied(ReplyFrame(reply.status, reply.kernel_ns, frame, self.replying.rest))
        elif self.alive and not self.useless:
            self.in_call = False
            self.useless = reply.status == "worker_lost"
            self.limit = self.engine.now() + self.engine.settings.kill_after if self.useless else float("inf")
            if self.useless and self.random.random() < 0.7:
                self.engine.later(0.1, self.end, "ended with exit code 1", True)
            self.tell.replied(ReplyFrame(reply.status, reply.kernel_ns, [wire.encode_reply(reply)]))

    def call_is_over(self) -> None:
        self.in_call, self.limit = False, float("inf")

    # Its end

    def break_down(self, reason: str, counts: bool) -> None:
        if self.alive and not self.useless:
            self.useless, self.limit = True, float("inf")
            self.engine.later(self.random.choice((0.0, 0.1, 1.0)), self.end, "ended with exit code 1", counts)
            if not self.stopped:
                self.tell.broken(reason)

    def end(self, how: str, counts: bool) -> None:
        if self.alive:
            if not self.stopped:
                assert self.engine.now() <= self.limit + 0.5 + ALMOST, "a limit was kept too late"
            self.alive = False
            if self.replying is not None:
                self.replying.ceased = True
            self.engine.alive.discard(self)
            self.tell.ended(how, counts)


class StormyEngine:
    def __init__(self, random: Random, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.random, self.settings, self.now, self.later = random, settings, loop.time, loop.call_later
        self.alive: set[Worker] = set()
        self.numbers = count(1)
        self.calm = False
        self.broken_gpus = [random.choice((0.0, 0.0, 0.2, 0.5, 0.95)) for _ in range(settings.gpus)]
        self.no_process = random.choice((0.0, 0.0, 0.1, 0.5))
        self.trouble = random.choice((0.0, 0.2, 0.6))
        for _ in range(random.choice((0, 0, 1, 3))):
            self.later(random.uniform(0.0, STORM), self.lose_all)

    def fate_of_boot(self, gpu: int) -> str:
        bad = 0.0 if self.calm else self.broken_gpus[gpu]
        return draw(
            self.random, ("succeeds", 1 - bad), *((fate, bad / 4) for fate in ("fails", "refused", "dies", "hangs"))
        )

    def fate_of_call(self) -> str:
        bad = 0.0 if self.calm else self.trouble
        fates = ["raises", "dies", "ends", "replies_and_ends", "ends_itself", "is_nonsense"]
        fates += ["hangs"] * bool(self.settings.call_timeout)
        return draw(self.random, ("succeeds", 1 - bad), *((fate, bad / 7) for fate in fates))

    def lose_all(self) -> None:
        """The fork server is lost, and all workers with it."""
        for worker in list(self.alive):
            worker.end("ended, it is not known how", False)

    async def start(self) -> None:
        pass

    def spawn(self, number: int, gpu: int, tell: Tell) -> Worker:
        if not self.calm and self.random.random() < self.no_process:
            raise OSError(24, "Too many open files")
        worker = Worker(self, gpu, tell)
        self.alive.add(worker)
        return worker

    def unused(self, gpu: int) -> None:
        pass

    async def close(self) -> None:
        limit = self.now() + CALM
        while self.alive:
            assert self.now() < limit, "a worker that does not end by itself is never killed"
            await asyncio.sleep(0.1)

    def abort(self) -> None:
        for worker in list(self.alive):
            worker.kill()


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
        policy = named(random.choice(NAMES), self.settings.max_queue if self.settings.when_full == "queue" else 0)
        self.pool = Pool(
            self.settings,
            self.engine,
            policy,
            self.events.append,
            loop=loop,
            clock=loop.time,
            observe=self.fail_sometimes,
        )
        self.pool.placement = WatchedPlacement(self.pool)
        self.asked: list[Invocation] = []
        self.answers: dict[Invocation, Reply] = {}
        self.gone: set[Invocation] = set()
        self.lazy: set[Invocation] = set()
        self.streams: dict[Invocation, Stream] = {}
        self.wrong: list[BaseException] = []

    def ask(self, timeout: float = 0.0, leave_after: float | None = None) -> Invocation:
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
        try:
            self.check(invocation, frame)
        except AssertionError as error:  # the pool goes on, whatever a client's way back raises
            self.wrong.append(error)
        self.fail_sometimes()

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
            assert waited >= self.settings.queue_timeout - ALMOST
            slots = (slot for runner in self.pool.runners.values() for slot in runner.slots.values())
            assert all(slot.invocation is not invocation for slot in slots), "it has a place"

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
        draining = asyncio.create_task(self.pool.drain())
        if self.random.random() < 0.3:
            await asyncio.sleep(self.random.uniform(0.0, 1.0))
            self.pool.abort()
        await draining
        await asyncio.sleep(CALM)  # whatever is still due
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
