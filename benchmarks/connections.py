#!/usr/bin/env python3
"""Do those cost others anything who are connected and silent, send large payloads, or scrape metrics?

32 client processes make requests of a no-op kernel in a loop, on 8 GPUs x 4, without and with 1,000 connections beside
them on which nothing is ever sent, all of which are still open at the end. And one client makes small requests, alone,
then beside 8 that send 64 MiB again and again and take them back, of the same server or of another one: what the latter
costs it are the cores. And 8 clients make requests of a server with 64 GPUs, without and with somebody who asks for its
metrics every 50 ms.
"""

import contextlib
import multiprocessing
import re
import select
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import clients
import common
import serving
from clients import Load
from common import MODULES, Options, Report, Target
from relay import MESSAGE
from serving import Server

from kaas import descriptors
from kaas.client import Connection, split_address
from kaas.errors import KaasError

GPUS, WORKERS_PER_GPU = 8, 4
IDLE = 1000
SENDERS, SIZE = 8, 64 * 2**20
_LIMIT = 60.0
"""Seconds that a large payload may take, there and back."""
MANY_GPUS, CLIENTS, SCRAPE_SECONDS = 64, 8, 0.05
_METRICS = re.compile(r"metrics on (http://\S+)")


def measure(options: Options) -> Report:
    """Measure without and with others beside, in turns."""
    assert __doc__ is not None
    report = Report("Beside others", __doc__.partition("\n\n")[2])
    measure_idle(report, options)
    measure_large(report, options)
    measure_scrapes(report, options)
    return report


def measure_idle(report: Report, options: Options) -> None:
    """Measure beside connections on which nothing is sent."""
    gpus, seconds, idle = (1, 0.05, 50) if options.quick else (GPUS, 2.0, IDLE)
    busy = gpus * WORKERS_PER_GPU
    descriptors.raise_limit()
    arguments = ("-g", str(gpus), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    with serving.started(MODULES / "no_op.py", *arguments) as server:
        serving.invoke_together(server.address, busy, MESSAGE)
        found = common.alternate(
            {
                "without": lambda: clients.one_each(server, busy, seconds),
                "with": lambda: _with_idle_connections(server, idle, busy, seconds),
            },
            options.rounds,
        )
    rates = {name: [load.rate for load in loads] for name, loads in found.items()}
    shares = common.ratios(rates["with"], rates["without"])
    report.add(f"{busy} clients beside {idle} idle connections", "x without", shares, Target(0.9, at_least=True))
    report.add("requests/s without", "1/s", rates["without"])
    report.add("requests/s with", "1/s", rates["with"])


def measure_large(report: Report, options: Options) -> None:
    """Measure beside clients that send large payloads."""
    seconds, senders, size = (0.05, 2, 2**20) if options.quick else (1.0, SENDERS, SIZE)
    workers = ("-m", str(senders + 1), "--idle-timeout", "0", "--when-full", "queue")
    with (
        serving.started(MODULES / "no_op.py", *workers) as server,
        serving.started(MODULES / "no_op.py", *workers) as other,
    ):
        found = common.alternate(
            {
                "alone": lambda: clients.one_each(server, 1, seconds),
                "beside": lambda: _beside_large(server, server, senders, size, seconds),
                "beside another server's": lambda: _beside_large(server, other, senders, size, seconds),
            },
            options.rounds,
        )
    p50s = {name: [load.percentile_ms(50) for load in loads] for name, loads in found.items()}
    report.add("a small request alone: p50", "ms", p50s["alone"])
    for name, target in (("beside", Target(2)), ("beside another server's", None)):
        shares = common.ratios(p50s[name], p50s["alone"])
        report.add(f"a small request {name} {senders} clients with large payloads: p50", "x alone", shares, target)


def measure_scrapes(report: Report, options: Options) -> None:
    """Measure beside somebody who asks for the metrics."""
    gpus, seconds, number = (2, 0.05, 2) if options.quick else (MANY_GPUS, 1.5, CLIENTS)
    arguments = ("-g", str(gpus), "-m", "1", "--idle-timeout", "0", "--metrics-port", "0")
    with serving.started(MODULES / "no_op.py", *arguments) as server:
        serving.invoke_together(server.address, gpus, MESSAGE)
        found = common.alternate(
            {
                "not scraped": lambda: clients.one_each(server, number, seconds),
                "scraped": lambda: _beside_scrapes(server, number, seconds),
            },
            options.rounds,
        )
    p999s = {name: [load.percentile_ms(99.9) for load in loads] for name, loads in found.items()}
    shares = common.ratios(p999s["scraped"], p999s["not scraped"])
    what = f"{number} clients of {gpus} GPUs"
    report.add(f"{what} beside a scrape every {SCRAPE_SECONDS * 1000:g} ms: p99.9", "x without", shares, Target(1.5))
    report.add(f"{what}: p99.9", "ms", p999s["not scraped"])


def _beside_scrapes(server: Server, number: int, seconds: float) -> Load:
    address = _METRICS.search(server.said)
    assert address is not None, server.said
    process = multiprocessing.get_context("fork").Process(target=_scrape, args=(address[1],), daemon=True)
    common.start(process)
    try:
        return clients.one_each(server, number, seconds)
    finally:
        process.kill()
        process.join()


def _scrape(address: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the benchmark's to handle
    while True:
        with urllib.request.urlopen(address, timeout=_LIMIT) as answer:
            answer.read()
        time.sleep(SCRAPE_SECONDS)


def _beside_large(server: Server, large: Server, senders: int, size: int, seconds: float) -> Load:
    with _sending(large, senders, size):
        return clients.one_each(server, 1, seconds)


@contextlib.contextmanager
def _sending(server: Server, number: int, size: int) -> Iterator[None]:
    """Have so many processes send payloads of that size on and on."""
    context = multiprocessing.get_context("fork")
    begun, enough = context.Semaphore(0), context.Event()
    arguments = (server.address, size, begun, enough)
    processes = [context.Process(target=_send, args=arguments, daemon=True) for _ in range(number)]
    try:
        for process in processes:
            common.start(process)
        for _ in processes:
            if not begun.acquire(timeout=_LIMIT):
                raise KaasError(f"a large payload did not come back within {_LIMIT:g} s")
        yield
    finally:
        enough.set()  # not in the middle of a request, which would cost the server a worker
        for process in processes:
            process.join(_LIMIT)
            process.kill()


def _send(address: str, size: int, begun: Any, enough: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the benchmark's to handle
    payload = bytes(size)
    with Connection(address) as kaas:
        while not enough.is_set():
            serving.check_served(kaas.invoke(payload, _LIMIT), size)
            begun.release()


def _with_idle_connections(server: Server, idle: int, busy: int, seconds: float) -> Load:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(split_address(server.address))) for _ in range(idle)]
        # A connection is accepted after all that came before it.
        server.task_runners()
        load = clients.one_each(server, busy, seconds)
        lost = sum(map(_has_something_to_read, silent))
    if lost:
        raise KaasError(f"the server closed {lost} of {idle} idle connections: it has to keep them all")
    return load


def _has_something_to_read(silent: socket.socket) -> bool:
    """Tell whether a connection on which nothing is to be said is closed, broken, or has been written to."""
    poll = select.poll()
    poll.register(silent, select.POLLIN)
    return bool(poll.poll(0))


if __name__ == "__main__":
    common.main(measure, __doc__)
