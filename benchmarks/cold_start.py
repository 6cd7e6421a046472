#!/usr/bin/env python3
"""How long does the invocation take that makes the server boot a task runner? Beside the same task in a fresh process.

A task runner of 4 workers of a matrix kernel (cuda-matmul-cpu unless another is named), N = 16, compiled code in its
cache; from request to reply, the copy of the matrix included. The reply comes once the first worker has served it; when
the last one is ready, and the phases of its boot, the server's event lines tell. The fresh process is the kernel as a
script (`python cuda-matmul-cpu.py 16`), its compiled code in its cache, too.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import common
import serving
from common import Options, Report, Target
from overhead import load_matmul_client
from serving import Server

from kaas import cli, kernels
from kaas.errors import KaasError
from kaas.events import Event

N = "16"
KERNEL = "cuda-matmul-cpu"
WORKERS = 4
_PHASE = re.compile(r"(\w+) ([\d.]+) s")


class ColdStart(NamedTuple):
    """Milliseconds after the request."""

    replied_ms: float
    all_ready_ms: float
    phases: dict[str, float]
    """Seconds of each phase of the boot, of the worker that was ready last."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this program alone is told."""
    parser.add_argument("--kernel", default=KERNEL, help="cuda-matmul-fn for a GPU (default %(default)s)")
    parser.add_argument("--repeats", type=cli.positive_int, default=3, help="in each round (default %(default)s)")


def measure(options: Options) -> Report:
    """Measure cold starts and fresh processes, in turns."""
    assert __doc__ is not None
    kernel = kernels.find(options.kernel)
    report = Report(f"Cold start: {kernel.stem}", __doc__.partition("\n\n")[2])
    repeats = 1 if options.quick else options.repeats
    with serving.started(kernel, "-m", str(WORKERS), "--idle-timeout", "0.2") as server:
        client = load_matmul_client(server.address)
        try:
            client.prepare(N, 0)
            measures: dict[str, Callable[[], list[Any]]] = {
                "fresh process": lambda: [fresh_process_ms(kernel) for _ in range(repeats)],
                "cold start": lambda: [cold_start(server, client) for _ in range(repeats)],
            }
            found = common.alternate(measures, options.rounds)
        finally:
            client.cleanup()
    fresh = [statistics.median(one) for one in found["fresh process"]]
    replied = [statistics.median(one.replied_ms for one in starts) for starts in found["cold start"]]
    all_ready = [statistics.median(one.all_ready_ms for one in starts) for starts in found["cold start"]]
    target = Target(0.10) if options.kernel == KERNEL else None
    name = f"cold start of {WORKERS} workers, N={N}"
    report.add(name, "x a fresh process", common.ratios(replied, fresh), target)
    report.add(f"{name}, until all are ready", "x a fresh process", common.ratios(all_ready, fresh))
    report.add("cold start, request to reply", "ms", replied)
    report.add("cold start, until all are ready", "ms", all_ready)
    report.add("fresh process, start to end", "ms", fresh)
    boots = [start.phases for starts in found["cold start"] for start in starts]
    report.add_table(
        "The boot of the worker that was ready last, by phase, medians",
        ("phase", "s"),
        [(phase, statistics.median(boot[phase] for boot in boots)) for phase in boots[0]],
    )
    return report


def cold_start(server: Server, client: ModuleType) -> ColdStart:
    """Make an invocation for which a task runner has to be booted."""
    serving.wait_until(lambda: not server.task_runners() and not server.workers(), "the task runner is stopped")
    before, begun = len(server.events()), serving.CLOCK.now()
    outcome = client.run_client(N)
    if not outcome.cold_start or outcome.status != "ok":
        raise KaasError(f"not a cold start that was served: {outcome}")

    def ready() -> list[Event]:
        return [event for event in server.events()[before:] if event.event == "ready"]

    def all_ready() -> bool:
        if len(ready()) >= WORKERS:
            return True
        client.run_client(N)  # else the task runner, idle, would be stopped while its other workers still boot
        return False

    serving.wait_until(all_ready, "all workers are ready")
    last = max(ready(), key=lambda event: event.timestamp)
    phases = {name: float(seconds) for name, seconds in _PHASE.findall(last.detail)}
    return ColdStart(outcome.outer_ms, (last.timestamp - begun) * 1000, phases)


def fresh_process_ms(kernel: Path) -> float:
    """Run the kernel as a script."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, kernel, N], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    common.main(measure, __doc__, add_arguments)
