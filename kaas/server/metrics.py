"""How the server stands, for Prometheus (`--metrics-port`): `GET /metrics` over HTTP.

Everything is read in the server's own loop, where nothing changes meanwhile, and written out in a thread, where it
holds nobody up. Imported only where metrics are wanted.
"""

import asyncio
import contextlib
import socket
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, product
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kaas.addresses import written
from kaas.pool.account import OUTCOMES, REFUSALS
from kaas.pool.slot import STATES
from kaas.server.listener import Acceptor

_CALLS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BOOTS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PATIENCE = 10.0
"""Seconds that a scrape may take."""
_NO_ANSWER = (OSError, EOFError, asyncio.LimitOverrunError)
"""It is too slow or has gone, or is none."""
_TEXT = "text/plain; charset=utf-8"


class Histogram:
    """Counts durations up to each of some bounds, in seconds, for each GPU: a tenth of what the library's own takes."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts: defaultdict[int, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: defaultdict[int, float] = defaultdict(float)

    def observe(self, seconds: float, gpu: int) -> None:
        """Count one, on a GPU."""
        self._counts[gpu][bisect_left(self._bounds, seconds)] += 1
        self._sums[gpu] += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Give what has been counted by now, for Prometheus."""
        family = HistogramMetricFamily(name, text, labels=["gpu"])
        bounds = (*map(str, map(float, self._bounds)), "+Inf")
        for gpu, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([str(gpu)], buckets, self._sums[gpu])
        return family


class Metrics:
    """What the server's other parts observe, and the port where it is shown."""

    most = 16
    """Scrapes at a time; more wait. Their descriptors are not taken from the clients."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self.address = " and ".join(f"http://{written([each])}/metrics" for each in listeners)
        self._listeners = listeners
        self._histograms = {"queue": Histogram(_CALLS), "kernel": Histogram(_CALLS), "boot": Histogram(_BOOTS)}
        self._status: Callable[[], dict[str, Any]] = dict
        self._acceptor: Acceptor | None = None
        self._scrapes: set[asyncio.Task[None]] = set()

    def serve(self, status: Callable[[], dict[str, Any]]) -> None:
        """Answer scrapes until `close`; `status` gives the pool's status."""
        self._status = status
        self._acceptor = Acceptor(self._listeners, self._protocol, lambda: len(self._scrapes), self.most)

    def observe(self, what: str, seconds: float, gpu: int) -> None:
        """Count a duration (pool.Observe)."""
        self._histograms[what].observe(seconds, gpu)

    def close(self) -> None:
        """Answer no more."""
        if self._acceptor is not None:
            self._acceptor.close()
        for scrape in self._scrapes:
            scrape.cancel()

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._begin)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scrape = asyncio.get_running_loop().create_task(self._scrape(reader, writer))
        self._scrapes.add(scrape)
        scrape.add_done_callback(self._scrapes.discard)

    async def _scrape(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(*_NO_ANSWER):
                async with asyncio.timeout(_PATIENCE):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _answer(self, request: bytes) -> bytes:
        method, path = [*request.split(maxsplit=2), b"", b""][:2]
        kind = _TEXT
        if method not in {b"GET", b"HEAD"}:
            status, body = "405 Method Not Allowed\r\nAllow: GET, HEAD", b"only GET and HEAD\n"
        elif path.partition(b"?")[0] not in {b"/", b"/metrics"}:
            status, body = "404 Not Found", b"see /metrics\n"
        else:
            status, kind = "200 OK", CONTENT_TYPE_LATEST
            body = await asyncio.to_thread(_written, self._families(self._status()))
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _families(self, status: dict[str, Any]) -> list[Metric]:
        counted = status["counters"]
        requests = CounterMetricFamily(
            "kaas_requests", "What became of requests, refusals included.", labels=["status"]
        )
        for outcome in (*OUTCOMES, *REFUSALS):
            requests.add_metric([outcome], counted[outcome])
        states = Counter((worker["gpu"], worker["state"]) for worker in status["workers"])
        queue, kernel, boot = (self._histograms[what] for what in ("queue", "kernel", "boot"))
        workers = GaugeMetricFamily("kaas_workers", "Workers of booted GPUs.", labels=["gpu", "state"])
        for gpu, state in product(range(status["gpus"]), STATES):
            workers.add_metric([str(gpu), state], states[gpu, state])
        return [
            GaugeMetricFamily("kaas_in_flight", "Invocations accepted and not yet answered.", status["in_flight"]),
            GaugeMetricFamily("kaas_task_runners", "Booted GPUs.", status["task_runners"]),
            GaugeMetricFamily("kaas_queue_length", "Invocations that wait for a worker.", status["queued"]),
            workers,
            CounterMetricFamily("kaas_accepted", "Invocations accepted.", counted["accepted"]),
            requests,
            queue.family("kaas_queue_seconds", "From acceptance until a worker had the invocation."),
            kernel.family("kaas_kernel_seconds", "In the kernel's call."),
            boot.family("kaas_boot_seconds", "From a worker's start until it was ready."),
            *_by_gpu(status["by_gpu"]),
        ]


def _by_gpu(gpus: list[dict[str, Any]]) -> Iterator[Metric]:
    for kind, field, title, text in (
        (GaugeMetricFamily, "booted", "kaas_gpu_booted", "1 if the GPU's task runner is booted."),
        (GaugeMetricFamily, "in_flight", "kaas_gpu_in_flight", "Invocations that the GPU's workers have."),
        (GaugeMetricFamily, "workers", "kaas_gpu_workers", "Workers that the GPU may have, 0 once it is left out."),
        (CounterMetricFamily, "cold_starts", "kaas_cold_starts", "Invocations that the GPU was booted for."),
        (CounterMetricFamily, "lost", "kaas_gpu_lost_workers", "The GPU's workers that were lost."),
    ):
        family = kind(title, text, labels=["gpu"])
        for gpu in gpus:
            family.add_metric([str(gpu["gpu"])], gpu[field])
        yield family


class _Snapshot(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _written(families: Iterable[Metric]) -> bytes:
    return generate_latest(_Snapshot(families))
