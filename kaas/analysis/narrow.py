"""Are the repeats of a results folder enough? `python -m kaas.analysis.narrow FOLDER "throughput 5%"` says so.

Exit code 0 if the interval of each figure named is narrow enough, and 3 if more repeats are wanted.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from kaas import cli
from kaas.analysis import runs, tables
from kaas.analysis.validity.repeats import alike
from kaas.expectations import FIGURES, Width, read_widths

MORE_ARE_WANTED = 3


def said(pooled: pd.DataFrame, widths: Iterable[Width]) -> list[tuple[bool, str]]:
    """Say of each figure how wide the 95 % interval of its mean is (see `tables.pooled`), and if that will do."""
    found = []
    for width in widths:
        number = pooled.loc[FIGURES[width.name].column]
        half = float((number["ci high"] - number["ci low"]) / 2 / abs(number["mean"])) if number["mean"] else math.nan
        is_what = "not known" if math.isnan(half) else f"+-{100 * half:.3g} % of its mean"
        after = f"after {number['repeats']:.0f} repeats the 95 % interval of {width.name} is {is_what}"
        found.append((half <= width.part, f"{after} (wanted: {100 * width.part:.3g} %)"))
    return found


def main() -> int:
    """Do what the command line says."""
    pooled = tables.pooled(alike(runs.find_runs(Path(sys.argv[1]))).pooled)
    found = said(pooled, read_widths(sys.argv[2]))
    for _, line in found:
        print(f"REPEAT_UNTIL: {line}")  # noqa: T201
    return 0 if all(is_enough for is_enough, _ in found) else MORE_ARE_WANTED


if __name__ == "__main__":
    cli.run(main, cli.at_once)
