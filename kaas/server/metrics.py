"""How the server stands, for Prometheus (`--metrics-port`): `GET /metrics` over HTTP.

Everything is read in the server's own loop, where nothing changes meanwhile, and written out in a thread, where it
holds nobody up. Imported only where metrics are wanted.
"""

import asyncio
import contextlib
import socket
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kaas.server.account import OUTCOMES, REFUSALS
from kaas.server.listener import name
from kaas.server.process import STATES

_CALLS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BOOTS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PATIENCE = 10.0
"""Seconds that a scrape may take."""
_NO_ANSWER = (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError)
"""It is too slow or has gone, is none, or the server ends; Python 3.11 logs a scrape that is cancelled."""


class Histogram:
    """Counts durations up to each of some bounds, in seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Give what has been counted by now, for Prometheus."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class Metrics:
    """What the server's other parts observe, and the port where it is shown."""

    def __init__(self, listener: socket.socket) -> None:
        self.address = name(listener)
        self._listener = listener
        self.queue = Histogram(_CALLS)
        self.kernel = Histogram(_CALLS)
        self.boot = Histogram(_BOOTS)
        self._status: Callable[[], dict[str, Any]] = dict
        self._server: asyncio.Server | None = None

    async def serve(self, status: Callable[[], dict[str, Any]]) -> None:
        """Answer scrapes until `close`; `status` gives the pool's status."""
        self._status = status
        self._server = await asyncio.start_server(self._answer, sock=self._listener)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(*_NO_ANSWER):
            async with asyncio.timeout(_PATIENCE):
                words = (await reader.readuntil(b"\r\n\r\n")).split(maxsplit=2)
                if len(words) < 3 or words[0] != b"GET":  # noqa: PLR2004 - method, path, and the rest
                    status, body = "405 Method Not Allowed", b"only GET\n"
                elif words[1].partition(b"?")[0] not in {b"/", b"/metrics"}:
                    status, body = "404 Not Found", b"see /metrics\n"
                else:
                    status, body = "200 OK", await asyncio.to_thread(_written, self._families(self._status()))
                head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}\r\n"
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
                await writer.drain()

    def _families(self, status: dict[str, Any]) -> list[Metric]:
        counted = status["counters"]
        requests = CounterMetricFamily(
            "kaas_requests", "What became of requests, refusals included.", labels=["status"]
        )
        for outcome in (*OUTCOMES, *REFUSALS):
            requests.add_metric([outcome], counted[outcome])
        states = Counter(worker["state"] for worker in status["workers"])
        workers = GaugeMetricFamily("kaas_workers", "Workers of booted GPUs.", labels=["state"])
        for state in STATES:
            workers.add_metric([state], states[state])
        return [
            GaugeMetricFamily("kaas_in_flight", "Invocations accepted and not yet answered.", status["in_flight"]),
            GaugeMetricFamily("kaas_task_runners", "Booted GPUs.", status["task_runners"]),
            GaugeMetricFamily("kaas_queue_length", "Invocations that wait for a worker.", status["queued"]),
            workers,
            CounterMetricFamily("kaas_accepted", "Invocations accepted.", counted["accepted"]),
            requests,
            CounterMetricFamily("kaas_cold_starts", "Task runners booted for an invocation.", counted["cold_starts"]),
            self.queue.family("kaas_queue_seconds", "From acceptance until a worker had the invocation."),
            self.kernel.family("kaas_kernel_seconds", "In the kernel's call."),
            self.boot.family("kaas_boot_seconds", "From a worker's start until it was ready."),
            *_by_gpu(status["by_gpu"]),
        ]


def _by_gpu(gpus: list[dict[str, Any]]) -> Iterator[Metric]:
    for kind, field, title, text in (
        (GaugeMetricFamily, "booted", "kaas_gpu_booted", "1 if the GPU's task runner is booted."),
        (GaugeMetricFamily, "in_flight", "kaas_gpu_in_flight", "Invocations that the GPU's workers have."),
        (GaugeMetricFamily, "workers", "kaas_gpu_workers", "Workers that the GPU may have, 0 once it is left out."),
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
    registry = CollectorRegistry()
    registry.register(_Snapshot(families))
    return generate_latest(registry)
