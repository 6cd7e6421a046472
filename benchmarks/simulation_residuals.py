#!/usr/bin/env python3
"""What does a simulation not explain of the published run? Draws completion times and boots, simulated less published.

.venv/bin/python benchmarks/simulation_residuals.py PUBLISHED-RESULTS PICTURE.png
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "simulation")]

import agreement  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from kaas.simulation import observed, ways  # noqa: E402

SEEDS = range(1, 21)


def draw(published: Path) -> Figure:
    """Draw the residuals of many seeds, over those of the published repeats themselves."""
    found = agreement.run(agreement.published(), SEEDS)
    simulated, each = agreement.completion(found), [run.completion() for run in observed.read(published)]
    means = {one: np.mean([run[one] for run in each]) for one in simulated}
    figure = Figure(figsize=(7.2, 5.0), dpi=150, layout="constrained")
    above, below = figure.subplots(2)
    figure.suptitle("SIMULATED over published", color="#D55E00")
    for run in each:
        above.plot(list(run), [100 * (run[one] / means[one] - 1) for one in run], ".", color="0.6")
    above.plot(list(simulated), [100 * (simulated[one] / means[one] - 1) for one in simulated], color="#0072B2")
    above.set(xlabel="Clients (step)", ylabel="Completion time off [%]\n(grey: each repeat)")
    boots = ways.summary(found).boots[1:]
    off = boots[:6] - np.array(agreement.BOOTED[1:])[:, None]
    below.errorbar(range(1, 7), off.mean(axis=1), off.std(axis=1, ddof=1), fmt="o", color="#0072B2", capsize=3)
    below.set(xlabel="GPU", ylabel="Booted, off [s]")
    for axes in (above, below):
        axes.axhline(0.0, color="black", linewidth=0.8)
    return figure


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(arguments.published).savefig(arguments.picture)


if __name__ == "__main__":
    main()
