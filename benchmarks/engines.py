#!/usr/bin/env python3
"""What does an engine cost? Measured with a kernel that gives back its 16 bytes, in one run, in turns.

local: workers of this machine. ray: workers on one node, or on two simulated ones, of a Ray. A bare Ray actor's call,
and Ray Serve's HTTP where it is installed (pip install "ray[serve]"), are what invocations would cost if they passed
through Ray. Cold start: from the request that boots a task runner of 4 workers to its reply; of the actor, from its
creation to its first reply.
"""

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import clients
import common
import serving
from common import MODULES, Options, Report, Target
from serving import Server

from kaas.client import Connection
from kaas.cluster import local_ray
from kaas.errors import UsageError

MESSAGE = b"x" * 16
CLIENTS = 32
KEPT = ("-m", "8", "--idle-timeout", "0", "--num-gpus", "4")
STOPPED = ("-m", "4", "--idle-timeout", "0.2", "--num-gpus", "1")


class BareRay:
    """The process that measures Ray itself (bare_ray.py)."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._line()

    def times_ns(self, what: str, number: int) -> list[int]:
        """Have it make so many calls; give the nanoseconds of each."""
        assert self._process.stdin is not None
        print(what, number, file=self._process.stdin, flush=True)
        return [int(one) for one in json.loads(self._line())]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise UsageError("the process that measures Ray itself has ended: see above")
        return line


@contextlib.contextmanager
def bare_ray(gpus: int) -> Iterator[BareRay]:
    """Start a Ray and what measures it, and end both."""
    scratch = local_ray.make_folder()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bare_ray.py")), str(scratch.folder), str(gpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield BareRay(process)
    finally:
        process.communicate()
        scratch.close()


def measure(options: Options) -> Report:
    """Measure all of them."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("this measures Ray, which is not installed: run scripts/setup --ray")
    assert __doc__ is not None
    report = Report("Engines", __doc__.partition("\n\n")[2])
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(bare_ray(6))
        one_node = ("--engine", "ray", "--ray-address", bare.address)
        two_nodes = ("--engine", "ray", "--ray-nodes", "2")

        def start(*arguments: str) -> Server:
            return stack.enter_context(serving.started(MODULES / "no_op.py", "--boot-timeout", "90", *arguments))

        servers = {
            "local": start(*KEPT),
            "ray, one node": start(*KEPT, *one_node),
            "ray, two nodes": start(*KEPT, *two_nodes),
        }
        cold = {"local": start(*STOPPED), "ray, a warm node": start(*STOPPED, *one_node)}
        for server in servers.values():
            serving.invoke_together(server.address, CLIENTS, MESSAGE)
        _measure_one_client(report, options, servers, bare)
        _measure_many_clients(report, options, servers)
        _measure_cold_starts(report, options, cold, bare)
    return report


def _measure_one_client(report: Report, options: Options, servers: dict[str, Server], bare: BareRay) -> None:
    repeats = 50 if options.quick else 1000

    def invocations(address: str) -> list[int]:
        with Connection(address) as kaas:
            return common.times_ns(lambda: serving.check_served(kaas.invoke(MESSAGE), len(MESSAGE)), repeats)

    measures: dict[str, Callable[[], list[int]]] = {
        name: lambda address=server.address: invocations(address)  # type: ignore[misc]
        for name, server in servers.items()
    }
    measures["bare Ray actor"] = lambda: bare.times_ns("actor", repeats)
    if importlib.util.find_spec("starlette") is not None:
        measures["Ray Serve, HTTP"] = lambda: bare.times_ns("serve", repeats)
    else:
        report.notes.append('Ray Serve was not measured: it is not installed (pip install "ray[serve]").')
    times = common.alternate(measures, options.rounds)
    found = {name: [statistics.median(one) / 1000 for one in each] for name, each in times.items()}
    for name in ("ray, one node", "ray, two nodes"):
        report.add(f"{name}, 1 client: p50", "x local's", common.ratios(found[name], found["local"]), Target(1.3))
        ratios = common.ratios(found[name], found["bare Ray actor"])
        report.add(f"{name}, 1 client: p50", "x a bare Ray actor's call", ratios, Target(0.35))
    for name, values in found.items():
        report.add(f"{name}, 1 client: p50", "µs", values)


def _measure_many_clients(report: Report, options: Options, servers: dict[str, Server]) -> None:
    number, seconds = (4, 0.3) if options.quick else (CLIENTS, 2.0)
    measures = {
        name: lambda server=server: clients.one_each(server, number, seconds).rate for name, server in servers.items()
    }
    found: dict[str, list[float]] = common.alternate(measures, options.rounds)
    for name in ("ray, one node", "ray, two nodes"):
        ratios = common.ratios(found[name], found["local"])
        report.add(f"{name}, {number} clients: requests/s", "x local's", ratios, Target(0.85, at_least=True))
    for name, values in found.items():
        report.add(f"{name}, {number} clients", "requests/s", values)


def _measure_cold_starts(report: Report, options: Options, servers: dict[str, Server], bare: BareRay) -> None:
    repeats = 1 if options.quick else 5

    def cold_start_ns(server: Server) -> int:
        serving.wait_until(lambda: not server.task_runners(), "the task runner is stopped")
        with Connection(server.address) as kaas:
            kaas.status()
            (time,) = common.times_ns(lambda: serving.check_served(kaas.invoke(MESSAGE)), 1)
        return time

    measures: dict[str, Callable[[], list[int]]] = {
        name: lambda server=server: [cold_start_ns(server) for _ in range(repeats)]  # type: ignore[misc]
        for name, server in servers.items()
    }
    measures["bare Ray actor"] = lambda: bare.times_ns("cold", repeats)
    times = common.alternate(measures, options.rounds)
    found = {name: [statistics.median(one) / 1e6 for one in each] for name, each in times.items()}
    ratios = common.ratios(found["ray, a warm node"], found["local"])
    report.add("ray, a warm node: cold start", "x local's", ratios, Target(2.0))
    for name, values in found.items():
        report.add(f"{name}: cold start", "ms", values)


if __name__ == "__main__":
    common.main(measure, __doc__)
