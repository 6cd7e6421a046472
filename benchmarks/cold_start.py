#!/usr/bin/env python3
"""How long does the invocation take that makes the server boot a task runner? Beside the same task in a fresh process.

A task runner of 4 workers of cuda-matmul-cpu, N = 16, compiled code in its cache; from request to reply, the copy of
the matrix included. The fresh process is `python cuda-matmul-cpu.py 16`, its compiled code in its cache, too.
"""

import subprocess
import sys
import time
from types import ModuleType

import common
import serving
from common import ROOT, Options, Report, Target
from overhead import load_matmul_client
from serving import Server

from kaas.errors import KaasError

N = "16"
KERNEL = ROOT / "cuda-matmul-cpu.py"
WORKERS = 4


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
                    "cold start": lambda: [cold_start_ms(server, client) for _ in range(repeats)],
                },
                options.rounds,
            )
        finally:
            client.cleanup()
    milliseconds = {name: [sorted(one)[len(one) // 2] for one in rounds] for name, rounds in found.items()}
    shares = common.ratios(milliseconds["cold start"], milliseconds["fresh process"])
    report.add(f"cold start of {WORKERS} workers, N={N}", "x a fresh process", shares, Target(0.10))
    report.add("cold start, request to reply", "ms", milliseconds["cold start"])
    report.add("fresh process, start to end", "ms", milliseconds["fresh process"])
    return report


def cold_start_ms(server: Server, client: ModuleType) -> float:
    """Make an invocation for which a task runner has to be booted."""
    serving.wait_until(lambda: not server.task_runners() and not server.workers(), "the task runner is stopped")
    outcome = client.run_client(N)
    if not outcome.cold_start or outcome.status != "ok":
        raise KaasError(f"not a cold start that was served: {outcome}")
    return float(outcome.outer_ms)


def fresh_process_ms() -> float:
    """Run the kernel as a script."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, KERNEL, N], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    common.main(measure, __doc__)
