#!/usr/bin/env python3
"""What does KaaS add to a kernel's own time? Measured beside yardsticks, in the same rounds.

The yardstick of small invocations is the bare relay (relay.py): a blocking TCP echo server that passes each message of
64 bytes through one child process. The no-op kernel returns its payload, of 64 bytes, too. The client processes use
kaas.client in a loop; they share the cores with the server and its workers, so what they take counts. The yardstick of
a large payload is a plain socket copy: 64 MiB to a process that sends them back when it has them all, in buffers that
are used again and again. The matrix task's time is the client's, without the kernel's own and without the setup. The
setup is all that the client does with shared memory: it makes both segments, fills one, and frees both; the original
counted only the copy into the first. Both together are everything but the kernel.

Where the scheduler puts the processes, on one core or on two, halves or doubles a small exchange. So the one client is
measured once more with all of it, relay or server and worker and client, on one and the same core.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType

import clients
import common
import psutil
import relay
import serving
from clients import Load
from common import MODULES, ROOT, Options, Report, Target
from relay import MESSAGE
from serving import Server

from kaas import kernels
from kaas.client import Connection
from kaas.errors import KaasError
from kaas.wire import Reply

GPUS, WORKERS_PER_GPU = 8, 4
N = 500
RELAY, KEPT, NEW = "relay", "one connection", "new connections"


def measure(options: Options) -> Report:
    """Measure all of it."""
    assert __doc__ is not None
    report = Report("Overhead", __doc__.partition("\n\n")[2])
    measure_one_client(report, options)
    measure_many_clients(report, options)
    measure_matrix(report, options)
    measure_large(report, options)
    return report


def measure_one_client(report: Report, options: Options) -> None:
    """Measure invocations that do nothing, one after the other.

    The rounds are short and many: where the scheduler puts the processes changes from moment to moment.
    """
    one, new = "no-op kernel, 1 client", "no-op kernel, 1 client, a new connection for each request"
    free = _one_client_us(options, 5 * options.rounds)
    report.add(f"{one}: p50", "x the relay's", common.ratios(free[KEPT], free[RELAY]), Target(1.3))
    report.add(f"{new}: p50", "x the relay's", common.ratios(free[NEW], free[RELAY]), Target(2.2))
    report.add("relay: p50", "µs", free[RELAY])
    report.add(f"{one}: p50", "µs", free[KEPT])
    report.add(f"{new}: p50", "µs", free[NEW])
    if hasattr(os, "sched_setaffinity"):
        with _on_one_core():
            pinned = _one_client_us(options, options.rounds)
        for name, found in ("relay", RELAY), (one, KEPT), (new, NEW):
            report.add(f"all on one core, {name}: p50", "µs", pinned[found])
        for name, found in (one, KEPT), (new, NEW):
            report.add(f"all on one core, {name}: p50", "x the relay's", common.ratios(pinned[found], pinned[RELAY]))


def _one_client_us(options: Options, rounds: int) -> dict[str, list[float]]:
    """Give each round's median time of the relay, of a connection that is kept, and of new ones."""
    repeats = 50 if options.quick else 800
    if options.quick:
        rounds = 1
    with _server(options) as server, relay.started("relay") as bare, Connection(server.address) as kaas:
        serving.invoke_together(server.address, WORKERS_PER_GPU, MESSAGE)

        def with_a_new_connection() -> Reply:
            with Connection(server.address) as connection:
                return connection.invoke(MESSAGE)

        times = common.alternate(
            {
                RELAY: lambda: common.times_ns(bare.exchange, repeats),
                KEPT: lambda: _served_ns(lambda: kaas.invoke(MESSAGE), len(MESSAGE), repeats),
                NEW: lambda: _served_ns(with_a_new_connection, len(MESSAGE), repeats),
            },
            rounds,
        )
    return {name: [statistics.median(one) / 1000 for one in found] for name, found in times.items()}


def _served_ns(invoke: Callable[[], Reply], size: int, repeats: int) -> list[int]:
    """Time invocations; that each was served, with a payload of so many bytes, is checked between their times."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        reply = invoke()
        times.append(time.perf_counter_ns() - begun)
        serving.check_served(reply, size)
    return times


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process, and what is started meanwhile, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def measure_many_clients(report: Report, options: Options) -> None:
    """Measure invocations that do nothing, of many client processes at a time."""
    repeats, seconds, number = (50, 0.05, 2) if options.quick else (10_000, 2.0, GPUS * WORKERS_PER_GPU)
    loads: list[Load] = []
    relays: list[tuple[float, float]] = []  # messages per second, and the processor's microseconds for each
    with _server(options) as server, relay.started("relay") as bare:
        serving.invoke_together(server.address, _gpus(options) * WORKERS_PER_GPU, MESSAGE)
        bare.exchange()  # its child is there from the first message on
        processes = [psutil.Process(), psutil.Process(bare.pid), *psutil.Process(bare.pid).children()]

        def with_the_relay() -> None:
            before = serving.cpu_seconds_of(processes)
            seconds = sum(common.times_ns(bare.exchange, repeats)) / 1e9
            cpu_seconds = serving.cpu_seconds_of(processes) - before
            relays.append((repeats / seconds, cpu_seconds / repeats * 1e6))

        def with_clients() -> None:
            loads.append(clients.one_each(server, number, seconds))

        common.alternate({"relay": with_the_relay, "many clients": with_clients}, options.rounds)
    del loads[: -options.rounds], relays[: -options.rounds]  # the warm-up's
    relay_rates, relay_cpu_us = [list(one) for one in zip(*relays, strict=True)]
    rates = [load.rate for load in loads]
    tails = [load.percentile_ms(99) / load.percentile_ms(50) for load in loads]
    many = f"no-op kernel, {number} client processes, {_gpus(options)} GPUs x {WORKERS_PER_GPU}"
    report.add(f"{many}: requests/s", "x the relay's", common.ratios(rates, relay_rates), Target(2.5, at_least=True))
    report.add(f"{many}: p99", "x its p50", tails, Target(4))
    slowest = [load.percentile_ms(100) for load in loads]
    report.add(f"{many}: slowest of all (maximum, no median)", "ms", slowest, Target(100), of=max)
    report.add("relay: messages/s", "1/s", relay_rates)
    report.add("relay: CPU of its two processes and the client", "µs/message", relay_cpu_us)
    report.add(f"{many}: requests/s", "1/s", rates)
    for who, field in ("server", "server_cpu"), ("workers", "worker_cpu"), ("clients", "client_cpu"):
        report.add(f"{many}: CPU of the {who}", "µs/request", [load.cpu_us(getattr(load, field)) for load in loads])


def _gpus(options: Options) -> int:
    return 1 if options.quick else GPUS


def _server(options: Options) -> AbstractContextManager[Server]:
    arguments = ("-g", str(_gpus(options)), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    return serving.started(MODULES / "echo.py", *arguments)


def measure_matrix(report: Report, options: Options) -> None:
    """Measure what a matrix task takes beyond the kernel and the setup."""
    repeats, n = (5, 50) if options.quick else (100, N)
    with serving.started(ROOT / "cuda-matmul-cpu.py", "-m", "1", "--idle-timeout", "0") as server:
        client = load_matmul_client(server.address)
        try:
            client.prepare(str(n), 0)
            found = common.alternate({"matrix": lambda: _beside_the_kernel(client, str(n), repeats)}, options.rounds)
        finally:
            client.cleanup()
    task = f"cuda-matmul-cpu, N={n}, 1 client"
    overhead_ms, setup_ms, both_ms = [list(one) for one in zip(*found["matrix"], strict=True)]
    report.add(f"{task}: all but kernel and setup", "ms", overhead_ms, Target(0.5))
    report.add(f"{task}: setup", "ms", setup_ms)
    report.add(f"{task}: all but kernel", "ms", both_ms)


def load_matmul_client(address: str) -> ModuleType:
    """Load the matrix kernels' client, for a server."""
    os.environ["KAAS_ADDRESS"] = address
    return kernels.load(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)


def _beside_the_kernel(client: ModuleType, n: str, repeats: int) -> tuple[float, float, float]:
    """Give the medians of all but kernel and setup, of the setup, and of both, in milliseconds."""
    outcomes = [client.run_client(n) for _ in range(repeats)]
    for outcome in outcomes:
        if outcome.status != "ok":
            raise KaasError(f"a matrix task was not served: {outcome.status}: {outcome.error}")
    both_ms = [outcome.outer_ms - outcome.inner_ms for outcome in outcomes]
    setup_ms = [outcome.setup_ms for outcome in outcomes]
    overhead_ms = [all_of_it - setup for all_of_it, setup in zip(both_ms, setup_ms, strict=True)]
    return statistics.median(overhead_ms), statistics.median(setup_ms), statistics.median(both_ms)


def measure_large(report: Report, options: Options) -> None:
    """Measure a large payload, there and back."""
    repeats = 1 if options.quick else 3
    there, back = bytearray(relay.COPIED), bytearray(relay.COPIED)
    payload = os.urandom(relay.COPIED)
    with (
        serving.started(MODULES / "echo.py", "-m", "1", "--idle-timeout", "0") as server,
        relay.started("copy") as bare,
        Connection(server.address) as kaas,
    ):
        if kaas.invoke(payload).payload != payload:
            raise KaasError("a large payload came back as another one")
        found = common.alternate(
            {
                "copy": lambda: common.times_ns(lambda: bare.exchange_bytes(there, back), repeats),
                "large payload": lambda: _served_ns(lambda: kaas.invoke(payload), relay.COPIED, repeats),
            },
            options.rounds,
        )
    seconds = {name: [statistics.median(one) / 1e9 for one in rounds] for name, rounds in found.items()}
    speeds = common.ratios(seconds["copy"], seconds["large payload"])
    report.add("64 MiB there and back: speed", "x a plain copy's", speeds, Target(0.5, at_least=True))
    report.add("64 MiB there and back: time", "ms", [1000 * value for value in seconds["large payload"]])
    report.add("plain copy: time", "ms", [1000 * value for value in seconds["copy"]])


if __name__ == "__main__":
    common.main(measure, __doc__)
