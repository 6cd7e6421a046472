"""Policies side by side as a picture: `python -m kaas.analysis.policies policies.csv` draws what is in that table.

`simulate.py policies` writes the table (kaas.simulation.policies) and has it drawn, as `policies.png` and `.pdf`.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kaas import cli
from kaas.analysis import drawing, figures, palette
from kaas.errors import ResultsError

_COLUMNS = ("policy", "measure", "simulated seeds", "mean", "low", "high", "differs")
_PER_ROW = 3


def read(path: Path) -> pd.DataFrame:
    """Read the table.

    Raises:
        ResultsError: it is none.
    """
    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except ValueError:
        frame = pd.DataFrame()
    if frame.empty or not set(_COLUMNS) <= set(frame.columns):
        raise ResultsError(f"{path} is no table of policies: ./simulate.py policies writes one")
    return frame


@drawing.own_settings
def side_by_side(frame: pd.DataFrame) -> Figure:
    """Draw each measure as a panel, and in it each policy's mean and interval, as a filled mark where it differs."""
    names, measures = frame["policy"].unique(), frame["measure"].unique()
    rows = -(-len(measures) // _PER_ROW)
    figure = drawing.new_figure(0.5 + rows * (0.7 + 0.2 * len(names)))
    panels = figure.subplots(rows, _PER_ROW, sharey=True, squeeze=False).ravel()
    for axes, measure in zip(panels, measures, strict=False):
        of = frame[frame["measure"] == measure].set_index("policy").reindex(names)
        axes.axvline(of["mean"].iloc[0], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        for place, (name, one) in enumerate(of.iterrows()):
            colour = palette.OVERALL if name == names[0] else palette.THIS_RUN
            axes.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            filled = colour if one["differs"] == "yes" else "white"
            axes.plot(one["mean"], place, marker="o", markersize=5, color=colour, markerfacecolor=filled)
        axes.set_title(measure, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(names)), [drawing.as_text(str(name)) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    drawing.plain(list(panels))
    seeds = int(frame["simulated seeds"].max())
    figure.suptitle(f"SIMULATED, not measured ({seeds} seeds)", color=palette.NOT_MEASURED, fontsize="large")
    return figure


def main() -> None:
    """Do what the command line says."""
    table = Path(sys.argv[1])
    print(f"Figure: {figures.save(side_by_side(read(table)), table.with_suffix(''))} and .pdf")  # noqa: T201


if __name__ == "__main__":
    cli.run(main)
