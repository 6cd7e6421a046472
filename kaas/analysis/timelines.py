"""The pictures of one run over its time, each a function that draws it as a figure of its own."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kaas.analysis import drawing, energy, lag, palette, panels, series
from kaas.analysis.runs import Run
from kaas.analysis.series import Numbers
from kaas.row import SENT_LATE_MS

HOW_TO_READ_ARRIVALS = (
    "At the top, how many requests arrived each second, how many of them the clients sent and how many were served. In "
    "the middle, the requests that had arrived and had no reply yet. At the bottom, how long each had waited for a "
    "client when it was sent. From where the lines at the top part, the load generator is behind: all its clients are "
    f"in requests. The orange line is the first moment when most requests were sent more than {SENT_LATE_MS:g} ms late"
    ". The completion times in all other pictures and tables count from the arrival, so nothing is left out."
)

# Of the panel with the bars of requests, and what its bars need to be told apart, in points.
_PANEL_WIDTH, _PANEL_HEIGHT, _LEAST_WIDTH = 420.0, 230.0, 0.72
# Each from so many joules on.
_ENERGY_UNITS = (("kWh", 1 / 3.6e6, 3.6e6), ("kJ", 1e-3, 1e4), ("J", 1.0, 0.0))


@drawing.own_settings
def requests(run: Run) -> Figure:
    """Draw each request as a bar in the row of its client, and the number of task runners above them."""
    figure = drawing.new_figure(5.2)
    task_runners, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4))
    panels.draw_steps(task_runners, series.task_runners(run), run, "Number of\ntask runners", palette.TASK_RUNNERS)
    frame = run.requests.assign(elapsed=run.requests["sent"], end=run.ends)
    rows = int(frame["copy"].max()) + 1
    ok = frame["status"] == "ok"
    cold = ok & frame["cold_start"]
    waited = ok & frame["waited_for_boot"] & ~cold
    warm = series.warm(run)
    least_s = run.duration * _LEAST_WIDTH / _PANEL_WIDTH
    if frame["outer_time_ms"][warm].median() / 1000 < least_s:
        _draw_requests(
            axes, _joined(frame[warm], least_s), rows, palette.WARM, f"warm ({warm.sum()}), joined to longer bars"
        )
    else:
        # A client sends its next request as soon as it has a reply, and one colour would be one bar.
        second = (frame.groupby("copy").cumcount() % 2).astype("bool")
        _draw_requests(axes, frame[warm & ~second], rows, palette.WARM, f"warm ({warm.sum()}), in two shades in turn")
        _draw_requests(axes, frame[warm & second], rows, palette.SECOND_SHADE, "_")
    _draw_requests(axes, frame[waited], rows, palette.WAITED, f"waited for a boot ({waited.sum()})")
    _draw_requests(axes, frame[cold], rows, palette.COLD, f"cold start ({cold.sum()})")
    if cold.any():
        axes.plot(frame["elapsed"][cold], frame["copy"][cold], linestyle="", **palette.COLD_MARK)
    refused = frame["status"] == "rejected"
    for label, chosen, style in (
        ("refused", refused, palette.REFUSED_MARK),
        ("failed", ~ok & ~refused, palette.FAILED_MARK),
    ):
        if chosen.any():
            counted = f"{label} ({chosen.sum()})"
            axes.plot(frame["elapsed"][chosen], frame["copy"][chosen], linestyle="", label=counted, **style)
    axes.set_ylabel("Client")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(-0.7, rows - 0.3)
    drawing.over_time(figure, [task_runners, axes], run.duration, ramp_end=run.ramp_end)
    axes.grid(visible=False)
    drawing.legend(axes)
    return figure


def _joined(frame: pd.DataFrame, least_s: float) -> pd.DataFrame:
    """Make one bar of a client's requests between which there is no gap that would be seen."""
    frame = frame[["copy", "elapsed", "end"]].sort_values(["copy", "elapsed"])
    is_near = frame["elapsed"] - frame.groupby("copy")["end"].shift() <= least_s
    return frame.groupby((~is_near).cumsum()).agg({"copy": "first", "elapsed": "first", "end": "max"})


def _draw_requests(axes: Axes, frame: pd.DataFrame, rows: int, colour: str, label: str) -> None:
    if frame.empty:
        return
    begins, ends = frame["elapsed"].to_numpy(), frame["end"].to_numpy()
    clients = frame["copy"].to_numpy(dtype="float64")
    lines = np.stack([begins, clients, ends, clients], axis=-1).reshape(-1, 2, 2)
    width = min(16.0, 0.8 * _PANEL_HEIGHT / rows)
    many = len(frame) > drawing.MOST_VECTORS
    bars = LineCollection(lines, colors=colour, linewidths=width, capstyle="butt", label=label, rasterized=many)  # type: ignore[arg-type]
    axes.add_collection(bars, autolim=False)


@drawing.own_settings
def utilization(run: Run) -> Figure:
    """Draw the utilization of each GPU as a row of colours, and below it how many GPUs' work all of them did."""
    figure = drawing.new_figure(4.4)
    by_gpu, summed = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1))
    window_s = drawing.window_s(run.duration)
    means = series.utilization(run, window_s)
    during = means[(means.index >= 0) & (means.index <= run.duration)]
    by_gpu.set_ylabel("GPU")
    summed.set_ylabel("Number of GPUs")
    if during.empty:
        drawing.say(by_gpu, "no utilization known for this run")
        drawing.say(summed, "no utilization known for this run")
        summed.set_ylim(0, 1)
        drawing.over_time(figure, [by_gpu, summed], run.duration, ramp_end=run.ramp_end)
        return figure
    grid = np.linspace(0.0, run.duration, 600)
    rows = range(int(means.columns.max()) + 1)
    cells = means.reindex(grid, method="ffill").reindex(columns=rows).to_numpy().T
    half = grid[1] / 2 if len(grid) > 1 else 0.5
    image = by_gpu.imshow(
        cells,
        cmap="Blues",
        vmin=0,
        vmax=100,
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(-half, run.duration + half, -0.5, len(rows) - 0.5),
    )
    by_gpu.set_facecolor("0.8")  # where nothing is known
    by_gpu.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.colorbar(image, ax=by_gpu, label=f"Utilization [%]\n(mean of last {window_s:g} s)", pad=0.01)
    runners = series.task_runners(run)
    _draw_booted(summed, runners, run, "task runners booted")
    busy = drawing.thinned((during.sum(axis="columns", min_count=1) / 100).to_frame("busy"))["busy"]
    mean = series.mean_utilization(run)
    of_all = f" of all {len(during.columns)}" if len(during.columns) > 1 else ""
    over = f"{mean:.0f} %{of_all}" if run.utilization_is_covered else "not given, as too little was sampled"
    label = f"utilization, summed (mean over the run: {over})"
    summed.plot(busy.index, busy, color=palette.OVERALL, linewidth=1.4, label=label)
    drawing.whole_numbers(summed, max(float(busy.max()), float(runners.max()) if len(runners) else 0.0))
    drawing.legend(summed)
    drawing.over_time(figure, [by_gpu, summed], run.duration, ramp_end=run.ramp_end)
    by_gpu.grid(visible=False)
    return figure


@drawing.own_settings
def throughput(run: Run) -> Figure:
    """Draw the requests served each second, and those for each client."""
    figure = drawing.new_figure(4.2)
    total, per_client = figure.subplots(2, 1, sharex=True)
    bins = series.edges(run.duration)
    frame = series.throughput(run, bins)
    width = f"mean of {bins[1] - bins[0]:g} s"
    for axes, column, colour, label in (
        (total, "per_s", palette.SERVED, f"Served requests\n[1/s] ({width})"),
        (per_client, "per_client", palette.SERVED, f"Per client\n[1/s] ({width})"),
    ):
        axes.stairs(frame[column].to_numpy(), bins, baseline=None, color=colour, linewidth=1.6)
        axes.set_ylabel(label)
        drawing.from_zero(axes, float(frame[column].max()))
        if not frame["served"].any():
            drawing.say(axes, "no request was served in this run")
    drawing.over_time(figure, [total, per_client], run.duration, ramp_end=run.ramp_end)
    return figure


@drawing.own_settings
def arrivals(run: Run) -> Figure:
    """Draw what arrived, was sent and was served, what was under way, and how long each request waited for a client."""
    figure = drawing.new_figure(6.0)
    rates, under_way, lags = figure.subplots(3, 1, sharex=True)
    bins = series.edges(run.duration)
    frame = lag.over_time(run, bins)
    for name, colour, dashes in (
        ("arrived", palette.CLIENTS, "-"),
        ("sent", palette.LAG, "--"),
        ("served", palette.TASK_RUNNERS, ":"),
    ):
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.6, "label": name}
        rates.stairs(frame[name].to_numpy(), bins, baseline=None, **style)
    rates.set_ylabel(f"Requests [1/s]\n(mean of {bins[1] - bins[0]:g} s)")
    drawing.from_zero(rates, float(frame[["arrived", "sent", "served"]].max().max()))
    steps = drawing.thinned(series.under_way(run).to_frame("under_way"))["under_way"]
    under_way.set_ylabel("Requests\nunder way")
    drawing.whole_numbers(under_way, float(steps.max()))
    drawing.steps(under_way, steps, run.duration, color=palette.CLIENTS, linewidth=1.2)
    unit, factor = drawing.time_unit(float(run.requests["lag_ms"].max()))
    lags.plot(run.requests["elapsed"], run.requests["lag_ms"] * factor, linestyle="", **palette.WARM_MARK)
    lags.set_ylabel(f"Lag [{unit}]")
    drawing.from_zero(lags, float(run.requests["lag_ms"].max()) * factor)
    if (behind := lag.fell_behind(run)) is not None:
        label = f"fell behind at {behind[0]:g} s, with {behind[1]:.3g} arrivals/s"
        lags.axvline(behind[0], color=palette.LOST, linewidth=1.0, label=label)
        drawing.legend(lags)
    drawing.legend(rates)
    drawing.over_time(figure, [rates, under_way, lags], run.duration, ramp_end=run.ramp_end)
    return figure


@drawing.own_settings
def refusals(run: Run) -> Figure:
    """Draw the requests at the server against its workers, and below how many were refused, by and by and so far."""
    figure = drawing.new_figure(5.0)
    load, refused, so_far = figure.subplots(3, 1, sharex=True)
    bins = series.edges(run.duration)
    width = bins[1] - bins[0]
    in_flight = series.peaks_of_steps(series.in_flight(run), bins)
    label = f"in flight, as the clients see it (highest in {width:g} s)"
    load.stairs(in_flight, bins, baseline=None, color=palette.CLIENTS, linewidth=1.6, label=label)
    workers = series.workers(run)
    _draw_booted(load, workers, run, "booted workers")
    load.set_ylabel("Requests,\nworkers")
    drawing.whole_numbers(load, max(in_flight.max(), workers.max() if len(workers) else 0))
    drawing.legend(load)
    times = run.requests["elapsed"][run.requests["status"] == "rejected"]
    numbers = series.counts(times, bins)
    refused.set_ylabel(f"Refused\nin {width:g} s")
    so_far.set_ylabel("Refused\nso far")
    drawing.whole_numbers(refused, numbers.max())
    drawing.whole_numbers(so_far, len(times))
    if times.empty:
        drawing.say(refused, "no request was refused in this run")
        drawing.say(so_far, "no request was refused in this run")
    else:
        refused.stairs(numbers, bins, fill=True, color=palette.REFUSED)
        total = pd.Series(np.arange(1, len(times) + 1), index=times.to_numpy())
        total = pd.concat([pd.Series([0], index=[0.0]), total]).groupby(level=0).last()
        total = drawing.thinned(total.to_frame("total"))["total"]
        drawing.steps(so_far, total, run.duration, color=palette.REFUSED, linewidth=1.6)
    drawing.over_time(figure, [load, refused, so_far], run.duration, ramp_end=run.ramp_end)
    return figure


@drawing.own_settings
def power(run: Run) -> Figure:
    """Draw the power of each GPU, the energy of all of them so far, and their energy for each served request."""
    figure = drawing.new_figure(6.4)
    watts, joules, each = figure.subplots(3, 1, sharex=True, height_ratios=(1.4, 1, 1))
    panels.draw_means(watts, series.power, run, "Power [W]")
    known = energy.energy(run)["joules"].notna()
    counted = "all" if known.all() or not known.any() else f"{known.sum()} of {len(known)}"
    _draw_energy(joules, run, counted)
    bins = series.edges(run.duration, most=30)
    by_request = series.energy_per_request(run, bins)
    highest = pd.Series(by_request).max()
    each.set_ylabel(f"Energy per served\nrequest [J]\n(mean of {bins[1] - bins[0]:g} s)")
    drawing.from_zero(each, highest)
    if not np.isnan(highest):
        of = "" if counted == "all" else f" ({counted} GPUs)"
        whole = _joules(energy.per_request(run)) if run.energy_is_covered else "not given, as too little was sampled"
        label = f"in the whole run: {whole}{of}"
        each.stairs(by_request, bins, baseline=None, color=palette.ENERGY, linewidth=1.6, label=label)
        drawing.legend(each)
    else:
        drawing.say(each, "no energy per request known for this run")
    drawing.over_time(figure, [watts, joules, each], run.duration, ramp_end=run.ramp_end)
    return figure


def _joules(value: float) -> str:
    return f"{value:.3g} J" if value < 100 else f"{value:,.0f} J"  # noqa: PLR2004


def _draw_energy(axes: Axes, run: Run, counted: str) -> None:
    joules = energy.cumulative(run)
    total = float(joules.max()) if len(joules) else 0.0
    unit, factor = next((unit, factor) for unit, factor, least in _ENERGY_UNITS if total >= least)
    axes.set_ylabel(f"Energy of {counted}\nGPUs [{unit}]")
    drawing.from_zero(axes, total * factor)
    if joules.empty:
        drawing.say(axes, "no energy known for this run")
        return
    joules = drawing.thinned(joules.to_frame())["joules"] * factor
    axes.plot(joules.index, joules, color=palette.OVERALL, linewidth=1.6, label=f"by {energy.methods(run)}")
    drawing.legend(axes)


def _draw_booted(axes: Axes, booted: Numbers, run: Run, label: str) -> None:
    """Draw how much had been booted beside what was at work; nothing if that is not known."""
    if len(booted):
        style = {"color": palette.TASK_RUNNERS, "linewidth": 1.3, "linestyle": "--"}
        drawing.steps(axes, booted, run.duration, label=label, **style)
