#!/usr/bin/env python3
"""What does KaaS add to a kernel's own time? Measured beside yardsticks, in the same rounds.

The yardstick of small invocations is the bare relay (relay.py): a blocking TCP echo server that passes each message of
64 bytes through one child process. The one of many clients is the bare front (front.py): an epoll loop between as many
clients and workers as KaaS has, which does nothing but pass messages of 64 bytes. The no-op kernel returns its payload,
of 64 bytes, too. The client processes use kaas.client in a loop, with a timeout, as every run does; they share the
cores with the server and its workers, so what they take counts. The yardstick of a large payload is a plain socket
copy: 64 MiB to a process that sends them back when it has them all, in buffers that are used again and again. The
matrix task's time is the client's, without the kernel's own and without the setup. The setup is all that the client
does with shared memory: it fills a segment and, where they are fresh and not kept, makes and frees both; the original
counted only the copy. Both together are everything but the kernel.

Where the scheduler puts the processes, on one core or on two, halves or doubles a small exchange. So the one client is
measured once more with all of it, relay or server and worker and client, on one and the same core.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType

import clients
import common
import front
import psutil
import relay
import serving
from clients import Load
from common import MODULES, ROOT, Options, Report, Target
from relay import MESSAGE, Yardstick
from serving import TIMEOUT, Server

from kaas import kernels
from kaas.client import Connection
from kaas.errors import KaasError
from kaas.segments import MODES
from kaas.wire import Reply

GPUS, WORKERS_PER_GPU = 8, 4
N, SMALL_N = 500, 16
RELAY, FRONT, KEPT, NEW = "relay", "bare front", "one connection", "new connections"


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
    report.add(f"{one}: p50", "x the relay's", common.ratios(free[KEPT], free[RELAY]))
    report.add(f"{new}: p50", "x the relay's", common.ratios(free[NEW], free[RELAY]), Target(2.6))
    for name, found in ("relay", RELAY), ("bare front", FRONT), (one, KEPT), (new, NEW):
        report.add(f"{name}: p50", "µs", free[found])
    if hasattr(os, "sched_setaffinity"):
        with _on_one_core():
            pinned = _one_client_us(options, options.rounds)
        alone = f"all on one core, {one}: p50"
        report.add(alone, "x the bare front's", common.ratios(pinned[KEPT], pinned[FRONT]), Target(1.6))
        for name, found in (one, KEPT), (new, NEW):
            report.add(f"all on one core, {name}: p50", "x the relay's", common.ratios(pinned[found], pinned[RELAY]))
        for name, found in ("relay", RELAY), ("bare front", FRONT), (one, KEPT), (new, NEW):
            report.add(f"all on one core, {name}: p50", "µs", pinned[found])


def _one_client_us(options: Options, rounds: int) -> dict[str, list[float]]:
    """Give each round's median time of both yardsticks, of a connection that is kept, and of new ones."""
    repeats = 50 if options.quick else 800
    if options.quick:
        rounds = 1
    with (
        _server(options) as server,
        relay.started("relay") as bare,
        front.started(_gpus(options) * WORKERS_PER_GPU) as bare_front,
        bare_front.connection() as to_front,
        Connection(server.address) as kaas,
    ):
        serving.invoke_together(server.address, WORKERS_PER_GPU, MESSAGE)

        def with_a_new_connection() -> Reply:
            with Connection(server.address) as connection:
                return connection.invoke(MESSAGE, TIMEOUT)

        times = common.alternate(
            {
                RELAY: lambda: common.times_ns(bare.exchange, repeats),
                FRONT: lambda: common.times_ns(Yardstick(to_front, bare_front.process.pid).exchange, repeats),
                KEPT: lambda: _served_ns(lambda: kaas.invoke(MESSAGE, TIMEOUT), len(MESSAGE), repeats),
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
    bare_loads: list[Load] = []
    relays: list[tuple[float, float]] = []  # messages per second, and the processor's microseconds for each
    with (
        _server(options) as server,
        relay.started("relay") as bare,
        front.started(_gpus(options) * WORKERS_PER_GPU) as bare_front,
    ):
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

        def with_the_front() -> None:
            bare_loads.append(clients.one_each_bare(bare_front, number, seconds))

        measures = {"relay": with_the_relay, "bare front": with_the_front, "many clients": with_clients}
        common.alternate(measures, options.rounds)
    del loads[: -options.rounds], bare_loads[: -options.rounds], relays[: -options.rounds]  # the warm-up's
    relay_rates, relay_cpu_us = [list(one) for one in zip(*relays, strict=True)]
    rates = [load.rate for load in loads]
    tails = [load.percentile_ms(99) / load.percentile_ms(50) for load in loads]
    many = f"no-op kernel, {number} client processes, {_gpus(options)} GPUs x {WORKERS_PER_GPU}"
    bare_rates = [load.rate for load in bare_loads]
    shares = common.ratios(rates, bare_rates)
    report.add(f"{many}: requests/s", "x the bare front's", shares, Target(0.7, at_least=True))
    report.add(f"{many}: requests/s", "x the relay's", common.ratios(rates, relay_rates))
    report.add(f"{many}: p99", "x its p50", tails, Target(4))
    slowest = [load.percentile_ms(100) for load in loads]
    report.add(f"{many}: slowest of all (maximum, no median)", "ms", slowest, Target(100), of=max)
    report.add("relay: messages/s", "1/s", relay_rates)
    report.add("relay: CPU of its two processes and the client", "µs/message", relay_cpu_us)
    for name, rates_of, loads_of in ("bare front", bare_rates, bare_loads), (many, rates, loads):
        report.add(f"{name}: requests/s", "1/s", rates_of)
        for who, field in ("server", "server_cpu"), ("workers", "worker_cpu"), ("clients", "client_cpu"):
            cpu_us = [load.cpu_us(getattr(load, field)) for load in loads_of]
            report.add(f"{name}: CPU of the {who}", "µs/request", cpu_us)


def _gpus(options: Options) -> int:
    return 1 if options.quick else GPUS


def _server(options: Options) -> AbstractContextManager[Server]:
    arguments = ("-g", str(_gpus(options)), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    return serving.started(MODULES / "no_op.py", *arguments)


def measure_matrix(report: Report, options: Options) -> None:
    """Measure what a matrix task takes beyond the kernel and the setup."""
    repeats, sizes = (5, (50,)) if options.quick else (100, (N, SMALL_N))
    kernel = kernels.find("cuda-matmul-blas" if options.quick else "cuda-matmul-cpu")  # the former is imported sooner
    with contextlib.ExitStack() as stack:
        servers = {mode: stack.enter_context(matmul_server(kernel, mode)) for mode in MODES}
        client = load_matmul_client(servers["fresh"].address)
        stack.callback(client.cleanup)

        def beside_the_kernel(mode: str, n: int) -> tuple[float, float, float]:
            make_ready(client, servers[mode].address, mode, n)
            return _beside_the_kernel(client, str(n), repeats)

        found = common.alternate(
            {f"{mode}, N={n}": partial(beside_the_kernel, mode, n) for n in sizes for mode in MODES}, options.rounds
        )
    for n in sizes:
        both = {}
        for mode, limit in ("fresh", 0.5), ("kept", 0.25):
            task = f"{kernel.stem}, N={n}, 1 client, {mode} segments"
            overhead_ms, setup_ms, both[mode] = [list(one) for one in zip(*found[f"{mode}, N={n}"], strict=True)]
            report.add(f"{task}: all but kernel and setup", "ms", overhead_ms, Target(limit) if n == N else None)
            report.add(f"{task}: setup", "ms", setup_ms)
            report.add(f"{task}: all but kernel", "ms", both[mode])
        shares, target = common.ratios(both["kept"], both["fresh"]), Target(0.35 if n == N else 1.0)
        report.add(f"{kernel.stem}, N={n}, 1 client: all but kernel", "kept x fresh", shares, target)


def matmul_server(kernel: Path, mode: str) -> AbstractContextManager[Server]:
    """Start a server of one worker for a matrix kernel; segments are `fresh` or `kept`."""
    return serving.started(kernel, "-m", "1", "--idle-timeout", "0", SEGMENTS=mode)


def load_matmul_client(address: str) -> ModuleType:
    """Load the matrix kernels' client, for a server."""
    os.environ["KAAS_ADDRESS"] = address
    return kernels.load(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)


def make_ready(client: ModuleType, address: str, mode: str, n: int) -> None:
    """Make the matrix kernels' client a new one, for a server, segments and N; its first request is behind it."""
    client.cleanup()
    os.environ |= {"KAAS_ADDRESS": address, "SEGMENTS": mode}
    try:
        client.prepare(str(n), 0)
    finally:
        del os.environ["SEGMENTS"]
    client.run_client(str(n))


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
        serving.started(MODULES / "no_op.py", "-m", "1", "--idle-timeout", "0") as server,
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
