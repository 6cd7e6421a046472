"""An engine of the pool whose workers and GPUs are a model: they take their time, and compute nothing."""

from collections.abc import Callable, Iterator, Sequence

from kaas import wire
from kaas.passing import Passing
from kaas.pool.engine import Tell
from kaas.simulation.devices import Gpu, OneAfterTheOther, Shared
from kaas.simulation.loop import Timeline
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting
from kaas.simulation.sharing import Host, Sharing
from kaas.wire import Pieces, Reply, ReplyFrame

Spans = list[tuple[float, float]]
"""Begins and ends, in seconds of virtual time."""
_TO_END = 0.01
"""Seconds that a worker takes to end."""


class Gpus:
    """The engine (kaas.pool.engine).

    Args:
        model: says how long everything takes.
        loop: in which it happens.
        normals: what is drawn.
        hosts: the machines.
        setting: of the experiment.
        clients: tells how many clients run for each host.
    """

    def __init__(
        self,
        model: Model,
        loop: Timeline,
        normals: Iterator[float],
        hosts: Sequence[Host],
        setting: Setting,
        *,
        clients: Callable[[], float],
    ) -> None:
        self.model, self.loop, self.normals = model, loop, normals
        self.clients = clients
        self.hosts = hosts
        self.in_flight = [0] * len(hosts)  # on each
        self.kernels: list[Spans] = [[] for _ in range(setting.gpus)]
        self.transfers: list[Spans] = [[] for _ in range(setting.gpus)]
        self.rests: dict[int, float] = {}  # what the last request of each worker takes besides setup and kernel module
        self.lost = 0  # requests that were given to a worker that had left
        self.observed = setting.observed  # whether to keep in `kernels` and `transfers` when each GPU had any
        self._alive = 0
        self.gpus_per_host = setting.gpus_per_host
        self._cores = Sharing(loop, lambda number: model.kernel / model.kernel_among(number))
        self.gpus: list[Gpu] = [self._gpu(self._keeper(spans)) for spans in self.kernels]
        self._boots: dict[int, tuple[float, float]] = {}  # of each GPU, when its last one began and will be done

    async def start(self) -> None:
        """There is nothing to load."""

    def spawn(self, number: int, gpu: int, tell: Tell) -> "Worker":
        """Start a worker; those of one boot are ready at once."""
        now, (begun, ready) = self.loop.time(), self._boots.get(gpu, (-1.0, 0.0))
        if begun != now and ready <= now:
            ready = now + self._boot()
            self._boots[gpu] = now, ready
        self._alive += 1
        return Worker(self, number, gpu, tell, ready=ready)

    async def close(self) -> None:
        """Return when every worker has ended."""
        while self._alive:
            done = self.loop.create_future()
            self.loop.at(self.loop.time() + _TO_END, done.set_result, None)
            await done

    def abort(self) -> None:
        """End nothing at once: whoever wants that ends the loop."""

    def ended(self) -> None:
        """Take note that a worker has ended."""
        self._alive -= 1

    def draw(self, mean: float, spread: float) -> float:
        """Draw a time of at least 0, in seconds."""
        if not spread:
            return mean
        drawn = mean + spread * next(self.normals)
        return drawn if drawn > 0.0 else 0.0

    def draw_rest(self, host: int) -> float:
        """Draw what a request takes besides its setup and the kernel module, in seconds."""
        model = self.model
        return self.draw(model.rest + model.rest_per_client * len(self.hosts[host]), model.rest_spread)

    def _gpu(self, busy: Callable[[float, float], object]) -> Gpu:
        if self.model.kernel_crowd:
            return Shared(self.loop, busy, self._cores)
        if self.model.kernels_shared:
            return Shared(self.loop, busy, Sharing(self.loop, lambda number: 1.0 / number))
        return OneAfterTheOther(self.loop, busy)

    def _boot(self) -> float:
        model = self.model
        mean = model.boot + model.boot_per_client * self.clients() if self._boots else model.boot_first
        return self.draw(mean, model.boot_spread)

    def _keeper(self, spans: Spans) -> Callable[[float, float], object]:
        return (lambda begin, end: spans.append((begin, end))) if self.observed else lambda begin, end: None


class Worker:
    """One worker (kaas.pool.engine): upload, kernel, download, and what else it does until its place is free.

    `measured`, if anybody wants to know, is called when what the kernel module measures of a call has ended.
    """

    pid: int | None = None
    measured: Callable[[], object] | None = None

    def __init__(self, engine: Gpus, number: int, gpu: int, tell: Tell, *, ready: float) -> None:
        self._engine, self._number, self._gpu, self._tell = engine, number, gpu, tell
        self._device, self._host = engine.gpus[gpu], gpu // engine.gpus_per_host
        self._at, self._time = engine.loop.at, engine.loop.time
        self._in_call = self._in_flight = self._stopped = self._ended = False
        self._called = self._rest = 0.0
        self._unused_since = ready
        self._at(ready, self._ready)

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        """Serve an invocation; or not, if it has left."""
        engine, now = self._engine, self._time()
        self._in_call, self._called = True, now
        leaves_after = engine.model.leaves_after
        if leaves_after and now - self._unused_since > leaves_after:
            engine.lost += 1
            return
        self._in_flight = True
        engine.in_flight[self._host] += 1
        uploaded = now + self._transfer_time(engine.model.upload)
        if engine.observed:
            engine.transfers[self._gpu].append((now, uploaded))
        self._at(uploaded, self._uploaded)

    def stop(self) -> None:
        """End after the call that it may be in; not, if it has left during that."""
        self._stopped = True
        if not self._in_call:
            self._at(self._time() + _TO_END, self._end)

    def kill(self) -> None:
        """End, whatever it is in; a turn that it has on the GPU is the next one's."""
        self._stopped = True
        self._at(self._time() + _TO_END, self._end)
        if self._in_flight:
            self._in_flight = False
            self._engine.in_flight[self._host] -= 1
            self._device.withdraw(self._computed)

    def _ready(self) -> None:
        if not self._stopped:
            self._tell.ready({})

    def _transfer_time(self, mean: float) -> float:
        engine = self._engine
        model = engine.model
        return engine.draw(mean + model.transfer_per_request * engine.in_flight[self._host], model.transfer_spread)

    def _uploaded(self) -> None:
        if self._in_flight:
            model = self._engine.model
            self._device.run(self._engine.draw(model.kernel, model.kernel_spread), self._computed)

    def _computed(self) -> None:
        if not self._in_flight:
            return
        engine, now = self._engine, self._time()
        downloaded = now + self._transfer_time(engine.model.download)
        if engine.observed:
            engine.transfers[self._gpu].append((now, downloaded))
        self._rest = rest = engine.draw_rest(self._host)
        if self.measured is not None:
            self._at(downloaded, self.measured)
        self._at(downloaded + engine.model.rest_held * rest, self._reply, downloaded - self._called)

    def _reply(self, inner: float) -> None:
        if not self._in_flight:
            return
        now = self._unused_since = self._time()
        self._engine.in_flight[self._host] -= 1
        self._in_call = self._in_flight = False
        if self._stopped:
            self._at(now + _TO_END, self._end)
            return
        nanoseconds = int(inner * 1e9)
        frame: Pieces = [wire.encode_reply(Reply("ok", kernel_ns=nanoseconds))]
        self._engine.rests[self._number] = self._rest
        self._tell.replied(ReplyFrame("ok", nanoseconds, frame))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._engine.ended()
            self._tell.ended("ended with exit code 0", True)
