"""What the real pool decides on a recorded sequence of arrivals, each with the time for which it held its place."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kaas import wire
from kaas.passing import Passing
from kaas.policy import Paper, Policy
from kaas.pool.engine import Tell
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.simulation.loop import VirtualLoop
from kaas.wire import Pieces, Reply, ReplyFrame, Request, RequestFrame

_LONG_AFTER = 1.0
_READY_AFTER = 1e-9
"""Seconds: a worker is ready at once, since the time for which a place was held says all."""


class Arrival(NamedTuple):
    """When a request came to the server, and when its place was given back, in seconds; None: never."""

    at: float
    released: float | None


class Decision(NamedTuple):
    """What became of a request: its status, or `unanswered`; GPU and worker are None if it had no place."""

    status: str
    cold_start: bool
    gpu: int | None
    worker: int | None


class _Places:
    """An engine whose workers hold each invocation for as long as it is said to have been held."""

    def __init__(self, loop: VirtualLoop, arrivals: Sequence[Arrival]) -> None:
        self.loop, self.arrivals, self.decode = loop, arrivals, wire.request_decoder().feed
        self.called: dict[int, tuple[int, int]] = {}  # GPU and worker of each request

    async def start(self) -> None:
        pass

    def spawn(self, number: int, gpu: int, tell: Tell) -> "_Place":
        return _Place(self, number, gpu, tell)

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _Place:
    pid: int | None = None

    def __init__(self, places: _Places, number: int, gpu: int, tell: Tell) -> None:
        self._places, self._number, self._gpu, self._tell = places, number, gpu, tell
        places.loop.at(places.loop.time() + _READY_AFTER, tell.ready, {})

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        places = self._places
        (request,) = places.decode(b"".join(frame))
        places.called[request.id] = self._gpu, self._number
        released = places.arrivals[request.id].released
        if released is not None:
            places.loop.at(max(released, places.loop.time()), self._reply)

    def _reply(self) -> None:
        self._tell.replied(ReplyFrame("ok", 0, [wire.encode_reply(Reply("ok"))]))

    def stop(self) -> None:
        self._places.loop.at(self._places.loop.time(), self._tell.ended, "", True)

    def kill(self) -> None:
        pass


def decide(
    arrivals: Sequence[Arrival],
    gpus: int,
    workers_per_gpu: int,
    *,
    policy: Callable[[], Policy] = Paper,
    idle_timeout: float = 0.0,
) -> list[Decision]:
    """Submit each request when it came, and give what the pool decided on each, in their order.

    Of two things at one time the one that stands first in `arrivals` happens first; a place is given back before it is
    asked for.
    """
    loop = VirtualLoop()
    try:
        engine = _Places(loop, arrivals)
        settings = Settings(Path("recorded"), gpus=gpus, workers_per_gpu=workers_per_gpu, idle_timeout=idle_timeout)
        pool = Pool(settings, engine, policy(), lambda event: None, loop=loop, clock=loop.time)
        replies: dict[int, Reply] = {}
        decoder = wire.reply_decoder()

        def take(invocation: Invocation, frame: Pieces) -> None:
            (replies[invocation.request.id],) = decoder.feed(b"".join(frame))

        asked = []
        for number in range(len(arrivals)):
            frame: Pieces = [wire.encode_request(Request(wire.INVOKE, id=number))]
            asked.append(Invocation(RequestFrame(wire.INVOKE, number, 0.0, frame), take))

        async def run() -> None:
            done = loop.create_future()
            for invocation, arrival in zip(asked, arrivals, strict=True):
                # Twice, so that it comes after all that happens at its time.
                loop.at(arrival.at, loop.at, arrival.at, pool.submit, invocation)
            last = max((max(one.at, one.released or 0.0) for one in arrivals), default=0.0)
            loop.at(last + _LONG_AFTER, done.set_result, None)
            await done

        loop.run_until_complete(run())
    finally:
        loop.close()
    decisions = []
    for number, invocation in enumerate(asked):
        status = replies[number].status if number in replies else "unanswered"
        gpu, worker = engine.called.get(number, (None, None))
        decisions.append(Decision(status, invocation.cold_start, gpu, worker))
    return decisions
