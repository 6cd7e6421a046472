"""The pictures of what one run's requests and boots are made of: each function draws one as a figure of its own."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from kaas.analysis import breakdown, drawing, palette, series
from kaas.analysis.runs import Run

_FAR_APART = 20.0
"""Completion times that spread by more than this factor are shown on a logarithmic axis."""
_MOST_BARS = 64
_MOST_LINEAR = 50
"""Requests in a bin from which on a bar of a single one would not be seen on a linear axis: then all axes are log."""


@drawing.own_settings
def completion_times(run: Run) -> Figure:
    """Draw how completion times are distributed: a histogram of each kind of request, and the ECDF of all kinds."""
    frame = run.requests
    ok = frame["status"] == "ok"
    cold = ok & frame["cold_start"]
    kinds = (
        ("warm", series.warm(run), palette.WARM, "-"),
        ("waited for a boot", ok & frame["waited_for_boot"] & ~cold, palette.WAITED, "-."),
        ("cold start", cold, palette.COLD, "--"),
    )
    shown = [kind for kind in kinds if kind[1].any()] or [kinds[0]]
    figure = drawing.new_figure(2.2 + 1.2 * len(shown))
    *histograms, ecdf = figure.subplots(len(shown) + 1, 1, sharex=True, height_ratios=[1.0] * len(shown) + [1.6])
    drawing.plain([*histograms, ecdf])
    unit, factor = drawing.time_unit(float(frame["outer_time_ms"][ok].max()) if ok.any() else 0.0)
    times = frame["outer_time_ms"] * factor
    bins, far = _bins(times[ok])
    counts = [np.histogram(times[kind[1]], bins)[0] for kind in shown]
    highest = float(max(numbers.max() for numbers in counts))
    for histogram, numbers, (label, chosen, colour, dashes) in zip(histograms, counts, shown, strict=True):
        values = np.sort(times[chosen].to_numpy())
        bottom = _count_axis(histogram, float(numbers.max()), is_log=highest > _MOST_LINEAR)
        if not len(values):
            drawing.say(histogram, "no request was served in this run")
            continue
        counted = f"{label} ({len(values)}), median {np.median(values):.3g} {unit}"
        some = numbers > 0
        sides = (bins[:-1][some], bins[1:][some], bottom, numbers[some])
        drawing.bars(histogram, sides, facecolor=colour, linewidth=0, label=counted)
        drawing.legend(histogram)
        keep = np.unique(np.linspace(0, len(values) - 1, drawing.MOST_POINTS).round().astype("int64"))
        steps = np.append(values[0], values[keep]), np.append(0.0, (keep + 1) / len(values) * 100)
        ecdf.plot(*steps, drawstyle="steps-post", color=colour, linestyle=dashes, linewidth=1.3, label=label)
    ecdf.set_ylabel("Took no\nlonger [%]")
    ecdf.set_ylim(0, 102)
    if far:
        drawing.logarithmic(ecdf, "x", float(bins[0]), float(bins[-1]))
    ecdf.set_xlabel(f"Task completion time [{unit}]" + (", log" if far else ""))
    drawing.legend(ecdf)
    figure.align_ylabels([*histograms, ecdf])
    return figure


def _count_axis(axes: Axes, highest: float, *, is_log: bool) -> float:
    """Let the y axis count requests, such that a single one is seen; give where bars begin."""
    if not is_log:
        axes.set_ylabel("Requests")
        drawing.whole_numbers(axes, highest)
        return 0.0
    bottom = 0.5
    axes.set_ylabel("Requests,\nlog")
    drawing.logarithmic(axes, "y", bottom, highest)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))  # the panel is low: powers of ten only
    axes.set_ylim(bottom, highest * 1.5)
    return bottom


def _bins(times: "pd.Series[float]") -> tuple[series.Floats, bool]:
    """Divide the range of the times, evenly or, if it is wide, by equal factors; say if it is wide."""
    low, high = (float(times.min()), float(times.max())) if len(times) else (0.0, 1.0)
    far = high > _FAR_APART * low > 0
    if low == high:
        low, high = low * 0.9, high * 1.1 or 1.0
    bins = np.geomspace(low, high, 61) if far else np.linspace(low, high, 61)
    bins[0], bins[-1] = low, high  # rounding must not leave out the fastest and the slowest
    return bins, far


@drawing.own_settings
def decomposition(run: Run) -> Figure:
    """Draw the parts of the mean completion time, stacked, over the number of clients, and its median as a line."""
    figure = drawing.new_figure(3.6)
    axes = figure.subplots()
    clients = run.requests["concurrency"]
    width = max(1, int(series.round_up(max(1, int(clients.max() - clients.min() + 1)) / 60)))
    means = breakdown.completion(run, width)
    known = breakdown.knows_queue(run)
    # The original's kernel measured from before its upload until after its download, and waited for others meanwhile.
    kernel = "kernel" if known else "inner time (kernel, its transfers, waiting for others)"
    axes.set_xlabel("Number of clients" + (f", in groups of {width}" if width > 1 else ""))
    if means.empty:
        axes.set_ylabel("Completion time [ms]")
        axes.set_ylim(0, 1)
        drawing.say(axes, "no request was served in this run")
        drawing.plain([axes])
        return figure
    tops = means.drop(columns=["median", "requests"]).fillna(0.0).cumsum(axis="columns")
    unit, factor = drawing.time_unit(float(tops["rest"].max()))
    left = means.index.to_numpy(dtype="float64") - 0.5
    bottom = np.zeros(len(means))
    rest = f"rest ({'transfer, waiting for a core' if known else 'connection, waiting for a worker'})"
    for part, label, colour, hatch in (
        *([("lag", "waiting for a client", palette.LAG, "")] if run.is_open_loop else []),
        ("setup", "setup", palette.SETUP, ""),
        ("queue", "queue (waiting for a boot, too)", palette.QUEUE, "xxxx"),
        ("kernel", kernel, palette.KERNEL, ""),
        ("rest", rest, palette.REST, "////"),
    ):
        top = tops[part].to_numpy() * factor
        if means[part].notna().any():
            style = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch, "label": label}
            drawing.bars(axes, (left, left + width, bottom, top), **style)
        bottom = top
    middle = left + width / 2
    median = means["median"] * factor
    axes.plot(
        middle, median, color=palette.OVERALL, marker="o", markersize=2.5, linewidth=0.8, label="median (not mean)"
    )
    axes.set_ylabel(f"Completion time [{unit}]\n(columns: mean, line: median)")
    drawing.from_zero(axes, max(float(tops["rest"].max()) * factor, float(median.max())))
    axes.set_xlim(left[0], left[-1] + width)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawing.plain([axes])
    drawing.legend(axes)
    return figure


@drawing.own_settings
def cold_starts(run: Run) -> Figure:
    """Draw the phases of each boot; where the server logged none, the completion times of the cold starts."""
    boots = breakdown.boots(run)
    return _draw_boots(boots) if len(boots) else _draw_cold_starts(breakdown.cold_starts(run))


def _draw_boots(boots: pd.DataFrame) -> Figure:
    shown = boots.head(_MOST_BARS)
    figure, axes = _rows([f"GPU {boot.gpu} (at {boot.elapsed:.0f} s)" for boot in shown.itertuples()])
    phases = shown.drop(columns=["gpu", "elapsed", "worker"])
    ends = phases.cumsum(axis="columns")
    unit, factor = drawing.time_unit(float(ends["rest"].max()) * 1000)
    rows, left = np.arange(len(shown)), np.zeros(len(shown))
    # The phases are whatever the server names: the last shade serves all from the sixth on.
    looks = list(zip(palette.PHASES, ("", "////", "", "....", ""), strict=True))
    for place, phase in enumerate(phases.columns):
        is_rest = phase == "rest"
        colour, hatch = (palette.REST, "xxxx") if is_rest else looks[min(place, len(looks) - 1)]
        right = ends[phase].to_numpy() * 1000 * factor
        label = "rest" if is_rest and len(phases.columns) > 1 else "until ready" if is_rest else drawing.as_text(phase)
        style = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch, "label": label}
        drawing.bars(axes, (left, right, rows - 0.35, rows + 0.35), **style)
        left = right
    more = "" if len(shown) == len(boots) else f" (the first {len(shown)} of {len(boots)} boots)"
    axes.set_xlabel(f"From the boot until its slowest worker was ready [{unit}]{more}")
    axes.set_xlim(0, float(left.max()) * 1.05 or 1.0)
    drawing.legend(axes)
    return figure


def _draw_cold_starts(cold: pd.DataFrame) -> Figure:
    shown = cold.head(_MOST_BARS)
    gpus = ("GPU " + shown["gpu"].astype("string")).fillna("cold start")
    begins = shown["booted"].fillna(shown["elapsed"])
    names = [f"{gpu} (at {begin:.0f} s)" for gpu, begin in zip(gpus, begins, strict=True)]
    figure, axes = _rows(names)
    if shown.empty:
        axes.set_xlabel("Task completion time [ms]")
        axes.set_yticks([])
        drawing.say(axes, "no cold start was served in this run")
        return figure
    unit, factor = drawing.time_unit(float(shown["cold_ms"].max()))
    rows = np.arange(len(shown))
    right = shown["cold_ms"].to_numpy() * factor
    drawing.bars(
        axes, (0, right, rows - 0.35, rows + 0.35), facecolor=palette.COLD, label="cold start (phases not logged)"
    )
    label = "median of warm requests with as many clients"
    axes.plot(
        shown["warm_ms"] * factor, rows, linestyle="", marker="|", markersize=9, color=palette.OVERALL, label=label
    )
    more = "" if len(shown) == len(cold) else f" (the first {len(shown)} of {len(cold)} cold starts)"
    axes.set_xlabel(f"Task completion time [{unit}]{more}")
    axes.set_xlim(0, float(np.nanmax([right.max(), shown["warm_ms"].max() * factor])) * 1.05)
    drawing.legend(axes)
    return figure


def _rows(names: list[str]) -> tuple[Figure, Axes]:
    figure = drawing.new_figure(min(9.0, 1.2 + 0.22 * max(3, len(names))))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 30 else 6)  # noqa: PLR2004
    axes.set_ylim(max(1, len(names)) - 0.4, -0.6)  # the first on top
    drawing.plain([axes])
    axes.grid(visible=False, axis="y")
    return figure, axes


@drawing.own_settings
def requests_per_task_runner(run: Run) -> Figure:
    """Draw the requests that each GPU served, divided into those of its workers."""
    figure = drawing.new_figure(3.2)
    axes = figure.subplots()
    axes.set_xlabel("GPU")
    axes.set_ylabel("Served requests")
    drawing.plain([axes])
    axes.grid(visible=False, axis="x")
    served = breakdown.by_worker(run)
    if served.empty:
        drawing.say(axes, "which worker served a request is not known for this run")
        axes.set_ylim(0, 1)
        return figure
    gpus = served.index.get_level_values("gpu").to_numpy(dtype="float64")
    tops = served.groupby(level="gpu").cumsum().to_numpy(dtype="float64")
    second = (served.groupby(level="gpu").cumcount() % 2).to_numpy(dtype="bool")
    for chosen, colour, label in (
        (~second, palette.WARM, "its workers, from the lowest number up"),
        (second, palette.SECOND_SHADE, "_"),
    ):
        if chosen.any():
            sides = (gpus[chosen] - 0.4, gpus[chosen] + 0.4, (tops - served.to_numpy())[chosen], tops[chosen])
            drawing.bars(axes, sides, facecolor=colour, edgecolor="white", linewidth=0.4, label=label)
    by_gpu = served.groupby(level="gpu").sum()
    if len(by_gpu) > 1:
        axes.axhline(
            by_gpu.mean(), color=palette.OVERALL, linewidth=1.0, linestyle="--", label=f"mean ({by_gpu.mean():,.0f})"
        )
    axes.set_xlim(gpus.min() - 0.6, gpus.max() + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawing.whole_numbers(axes, by_gpu.max())
    drawing.legend(axes)
    return figure
