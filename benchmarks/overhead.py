#!/usr/bin/env python3
"""What does KaaS add to a kernel's own time? Measured beside yardsticks, in the same rounds.

The yardstick of small invocations is the bare relay (relay.py): a blocking TCP echo server that passes each message of
64 bytes through one child process. The no-op kernel returns its payload, of 64 bytes, too. The client processes use
kaas.client in a loop; they share the cores with the server and its workers, so what they take counts. The yardstick of
a large payload is a plain socket copy: 64 MiB to a process that sends them back when it has them all, in buffers that
are used again and again. The matrix task's time is the client's, without the kernel's own and without the setup.
"""

import os
import statistics
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

GPUS, WORKERS_PER_GPU = 8, 4
N = 500


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

    The rounds are short and many: where the scheduler puts the processes, on one core or on two, halves or doubles the
    relay's time, and changes from moment to moment.
    """
    repeats, rounds = (50, 1) if options.quick else (800, 5 * options.rounds)
    with _server() as server, relay.started("relay") as bare, Connection(server.address) as kaas:
        serving.invoke_together(server.address, WORKERS_PER_GPU, MESSAGE)

        def with_a_new_connection() -> None:
            with Connection(server.address) as connection:
                connection.invoke(MESSAGE)

        times = common.alternate(
            {
                "relay": lambda: common.times_ns(bare.exchange, repeats),
                "one connection": lambda: common.times_ns(lambda: kaas.invoke(MESSAGE), repeats),
                "new connections": lambda: common.times_ns(with_a_new_connection, repeats),
            },
            rounds,
        )
    p50_us = {name: [statistics.median(one) / 1000 for one in found] for name, found in times.items()}
    ratios = {name: common.ratios(found, p50_us["relay"]) for name, found in p50_us.items()}
    one, new = "no-op kernel, 1 client", "no-op kernel, 1 client, a new connection for each request"
    report.add(f"{one}: p50", "x the relay's", ratios["one connection"], Target(1.3))
    report.add(f"{new}: p50", "x the relay's", ratios["new connections"], Target(2.2))
    report.add("relay: p50", "µs", p50_us["relay"])
    report.add(f"{one}: p50", "µs", p50_us["one connection"])
    report.add(f"{new}: p50", "µs", p50_us["new connections"])


def measure_many_clients(report: Report, options: Options) -> None:
    """Measure invocations that do nothing, of many client processes at a time."""
    repeats, seconds, number = (50, 0.3, 4) if options.quick else (10_000, 2.0, GPUS * WORKERS_PER_GPU)
    loads: list[Load] = []
    relays: list[tuple[float, float]] = []  # messages per second, and the processor's microseconds for each
    with _server() as server, relay.started("relay") as bare:
        serving.invoke_together(server.address, GPUS * WORKERS_PER_GPU, MESSAGE)
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
    del loads[0], relays[0]  # the warm-up's
    relay_rates, relay_cpu_us = [list(one) for one in zip(*relays, strict=True)]
    rates = [load.rate for load in loads]
    tails = [load.percentile_ms(99) / load.percentile_ms(50) for load in loads]
    many = f"no-op kernel, {number} client processes, {GPUS} GPUs x {WORKERS_PER_GPU}"
    report.add(f"{many}: requests/s", "x the relay's", common.ratios(rates, relay_rates), Target(2.5, at_least=True))
    report.add(f"{many}: p99", "x its p50", tails, Target(4))
    report.add(f"{many}: slowest of all", "ms", [load.percentile_ms(100) for load in loads], Target(100), of=max)
    report.add("relay: messages/s", "1/s", relay_rates)
    report.add("relay: CPU of its two processes and the client", "µs/message", relay_cpu_us)
    report.add(f"{many}: requests/s", "1/s", rates)
    for who, field in ("server", "server_cpu"), ("workers", "worker_cpu"), ("clients", "client_cpu"):
        report.add(f"{many}: CPU of the {who}", "µs/request", [load.cpu_us(getattr(load, field)) for load in loads])


def _server() -> AbstractContextManager[Server]:
    arguments = ("-g", str(GPUS), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    return serving.started(MODULES / "echo.py", *arguments)


def measure_matrix(report: Report, options: Options) -> None:
    """Measure what a matrix task takes beyond the kernel and the setup."""
    repeats, n = (5, 50) if options.quick else (20, N)
    with serving.started(ROOT / "cuda-matmul-cpu.py", "-m", "1", "--idle-timeout", "0") as server:
        client = load_matmul_client(server.address)
        try:
            client.prepare(str(n), 0)
            found = common.alternate({"matrix": lambda: _overhead_ms(client, str(n), repeats)}, options.rounds)
        finally:
            client.cleanup()
    report.add(f"cuda-matmul-cpu, N={n}, 1 client: all but kernel and setup", "ms", found["matrix"], Target(0.5))


def load_matmul_client(address: str) -> ModuleType:
    """Load the matrix kernels' client, for a server."""
    os.environ["KAAS_ADDRESS"] = address
    return kernels.load(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)


def _overhead_ms(client: ModuleType, n: str, repeats: int) -> float:
    outcomes = [client.run_client(n) for _ in range(repeats)]
    for outcome in outcomes:
        if outcome.status != "ok":
            raise KaasError(f"a matrix task was not served: {outcome.status}: {outcome.error}")
    return float(statistics.median(outcome.outer_ms - outcome.inner_ms - outcome.setup_ms for outcome in outcomes))


def measure_large(report: Report, options: Options) -> None:
    """Measure a large payload, there and back."""
    repeats = 1 if options.quick else 3
    there, back = bytearray(relay.COPIED), bytearray(relay.COPIED)
    payload = bytes(there)
    with (
        serving.started(MODULES / "echo.py", "-m", "1", "--idle-timeout", "0") as server,
        relay.started("copy") as bare,
        Connection(server.address) as kaas,
    ):
        found = common.alternate(
            {
                "copy": lambda: common.times_ns(lambda: bare.exchange_bytes(there, back), repeats),
                "large payload": lambda: common.times_ns(lambda: serving.check_served(kaas.invoke(payload)), repeats),
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
