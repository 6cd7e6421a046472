"""The whole experiment in virtual time: clients follow the load's shape and think, and the real pool serves them.

Of the harness's parts, only the processes, sockets and GPUs are a model (kaas.simulation.gpus). A run of one seed is
the same whenever and wherever it is simulated.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kaas import wire
from kaas.events import Event
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.row import Row
from kaas.shapes import OpenLoop
from kaas.simulation.chance import normals
from kaas.simulation.gpus import Gpus
from kaas.simulation.loop import VirtualLoop
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting
from kaas.simulation.sharing import Host
from kaas.wire import Pieces, Request, RequestFrame

FINISH_TIMEOUT = 60.0
"""Seconds after the end of the ramp in which the last replies may come (the load generator's --finish-timeout)."""
_UNTIL_DRAINED = 0.1
"""Seconds after the last reply until the server is told to end."""
_FRAME = wire.encode_request(Request(wire.INVOKE))


@dataclass
class Simulated:
    """What came of a run. Times in seconds from the begin of the ramp, those of `rows` included.

    `unanswered` clients were still waiting for a reply when the run was over. `events` are the server's.
    """

    setting: Setting
    rows: list[Row] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    ended: float = 0.0
    unanswered: int = 0
    gpus: Gpus | None = None


class Experiment:
    """One run.

    Args:
        setting: what is to be simulated.
        model: of the GPUs and clients.
        seed: of all that is drawn.
        loop: in which it happens.
        keep: is given each row, when its request has ended.
    """

    def __init__(
        self, setting: Setting, model: Model, seed: int, loop: VirtualLoop, keep: Callable[[Row], object]
    ) -> None:
        self.setting, self.model, self.loop, self.keep = setting, model, loop, keep
        drawn = normals(seed)
        self.running = 0  # clients, of those that are there
        self._present = 0
        self.is_over = False
        self.decode = wire.reply_decoder().feed
        self.hosts = [Host(model, loop, drawn) for _ in range(-(-setting.gpus // setting.gpus_per_host))]
        self.gpus = Gpus(model, loop, drawn, self.hosts, setting, clients=lambda: self.running / len(self.hosts))
        self.events: list[Event] = []
        settings = Settings(
            Path("simulated"),
            gpus=setting.gpus,
            workers_per_gpu=setting.workers_per_gpu,
            idle_timeout=setting.idle_timeout,
        )
        self.pool = Pool(settings, self.gpus, setting.policy(), self.events.append, loop=loop, clock=loop.time)
        self._clients: list[Client] = []
        self._done = loop.create_future()
        self.is_open_loop = isinstance(setting.shape, OpenLoop)
        self._arrivals: Iterator[float] = iter(setting.shape.arrivals if isinstance(setting.shape, OpenLoop) else ())
        self._waiting: deque[float] = deque()  # what has arrived and was not sent yet
        self._free: deque[Client] = deque()
        self._next: float | None = None

    async def run(self) -> tuple[float, int]:
        """Run it; give when it ended, and how many clients were then without a reply."""
        shape, at = self.setting.shape, self.loop.at
        at(0.0, self._step)
        at(0.0, self._await_arrival)
        at(shape.duration + self.model.end_is_told, self._end)
        await self._done
        ended, unanswered = self.loop.time(), 0
        for client in self._clients:
            unanswered += client.leave()
        drained = self.loop.create_future()
        self.loop.at(ended + _UNTIL_DRAINED, drained.set_result, None)
        await drained
        await self.pool.drain()
        return ended, unanswered

    def _step(self) -> None:
        """Have the clients of the step begin that it is now, and those that are too many end."""
        now, shape, model = self.loop.time(), self.setting.shape, self.model
        wanted = shape.clients(now)
        self._clients += [Client(self, one, one % len(self.hosts)) for one in range(len(self._clients), wanted)]
        for number, client in enumerate(self._clients):
            share = number / (shape.most - 1) if shape.most > 1 else 0.0
            late = model.last_begins * share**2 if number else model.first_begins
            # The clients of an open loop are there before the first request arrives.
            client.want(now + late * (not self.is_open_loop)) if number < wanted else client.let_go()
        if shape.next_change(now) < shape.duration:
            self.loop.at(shape.next_change(now), self._step)

    def _end(self) -> None:
        if self._next is not None:  # which is due by now, as long as it takes them all to arrive
            self.loop.at(self._next, self._end)
            return
        self.is_over = True
        limit = self.loop.time() + FINISH_TIMEOUT
        self.loop.at(limit, self._send_no_more if self.is_open_loop else self._finish)
        while self._free:
            self._free.popleft().begin()
        self._look_whether_done()

    def came(self) -> None:
        """Take note that a client has begun."""
        self._present += 1

    def left(self) -> None:
        """Take note that a client has left."""
        self._present -= 1
        self._look_whether_done()

    def _look_whether_done(self) -> None:
        if self.is_over and not self._waiting and self._present <= self.gpus.lost:  # who will never have a reply
            self._finish()

    # Of an open loop

    def _await_arrival(self) -> None:
        self._next = next(self._arrivals, None)
        if self._next is not None:
            self.loop.at(self._next, self._arrived)

    def _arrived(self) -> None:
        assert self._next is not None
        self._waiting.append(self._next)
        if self._free:
            self._free.popleft().begin()
        self._await_arrival()

    def _send_no_more(self) -> None:
        now, why = self.loop.time(), "no client was free to send it before the end"
        for arrival in self._waiting:
            lag, most = (now - arrival) * 1e3, self.setting.shape.most
            self.keep(Row(arrival, 0.0, lag, 0.0, False, 0, most, "failed", error=why, arrived=arrival, lag_ms=lag))
        self._waiting.clear()
        self.loop.at(now + FINISH_TIMEOUT, self._finish)
        self._look_whether_done()

    def take(self, client: "Client") -> float | None:
        """Give a client the request to send that arrived first; None if there is none, and it is to wait for one."""
        if self._waiting:
            return self._waiting.popleft()
        if not self.is_over:
            self._free.append(client)
        return None

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Client:
    """One client: it sets up its input, asks, has its reply, clears up, and begins anew.

    In a closed loop it does so at once, in an open loop when a request has arrived.
    """

    def __init__(self, experiment: Experiment, number: int, host: int) -> None:
        self._experiment, self._number, self._host = experiment, number, host
        self._set_up, self._gpus = experiment.hosts[host].set_up, experiment.gpus
        self._at, self._time = experiment.loop.at, experiment.loop.time
        self._submit = experiment.pool.submit
        self._began = self._sent = self._arrived = 0.0
        self._clients = 0
        self._is_wanted = self._is_there = False
        self._invocation: Invocation | None = None

    def want(self, at: float) -> None:
        """Have it be there from then on, if it is not."""
        if not self._is_wanted:
            self._is_wanted = True
            if self._is_there:  # in its last request
                self._experiment.running += 1
            else:
                self._at(at, self._start)

    def let_go(self) -> None:
        """Have it end after the request that it is in."""
        self._experiment.running -= self._is_wanted and self._is_there
        self._is_wanted = False

    def _start(self) -> None:
        if self._is_wanted and not self._is_there:
            self._is_there = True
            self._experiment.running += 1
            self._experiment.came()
            self.begin()

    def leave(self) -> bool:
        """Wait for its reply no more; tell whether it did."""
        if self._invocation is None:
            return False
        self._experiment.pool.abandon(self._invocation)
        return True

    def begin(self) -> None:
        """Send the next request, if there is one to be sent, or leave."""
        experiment, now = self._experiment, self._time()
        arrival = experiment.take(self) if experiment.is_open_loop else now
        if (experiment.is_over and (arrival is None or not experiment.is_open_loop)) or not self._is_wanted:
            experiment.running -= self._is_wanted
            self._is_there = False
            experiment.left()
        elif arrival is not None:
            self._began, self._sent, self._clients = arrival, now, experiment.running
            self._set_up(self._arrive)

    def _arrive(self) -> None:
        self._arrived = self._time()
        self._invocation = Invocation(RequestFrame(wire.INVOKE, 0, 0.0, [_FRAME]), self._answered)
        self._submit(self._invocation)

    def _answered(self, _: Invocation, frame: Pieces) -> None:
        self._invocation = None
        (reply,) = self._experiment.decode(b"".join(frame))
        if reply.worker is not None and reply.status == "ok":
            rest = self._gpus.rests[reply.worker] * (1.0 - self._gpus.model.rest_held)
        else:
            rest = self._gpus.draw_rest(self._host)
        self._at(self._time() + rest, self._end, reply)

    def _end(self, reply: wire.Reply) -> None:
        experiment, now = self._experiment, self._time()
        refused = reply.status != "ok"
        inner = reply.kernel_ns / 1e6
        experiment.keep(
            Row(
                self._began,
                inner,
                (now - self._began) * 1e3,
                (self._arrived - self._sent) * 1e3,
                reply.cold_start,
                self._number,
                self._clients,
                reply.status,
                reply.waited_for_boot,
                reply.gpu,
                reply.worker,
                reply.queued_ns / 1e6,
                inner,
                reply.error,
                *((self._began, (self._sent - self._began) * 1e3) if experiment.is_open_loop else ()),
            )
        )
        if refused and experiment.setting.backoff and not experiment.is_open_loop:
            self._at(now + experiment.setting.backoff, self.begin)
        else:
            self.begin()


def simulate(model: Model, setting: Setting, seed: int, *, keep: Callable[[Row], object] | None = None) -> Simulated:
    """Simulate one run.

    Args:
        model: of the GPUs and clients.
        setting: what is to be simulated.
        seed: of all that is drawn.
        keep: is given each row instead of the result.
    """
    loop, result = VirtualLoop(), Simulated(setting)
    raised: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: raised.append(context.get("exception") or RuntimeError(context)))
    try:
        experiment = Experiment(setting, model, seed, loop, keep or result.rows.append)
        result.events, result.gpus = experiment.events, experiment.gpus
        result.ended, result.unanswered = loop.run_until_complete(experiment.run())
    finally:
        loop.close()
    for error in raised:
        raise error
    return result
