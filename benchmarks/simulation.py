#!/usr/bin/env python3
"""What does it cost to simulate a large cluster? Ten simulated minutes of ten clients for each GPU of four workers.

    .venv/bin/python benchmarks/simulation.py [GPUS ...]

Eight GPUs and their clients are on a host of their own. The clients come in sixty steps. Nothing of it is written.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kaas.ramp import Ramp
from kaas.row import Row
from kaas.simulation import calibration, ways
from kaas.simulation.experiment import simulate
from kaas.simulation.setting import Setting

CLIENTS_PER_GPU, SECONDS, STEPS = 10, 600.0, 60
_MIB = 2**20 if sys.platform == "darwin" else 2**10


def measure(gpus: int) -> str:
    """Simulate so many GPUs; give a line of the table."""
    clients, served = gpus * CLIENTS_PER_GPU, 0
    step = max(1, clients // STEPS)
    interval = SECONDS / -(-clients // step)

    def keep(row: Row) -> None:
        nonlocal served
        served += row.status == "ok"

    model = ways.HARNESS.model(calibration.load("published").model)
    setting = ways.HARNESS.setting(Setting(gpus=gpus, shape=Ramp(step, clients, step, interval), observed=False))
    begun = time.process_time()
    simulate(model, setting, 1, keep=keep)
    seconds = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    return f"| {gpus:,} | {clients:,} | {served:,} | {seconds:.1f} | {1e6 * seconds / served:.0f} | {memory:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpus", type=int, nargs="*", default=[10, 100, 1000], help="default: 10 100 1000")
    print("| GPUs | clients | requests served | CPU [s] | CPU for each [µs] | memory, at most so far [MiB] |")
    print("| --- | --- | --- | --- | --- | --- |")
    for gpus in parser.parse_args().gpus:
        print(measure(gpus), flush=True)


if __name__ == "__main__":
    main()
