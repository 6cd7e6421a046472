#!/usr/bin/env python3
"""How long does the invocation take that makes the server boot a task runner? Beside the same task in a fresh process.

A task runner of 4 workers of cuda-matmul-cpu, N = 16, compiled code in its cache; from request to reply, the copy of
the matrix included. The reply comes once the first worker has served it; when the last one is ready the server's event
lines tell. The fresh process is `python cuda-matmul-cpu.py 16`, its compiled code in its cache, too.
"""

import statistics
import subprocess
import sys
import time
from types import ModuleType
from typing import NamedTuple

import common
import serving
from common import ROOT, Options, Report, Target
from overhead import load_matmul_client
from serving import Server

from kaas.errors import KaasError

N = "16"
KERNEL = ROOT / "cuda-matmul-cpu.py"
WORKERS = 4


class ColdStart(NamedTuple):
    """Milliseconds after the request."""

    replied_ms: float
    all_ready_ms: float


def measure(options: Options) -> Report:
    """Measure cold starts and fresh processes, in turns."""
    assert __doc__ is not None
    report = Report("Cold start", __doc__.partition("\n\n")[2])
    repeats = 1 if options.quick else 3
    with serving.started(KERNEL, "-m", str(WORKERS), "--idle-timeout", "0.2") as server:
        client = load_matmul_client(server.address)
        try:
            client.prepare(N, 0)
            found = common.alternate(
                {
                    "fresh process": lambda: [fresh_process_ms() for _ in range(repeats)],
                    "cold start": lambda: [cold_start(server, client) for _ in range(repeats)],
                },
                options.rounds,
            )
        finally:
            client.cleanup()
    fresh = [statistics.median(one) for one in found["fresh process"]]
    replied = [statistics.median(one.replied_ms for one in starts) for starts in found["cold start"]]
    all_ready = [statistics.median(one.all_ready_ms for one in starts) for starts in found["cold start"]]
    name = f"cold start of {WORKERS} workers, N={N}"
    report.add(name, "x a fresh process", common.ratios(replied, fresh), Target(0.10))
    report.add(f"{name}, until all are ready", "x a fresh process", common.ratios(all_ready, fresh))
    report.add("cold start, request to reply", "ms", replied)
    report.add("cold start, until all are ready", "ms", all_ready)
    report.add("fresh process, start to end", "ms", fresh)
    return report


def cold_start(server: Server, client: ModuleType) -> ColdStart:
    """Make an invocation for which a task runner has to be booted."""
    serving.wait_until(lambda: not server.task_runners() and not server.workers(), "the task runner is stopped")
    before, begun = len(server.events()), time.time()
    outcome = client.run_client(N)
    if not outcome.cold_start or outcome.status != "ok":
        raise KaasError(f"not a cold start that was served: {outcome}")

    def ready() -> list[float]:
        return [event.timestamp for event in server.events()[before:] if event.event == "ready"]

    serving.wait_until(lambda: len(ready()) >= WORKERS, "all workers are ready")
    return ColdStart(outcome.outer_ms, (max(ready()) - begun) * 1000)


def fresh_process_ms() -> float:
    """Run the kernel as a script."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, KERNEL, N], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    common.main(measure, __doc__)
