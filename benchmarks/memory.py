#!/usr/bin/env python3
"""How much memory does one more worker take, one more client of the load generator, and a large payload? Linux only.

Proportional set size: a process's own memory and its part of what it shares, as /proc/PID/smaps_rollup tells. Workers
of cuda-matmul-cpu, so with Numba loaded, that have all served matrix tasks; clients of load.py that have all made
requests, of a client module that only sleeps. All together are the server or load.py itself, its fork server and what
else it has started, and the workers or clients. Large payloads pass through the server, there and back, at once.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import common
import psutil
import serving
from common import MODULES, ROOT, Options, Report, Target

from kaas import matrices, results, wire
from kaas.client import split_address
from kaas.errors import KaasError
from kaas.matrices import Task
from kaas.wire import Request

WORKERS_PER_GPU = 4
MB = 1e6


class Memory(NamedTuple):
    """What a program with many processes takes, in MB."""

    each: list[float]
    """The workers or clients."""
    together: float
    """Those, the program itself, and all others that it has started."""


def measure(options: Options) -> Report:
    """Measure workers and clients, each in rounds."""
    assert __doc__ is not None
    report = Report("Memory", __doc__.partition("\n\n")[2])
    if not serving.can_tell_shared_memory():
        report.notes.append("Not measured: this system has no /proc/PID/smaps_rollup; run it on Linux.")
        return report
    gpus, clients = (1, 5) if options.quick else (7, 500)
    found = common.alternate(
        {"workers": lambda: workers_mb(gpus), "clients": lambda: clients_mb(clients)},
        options.rounds,
        warm_up=False,
    )
    for key, name, whole, number, limit in (
        ("workers", "a worker with Numba loaded", "server, fork server and workers", gpus * WORKERS_PER_GPU, 15),
        ("clients", "a client of load.py", "load.py, fork server and clients", clients, 12),
    ):
        each = [memory.each for memory in found[key]]
        report.add(f"{name}, mean of {number}", "MB PSS", list(map(statistics.fmean, each)), Target(limit))
        report.add(f"{name}, the largest", "MB PSS", list(map(max, each)))
        shares = [memory.together / number for memory in found[key]]
        report.add(f"{whole} together, divided by {number}", "MB PSS", shares)
    senders, size = (2, 4) if options.quick else (8, 64)
    grown = [passing_mb(senders, size * 2**20) for _ in range(options.rounds)]
    name = f"the server's growth, {senders} clients send {size} MiB each and take them back"
    report.add(name, "MB RSS", grown, Target(2 * size * 2**20 / MB))
    return report


def passing_mb(clients: int, size: int) -> float:
    """Have clients send so many bytes each, at once, to a kernel that returns them; give the growth of the server."""
    with serving.started(MODULES / "no_op.py", "-m", str(clients), "--idle-timeout", "0") as server:
        serving.invoke_together(server.address, clients, bytes(1000))
        before = server.process.memory_info().rss
        frame, most = wire.encode_request(Request(wire.INVOKE, bytes(size))), before
        with ThreadPoolExecutor(clients) as pool:
            exchanges = [pool.submit(_exchange, server.address, frame) for _ in range(clients)]
            while not all(one.done() for one in exchanges):
                most = max(most, server.process.memory_info().rss)
                time.sleep(0.001)
        if any(one.result() != size for one in exchanges):
            raise KaasError("a large payload did not come back")
    return (most - before) / MB


def _exchange(address: str, frame: bytes) -> int:
    """Send a request; give the size of what comes back."""
    with socket.create_connection(split_address(address)) as connection:
        connection.sendall(frame)
        decoder = wire.reply_decoder()
        while not (replies := list(decoder.receive(connection) or [])):
            pass
        return len(replies[0].payload)


def workers_mb(gpus: int) -> Memory:
    """Boot all workers of some GPUs and have them serve tasks; give their memory."""
    number, n = gpus * WORKERS_PER_GPU, 16
    arguments = ("-g", str(gpus), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    with (
        serving.started(ROOT / "cuda-matmul-cpu.py", *arguments) as server,
        matrices.shared_matrix(n) as a,
        matrices.shared_matrix(n) as c,
    ):
        a.matrix[:] = matrices.random_matrix(n)
        for _ in range(3):
            serving.invoke_together(server.address, number, Task(a.name, c.name, n).encode())
        return _memory(server.process, number)


def clients_mb(number: int) -> Memory:
    """Have the load generator run a number of clients; give their memory."""
    ramp = ("--min-parallel", str(number), "--max-parallel", str(number), "--interval", "600")
    names = ("--experiment-name", "memory", "--task-name", "sleep", "--server", "none")
    line = [sys.executable, str(ROOT / "load.py"), "--client", str(MODULES / "sleeper.py"), "--input", "100"]
    with tempfile.TemporaryDirectory(prefix="kaas-") as folder:
        load = subprocess.Popen(
            [*line, *names, *ramp, "--supervised", str(os.getpid())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            rows = Path(folder, "results-memory", "sleep.csv")
            serving.wait_until(
                lambda: load.poll() is not None or _clients_at_work(rows) == number, f"{number} clients make requests"
            )
            return _memory(psutil.Process(load.pid), number)
        finally:
            load.terminate()
            load.wait()


def _memory(program: psutil.Process, number: int) -> Memory:
    """Tell what a program takes that has had so many processes forked."""
    processes = [program, *program.children(recursive=True)]
    sizes = dict(zip(processes, serving.pss_bytes(processes), strict=True))
    each = [sizes[process] / MB for process in serving.forked(program)]
    if len(each) != number:
        raise KaasError(f"{len(each)} workers or clients are there, not {number}")
    return Memory(each, sum(sizes.values()) / MB)


def _clients_at_work(rows: Path) -> int:
    """Count the clients that have finished two requests or more."""
    if not rows.exists():
        return 0
    requests = Counter(row.copy for row in results.read_rows(rows))
    return sum(number > 1 for number in requests.values())


if __name__ == "__main__":
    common.main(measure, __doc__)
