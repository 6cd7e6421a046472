"""Shows Prometheus how the server stands: `GET /metrics` over HTTP, in a process of its own that the server starts.

The text for many GPUs takes milliseconds, and Python does one thing at a time: written in the server, even in a thread
of it, it would hold up every request meanwhile.

Over the link go: from the server a byte with the listeners; from here `!` when they have come, and `?` for a snapshot;
from the server each snapshot, its length before it, a pickled dict (kaas.server.metrics). The link's end is our end.

    python -m kaas.exporter DESCRIPTOR LEVEL    the link, and how serious what is logged must be
"""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import accumulate, product
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kaas import outlet
from kaas.acceptor import Acceptor

_LENGTH = 8
"""Bytes before a snapshot that tell how many it has."""
_MOST = 16
"""Scrapes at a time; more wait."""
_MOST_LISTENERS = 64
_PATIENCE = 10.0
"""Seconds that a scrape may take."""
_NO_ANSWER = (OSError, EOFError, asyncio.LimitOverrunError)
"""It is too slow or has gone, or is none."""
_TEXT = "text/plain; charset=utf-8"


class Exporter:
    """Answers scrapes, each with a snapshot that the server is asked for then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._asked: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._scrapes: set[asyncio.Task[None]] = set()

    async def run(self, listeners: list[socket.socket]) -> None:
        """Answer scrapes until the link's end."""
        acceptor = Acceptor(listeners, self._protocol, lambda: len(self._scrapes), _MOST)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await self._reader.readexactly(_LENGTH))
                snapshot = pickle.loads(await self._reader.readexactly(size))  # noqa: S301 - of the server that started us
                asked = self._asked.popleft()
                if not asked.done():  # whoever asked may have gone
                    asked.set_result(snapshot)
        acceptor.close()

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
            body = generate_latest(_Collected(_families(await self._snapshot())))
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if method == b"HEAD" else body)

    async def _snapshot(self) -> dict[str, Any]:
        asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._writer.write(b"?")
        return await asked


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(snapshot: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily("kaas_in_flight", "Invocations accepted and not yet answered.", snapshot["in_flight"])
    yield GaugeMetricFamily("kaas_task_runners", "Booted GPUs.", snapshot["task_runners"])
    yield GaugeMetricFamily("kaas_queue_length", "Invocations that wait for a worker.", snapshot["queued"])
    workers = GaugeMetricFamily("kaas_workers", "Workers of booted GPUs.", labels=["gpu", "state"])
    for gpu, state in product(range(snapshot["gpus"]), snapshot["states"]):
        workers.add_metric([str(gpu), state], snapshot["workers"][gpu, state])
    yield workers
    yield CounterMetricFamily("kaas_accepted", "Invocations accepted.", snapshot["counters"]["accepted"])
    requests = CounterMetricFamily("kaas_requests", "What became of requests, refusals included.", labels=["status"])
    for outcome, number in snapshot["outcomes"].items():
        requests.add_metric([outcome], number)
    yield requests
    for what, text in (
        ("queue", "From acceptance until a worker had the invocation."),
        ("kernel", "In the kernel's call."),
        ("boot", "From a worker's start until it was ready."),
    ):
        histogram = HistogramMetricFamily(f"kaas_{what}_seconds", text, labels=["gpu"])
        bounds = (*map(str, map(float, snapshot["bounds"][what])), "+Inf")
        counts, sums = snapshot["durations"][what]
        for gpu, counted in counts.items():
            histogram.add_metric([str(gpu)], list(zip(bounds, accumulate(counted), strict=True)), sums[gpu])
        yield histogram
    for kind, field, title, text in (
        (GaugeMetricFamily, "booted", "kaas_gpu_booted", "1 if the GPU's task runner is booted."),
        (GaugeMetricFamily, "in_flight", "kaas_gpu_in_flight", "Invocations that the GPU's workers have."),
        (GaugeMetricFamily, "workers", "kaas_gpu_workers", "Workers that the GPU may have, 0 once it is left out."),
        (CounterMetricFamily, "cold_starts", "kaas_cold_starts", "Invocations that the GPU was booted for."),
        (CounterMetricFamily, "lost", "kaas_gpu_lost_workers", "The GPU's workers that were lost."),
    ):
        family = kind(title, text, labels=["gpu"])
        for each in snapshot["by_gpu"]:
            family.add_metric([str(each["gpu"])], each[field])
        yield family


async def _export(link: socket.socket) -> None:
    _, numbers, *_ = socket.recv_fds(link, 1, _MOST_LISTENERS)
    listeners = [socket.socket(fileno=number) for number in numbers]
    with contextlib.suppress(ConnectionError):  # the server may be gone already
        link.sendall(b"!")
        link.setblocking(False)
        await Exporter(*await asyncio.open_connection(sock=link)).run(listeners)


if __name__ == "__main__":
    os.nice(10)  # who scrapes can wait longer than who invokes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's to handle
    logging.basicConfig(
        handlers=[outlet.log_handler()], level=sys.argv[2], format="%(asctime)s metrics %(levelname)s: %(message)s"
    )
    server = socket.socket(fileno=int(sys.argv[1]))
    server.set_inheritable(False)
    asyncio.run(_export(server))
