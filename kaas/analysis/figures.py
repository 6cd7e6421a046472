"""The figures of a run: the paper's (clients, task runners, utilization, completion time), and power and energy.

Draws what kaas.analysis.runs gives, and never through pyplot: no display is needed, and no figure stays open. Colours
are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with impaired colour vision can tell apart.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kaas.analysis import energy, series
from kaas.analysis.runs import Run
from kaas.errors import ResultsError

HOW_TO_READ = (
    "Read it from top to bottom at one moment: so many clients were sending requests, so many task runners had been "
    "booted for them, so busy was each GPU, and so long took the requests that began then; one that was refused or "
    "failed is only a mark on the axis. On a laptop, 100 % of a GPU are all the cores that its workers could use."
)
HOW_TO_READ_POWER = (
    "Above, the power that each GPU drew at a moment; below, the energy that all of them had drawn by then, steeper "
    "where they drew more. A break above is a gap in the samples; what was drawn in it is counted below only where the "
    "GPU has a counter."
)
WIDTH_IN = 7.2
DPI = 200

_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _VERMILLION, _PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
# Black is left to the mean of all GPUs, grey takes its place; from the ninth GPU on the line is dashed instead.
_GPU_COLOURS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _VERMILLION, "#999999", _YELLOW)

# Each from so many joules on.
_ENERGY_UNITS = (("kWh", 1 / 3.6e6, 3.6e6), ("kJ", 1e-3, 1e4), ("J", 1.0, 0.0))
_MOST_POINTS = 2000

_Style = dict[str, Any]
# Some thousand dots as vectors make a PDF that pages slowly.
_WARM: _Style = {"marker": ".", "markersize": 2.5, "color": _BLUE, "markeredgewidth": 0, "rasterized": True}
_WAITED: _Style = {"marker": "^", "markersize": 4, "color": _GREEN, "markeredgewidth": 0, "clip_on": False}
_COLD: _Style = {
    "marker": "D",
    "markersize": 5,
    "color": _ORANGE,
    "markeredgecolor": _BLACK,
    "markeredgewidth": 0.6,
    "clip_on": False,
    "zorder": 3,
}
_REFUSED: _Style = {"marker": "|", "markersize": 7, "color": _VERMILLION, "clip_on": False, "zorder": 4}
_FAILED: _Style = {"marker": "x", "markersize": 6, "color": _VERMILLION, "clip_on": False, "zorder": 4}


def combined(run: Run) -> Figure:
    """Draw the four panels of one run, each from 0 up, over the seconds from its first request to its last reply."""
    figure = Figure(figsize=(WIDTH_IN, 8.4), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1.4, 1.6))
    clients, task_runners, utilization, completion = panels
    _draw_steps(clients, series.clients(run), run, "Number of clients", _BLUE)
    _draw_steps(task_runners, series.task_runners(run), run, "Number of\ntask runners", _GREEN)
    _draw_means(utilization, series.utilization, run, "Utilization [%]")
    utilization.set_ylim(0, 105)
    _draw_completion(completion, run)
    _finish(figure, panels, run)
    return figure


def power(run: Run) -> Figure:
    """Draw the power of each GPU and, below it, the energy of all of them so far, over the same seconds."""
    figure = Figure(figsize=(WIDTH_IN, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    watts, joules = panels
    _draw_means(watts, series.power, run, "Power [W]")
    _draw_energy(joules, run)
    _finish(figure, panels, run)
    return figure


def several(found: Sequence[Run], folder: Path) -> list[Path]:
    """Draw each run and save it in `folder`; give the .png files, in the order of the runs.

    The first is `autoscaling-combined`, the others `autoscaling-combined-2` and so on.

    Raises:
        ResultsError: a file cannot be written.
    """
    return [save(combined(run), folder / _name("autoscaling-combined", place)) for place, run in enumerate(found)]


def several_power(found: Sequence[Run], folder: Path) -> list[Path | None]:
    """Draw `power` of each run and save it as `several` does, as `autoscaling-power`; None for one that logged none.

    Raises:
        ResultsError: a file cannot be written.
    """
    return [
        save(power(run), folder / _name("autoscaling-power", place)) if energy.logged(run) else None
        for place, run in enumerate(found)
    ]


def save(figure: Figure, path: Path) -> Path:
    """Write `<path>.pdf` and `<path>.png`, and give the latter; an earlier one of that name is replaced.

    Raises:
        ResultsError: a file cannot be written.
    """
    pdf, png = (path.with_name(path.name + suffix) for suffix in (".pdf", ".png"))
    try:
        # Type 42 embeds the fonts as they are: publishers refuse matplotlib's default, Type 3.
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(pdf, dpi=DPI)
        figure.savefig(png, dpi=DPI)
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror or error}") from None
    return png


def _name(name: str, place: int) -> str:
    return f"{name}-{place + 1}" if place else name


def _finish(figure: Figure, panels: Sequence[Axes], run: Run) -> None:
    for panel in panels:
        panel.grid(color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlim(0, run.duration or 1.0)
    panels[-1].set_xlabel("Experiment time [s]")
    figure.align_ylabels(panels)


def _draw_steps(axes: Axes, steps: "pd.Series[int]", run: Run, label: str, colour: str) -> None:
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, max(1, steps.max() if len(steps) else 0) * 1.1)
    if steps.empty:
        _say(axes, "no server events in this run")
        return
    steps = steps[steps.index <= run.duration]  # that all task runners stop when the server does is no news
    until_end = [*steps.index, run.duration]
    axes.plot(until_end, [*steps, steps.iloc[-1]], drawstyle="steps-post", color=colour, linewidth=1.6)


def _draw_means(axes: Axes, means_of: Callable[[Run, float], pd.DataFrame], run: Run, label: str) -> None:
    # Wide enough to be read over any length of run, and never so wide as to blur what booting one GPU did.
    window_s = min(10.0, max(1.0, round(run.duration / 100)))
    means = means_of(run, window_s)
    means = means[(means.index >= 0) & (means.index <= run.duration)].dropna(axis="columns", how="all")
    axes.set_ylabel(f"{label}\n(mean of last {window_s:g} s)")
    axes.set_ylim(bottom=0)
    if means.empty:
        _say(axes, f"no {label.partition(' ')[0].lower()} known for this run")
        return
    means = _thinned(means)
    # A GPU that was never used has no line of its own, only its part in the mean; many would hide the others.
    used = means.columns[means.max() > 0].to_numpy()
    for gpu in map(int, used):
        dashes = "-" if gpu < len(_GPU_COLOURS) else "--"
        colour = _GPU_COLOURS[gpu % len(_GPU_COLOURS)]
        axes.plot(means.index, means[gpu], linestyle=dashes, color=colour, linewidth=0.9, label=f"GPU {gpu}")
    if len(means.columns) > 1:
        unused = len(means.columns) - len(used)
        mean = f"mean of all {len(means.columns)}" + (f", {unused} of them at 0" if unused else "")
        axes.plot(means.index, means.mean(axis="columns"), color=_BLACK, linewidth=1.6, label=mean)
    axes.set_ylim(0, float(means.max().max()) * 1.1 or 1.0)
    _legend(axes)


def _draw_energy(axes: Axes, run: Run) -> None:
    joules = energy.cumulative(run)
    total = float(joules.max()) if len(joules) else 0.0
    unit, factor = next((unit, factor) for unit, factor, least in _ENERGY_UNITS if total >= least)
    axes.set_ylabel(f"Energy of all\nGPUs [{unit}]")
    axes.set_ylim(0, total * factor * 1.1 or 1.0)
    if joules.empty:
        _say(axes, "no energy known for this run")
        return
    joules = _thinned(joules.to_frame())["joules"] * factor
    axes.plot(joules.index, joules, color=_BLACK, linewidth=1.6, label=f"by {energy.methods(run)}")
    _legend(axes)


def _thinned(values: pd.DataFrame) -> pd.DataFrame:
    """Leave out rows that no eye could tell apart, but none that breaks a line, nor the last one."""
    every = -(-len(values) // _MOST_POINTS)
    keep = values.isna().all(axis="columns").to_numpy(copy=True)
    keep[::every] = keep[-1] = True
    return values[keep]


def _draw_completion(axes: Axes, run: Run) -> None:
    requests = run.requests
    ok = requests["status"] == "ok"
    highest = float(requests["outer_time_ms"][ok].max()) if ok.any() else 0.0
    unit, factor = ("s", 1e-3) if highest >= 1e3 else ("ms", 1.0)  # noqa: PLR2004
    axes.set_ylabel(f"Task completion\ntime [{unit}]")
    axes.set_ylim(0, highest * factor * 1.05 or 1.0)
    # A request that was not served has no completion time: it is marked on the axis, however long it took.
    heights = (requests["outer_time_ms"] * factor).where(ok, 0.0)
    cold, refused = ok & requests["cold_start"], requests["status"] == "rejected"
    for label, chosen, style in (
        ("warm", series.warm(run), _WARM),
        ("waited for a boot", ok & requests["waited_for_boot"] & ~cold, _WAITED),
        ("cold start", cold, _COLD),
        ("refused", refused, _REFUSED),
        ("failed", ~ok & ~refused, _FAILED),
    ):
        if chosen.any():
            counted = f"{label} ({chosen.sum()})"
            axes.plot(requests["elapsed"][chosen], heights[chosen], linestyle="", label=counted, **style)
    if not ok.any():
        _say(axes, "no request was served in this run")
    _legend(axes)


def _legend(axes: Axes) -> None:
    legend = axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=5,
        fontsize=7,
        frameon=False,
        borderaxespad=0.1,
        handlelength=1.4,
        columnspacing=1.2,
    )
    for swatch in legend.get_lines():
        swatch.set_markersize(max(5.0, swatch.get_markersize()))
        swatch.set_linewidth(max(1.6, swatch.get_linewidth()))


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.4", style="italic")
