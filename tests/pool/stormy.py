"""An engine in virtual time whose workers do all that workers ever did, and payloads that come and go as they like."""

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random

from kaas import wire
from kaas.line import Line
from kaas.passing import Passing, Piece
from kaas.pool.engine import Tell
from kaas.pool.settings import Settings
from kaas.wire import Pieces, Reply, ReplyFrame

STORM = 20.0
"""Seconds in which things go wrong; then they do no more."""
CALM = 200.0
"""Seconds after which all must be well again: longer than any pause and limit."""
ALMOST = 1e-6


def draw(random: Random, *fates: tuple[str, float]) -> str:
    return random.choices([fate for fate, _ in fates], [weight for _, weight in fates])[0]


class Stream:
    """The rest of a large payload, which comes bit by bit unless it must wait; it may cease, or never go on."""

    def __init__(self, engine: "StormyEngine", stalls: bool = False, last: Callable[[], object] = bool) -> None:
        self.engine, self.stalls, self.last = engine, stalls, last
        self.rest = Passing(engine.random.randint(1, 4))
        self.reading, self.ceased = True, False
        self.rest.come_from(self, engine.line)
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

    def vanish(self) -> None:
        """Its node is gone, and nobody hears of it any more."""
        self.alive = False
        if self.replying is not None:
            self.replying.ceased = True
        self.engine.alive.discard(self)

    def end(self, how: str, counts: bool) -> None:
        if self.alive:
            if not self.stopped:
                assert self.engine.now() <= self.limit + 0.5 + ALMOST, "a limit was kept too late"
            self.vanish()
            self.tell.ended(how, counts)


class StormyEngine:
    def __init__(self, random: Random, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.random, self.settings, self.now, self.later = random, settings, loop.time, loop.call_later
        self.alive: set[Worker] = set()
        self.away: set[int] = set()
        """GPUs whose node is gone."""
        self.line = Line()
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

    def lose_node(self, gpus: set[int]) -> None:
        """A node is gone, with all workers on its GPUs."""
        self.away |= gpus
        for worker in [one for one in self.alive if one.gpu in gpus]:
            worker.vanish()

    async def start(self) -> None:
        pass

    def spawn(self, number: int, gpu: int, tell: Tell) -> Worker:
        assert gpu not in self.away, "a worker is wanted where no GPU is"
        if not self.calm and self.random.random() < self.no_process:
            raise OSError(24, "Too many open files")
        worker = Worker(self, gpu, tell)
        self.alive.add(worker)
        return worker

    async def close(self) -> None:
        limit = self.now() + CALM
        while self.alive:
            assert self.now() < limit, "a worker that does not end by itself is never killed"
            await asyncio.sleep(0.1)

    def abort(self) -> None:
        for worker in list(self.alive):
            worker.kill()
