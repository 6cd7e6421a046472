#!/usr/bin/env python3
"""Do clients that are connected and silent cost those anything that are at work?

32 client processes make requests of a no-op kernel in a loop, on 8 GPUs x 4, without and with 1,000 connections beside
them on which nothing is ever sent, all of which are still open at the end.
"""

import contextlib
import select
import socket

import clients
import common
import serving
from clients import Load
from common import MODULES, Options, Report, Target
from relay import MESSAGE
from serving import Server

from kaas import descriptors
from kaas.client import split_address
from kaas.errors import KaasError

GPUS, WORKERS_PER_GPU = 8, 4
IDLE = 1000


def measure(options: Options) -> Report:
    """Measure without and with idle connections, in turns."""
    assert __doc__ is not None
    report = Report("Idle connections", __doc__.partition("\n\n")[2])
    gpus, seconds, idle = (1, 0.05, 50) if options.quick else (GPUS, 2.0, IDLE)
    busy = gpus * WORKERS_PER_GPU
    descriptors.raise_limit()
    arguments = ("-g", str(gpus), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    with serving.started(MODULES / "echo.py", *arguments) as server:
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
    return report


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
