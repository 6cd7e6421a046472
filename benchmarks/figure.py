"""How the benchmarks' figures look: log-log panels, in colours that people with impaired colour vision tell apart."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kaas import machine
from kaas.errors import KaasError

# Okabe and Ito, https://jfly.uni-koeln.de/color/
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000"


def panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of some panels, never through pyplot: no display is needed."""
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def log_log(axes: Axes, x: str, y: str, ticks: Sequence[int]) -> None:
    """Have both axes be logarithmic and labelled, once there are lines; `ticks` are where x was measured.

    The upright axis shows whole decades, so that what hardly changes looks as flat as it is.
    """
    low, high = axes.dataLim.intervaly
    axes.set_xscale("log", base=2 if len(ticks) > 1 and ticks[1] % ticks[0] == 0 else 10)
    axes.set_yscale("log")
    axes.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45, ha="right")
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3, linewidth=0.5)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, with the machine that it was measured on below it.

    Raises:
        KaasError: it cannot be written.
    """
    figure.supxlabel(machine_line(), fontsize=6)
    try:
        figure.savefig(path, dpi=200)
    except (OSError, ValueError) as error:
        raise KaasError(f"{path}: {error}") from None


def machine_line() -> str:
    """Name the machine in one line."""
    facts = machine.describe()
    gpus = "" if facts["GPUs"] == "none found" else f"; {facts['GPUs']}"
    return f"{facts['CPU']}{gpus}; Python {facts['Python'].split()[0]}"
