"""The whole experiment in virtual time: clients follow the ramp and think, and the real pool serves them.

Of the harness's parts, only the processes, sockets and GPUs are a model (kaas.simulation.gpus). A run of one seed is
the same whenever and wherever it is simulated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kaas import wire
from kaas.events import Event
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.results import Row
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
        self.running = 0
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

    async def run(self) -> tuple[float, int]:
        """Run it; give when it ended, and how many clients were then without a reply."""
        shape, at = self.setting.shape, self.loop.at
        at(0.0, self._step)
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
        """Have the clients of the step begin that it is now."""
        now, shape, model = self.loop.time(), self.setting.shape, self.model
        for number in range(len(self._clients), shape.clients(now)):
            client = Client(self, number, number % len(self.hosts))
            self._clients.append(client)
            share = number / (shape.most - 1) if shape.most > 1 else 0.0
            late = model.last_begins * share**2 if number else model.first_begins
            self.loop.at(now + late, client.start)
        if shape.next_change(now) < shape.duration:
            self.loop.at(shape.next_change(now), self._step)

    def _end(self) -> None:
        self.is_over = True
        self.loop.at(self.loop.time() + FINISH_TIMEOUT, self._finish)
        self.left(0)

    def left(self, number: int = 1) -> None:
        """Take note that so many clients have left, since the run is over."""
        self.running -= number
        if self.running <= self.gpus.lost:  # whose clients will never have a reply
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Client:
    """One client in a closed loop: it sets up its input, asks, has its reply, clears up, and begins anew."""

    def __init__(self, experiment: Experiment, number: int, host: int) -> None:
        self._experiment, self._number, self._host = experiment, number, host
        self._set_up, self._gpus = experiment.hosts[host].set_up, experiment.gpus
        self._at, self._time = experiment.loop.at, experiment.loop.time
        self._submit = experiment.pool.submit
        self._began = self._arrived = 0.0
        self._clients = 0
        self._invocation: Invocation | None = None

    def start(self) -> None:
        """Begin with its first request."""
        self._experiment.running += 1
        self._begin()

    def leave(self) -> bool:
        """Wait for its reply no more; tell whether it did."""
        if self._invocation is None:
            return False
        self._experiment.pool.abandon(self._invocation)
        return True

    def _begin(self) -> None:
        if self._experiment.is_over:
            self._experiment.left()
            return
        self._began, self._clients = self._time(), self._experiment.running
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
                (self._arrived - self._began) * 1e3,
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
            )
        )
        if refused and experiment.setting.backoff:
            self._at(now + experiment.setting.backoff, self._begin)
        else:
            self._begin()


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
