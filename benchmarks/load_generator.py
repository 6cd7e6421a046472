#!/usr/bin/env python3
"""What does the load generator itself take? A load that is busy with itself measures itself.

32 client processes make requests of a no-op kernel, on 8 GPUs x 4: in a bare loop over kaas.client, and as clients of
load.py, which writes a row for each request and reads them all to show how it goes. They share the cores with the
server and its workers. The time of the processor is that of load.py's processes: the clients, and the generator, which
reads the rows.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import clients
import common
import psutil
import serving
from clients import Load
from common import MODULES, ROOT, Options, Report, Target
from relay import MESSAGE
from serving import Server

from kaas.errors import KaasError

GPUS, WORKERS_PER_GPU = 8, 4


class Rows(NamedTuple):
    """Rows that load.py has written per second, and microseconds of the processor for each."""

    rate: float
    clients_us: float
    generator_us: float


def measure(options: Options) -> Report:
    """Measure both, in turns."""
    assert __doc__ is not None
    report = Report("Load generator", __doc__.partition("\n\n")[2])
    gpus, seconds, number = (1, 0.1, 2) if options.quick else (GPUS, 2.0, GPUS * WORKERS_PER_GPU)
    arguments = ("-g", str(gpus), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    bare: list[Load] = []
    rows: list[Rows] = []
    with serving.started(MODULES / "no_op.py", *arguments) as server:
        serving.invoke_together(server.address, gpus * WORKERS_PER_GPU, MESSAGE)
        common.alternate(
            {
                "bare loop": lambda: bare.append(clients.one_each(server, number, seconds)),
                "load.py": lambda: rows.append(_by_load(server, number, seconds)),
            },
            options.rounds,
        )
    del bare[: -options.rounds], rows[: -options.rounds]  # the warm-up's
    rates, bare_rates = [one.rate for one in rows], [one.rate for one in bare]
    shares = common.ratios(rates, bare_rates)
    report.add(f"{number} clients of load.py: requests/s", "x a bare loop's", shares, Target(0.75, at_least=True))
    report.add(f"{number} clients of load.py: requests/s", "1/s", rates)
    report.add(f"{number} clients in a bare loop: requests/s", "1/s", bare_rates)
    report.add("CPU of load.py's clients", "µs/request", [one.clients_us for one in rows])
    report.add("CPU of load.py itself", "µs/request", [one.generator_us for one in rows])
    report.add("CPU of the clients in a bare loop", "µs/request", [one.cpu_us(one.client_cpu) for one in bare])
    return report


def _by_load(server: Server, number: int, seconds: float) -> Rows:
    with tempfile.TemporaryDirectory(prefix="kaas-") as folder, _load(server, number, Path(folder)) as load:
        path = Path(folder, "results-generator", "noop.csv")
        serving.wait_until(lambda: load.poll() is not None or _lines(path) > 10 * number, "load.py makes requests")
        program = psutil.Process(load.pid)
        processes = serving.forked(program)
        if len(processes) != number:
            raise KaasError(f"load.py has {len(processes)} clients, not {number}")

        def taken() -> tuple[float, int, float, float]:
            used = serving.cpu_seconds_of(processes), serving.cpu_seconds_of([program])
            return time.perf_counter(), _lines(path), *used

        before = taken()
        time.sleep(seconds)
        passed, lines, in_clients, in_generator = (after - begun for after, begun in zip(taken(), before, strict=True))
    return Rows(lines / passed, in_clients / lines * 1e6, in_generator / lines * 1e6)


@contextlib.contextmanager
def _load(server: Server, number: int, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    ramp = ("--min-parallel", str(number), "--max-parallel", str(number), "--interval", "600")
    names = ("--experiment-name", "generator", "--task-name", "noop", "--server", server.address)
    client = ("--client", str(MODULES / "invoker.py"), "--input", "-", "--supervised", str(os.getpid()))
    load = subprocess.Popen(
        [sys.executable, str(ROOT / "load.py"), *client, *names, *ramp],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield load
    finally:
        load.terminate()
        load.wait()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    common.main(measure, __doc__)
