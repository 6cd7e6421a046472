"""The pictures beside the tables of kaas.analysis.mechanism, each a function that draws it as a figure of its own."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kaas.analysis import booted, drawing, mechanism, palette, series
from kaas.analysis.runs import Run
from kaas.analysis.setting import setting_of

HOW_TO_READ_PLACES = (
    "The blue line is how many places the requests of this run needed (the highest number in each second), from when "
    "they came to the server until their place was given back. The green line is the workers of all booted GPUs; a "
    "dashed line marks each boot. The rule of placement boots a GPU when the blue line goes beyond the green one. The"
    " orange line is the places of requests that never had a reply. These places are taken for ever, so the last boot "
    "comes while fewer requests are in flight."
)
HOW_TO_READ_HOST = (
    "At the top, the median time that it took to set up an input while so many clients did that at once; each dot is "
    "a repeat. On a machine that finishes only so many setups in a second, the dashed line is the lower bound. In the"
    " middle, where the clients of a step were on average: setting up, or with a request at the server. At the "
    "bottom, the requests served in that step."
)
HOW_TO_READ_BY_GPUS = (
    "Each row holds the warm requests that came to the server while so many task runners were booted, by the time "
    "that they took there (the completion time less the client's setup). The grey line is their median. Where a row "
    "has several peaks, some requests waited for more kernels than others, and the median says little."
)
_BINS = 80
_MOST_ROWS = 16


@drawing.own_settings
def places(run: Run) -> Figure:
    """Draw the places that are taken by the replay, those that are lost, and those that there are."""
    figure = drawing.new_figure(3.4)
    axes = figure.subplots()
    replayed = setting_of(run).replay
    lost, taken = replayed.unanswered["arrival"].to_numpy(), replayed.demand
    bins = np.arange(0.0, run.duration + 1.0)
    axes.stairs(series.peaks_of_steps(taken, bins), bins, baseline=None, color=palette.CLIENTS, label="places needed")
    changes = booted.changes(run).groupby("elapsed")["workers"].sum().cumsum()
    workers = pd.concat([pd.Series([0], index=[0.0]), changes])
    drawing.steps(
        axes, workers, run.duration, color=palette.TASK_RUNNERS, linewidth=1.6, label="workers of the booted GPUs"
    )
    if len(lost):
        steps = pd.Series(np.arange(len(lost) + 1), index=np.append(0.0, np.sort(lost)))
        drawing.steps(axes, steps, run.duration, color=palette.LOST, linewidth=1.6, label="places lost")
    for boot in booted.first(run):
        axes.axvline(boot, color="0.6", linewidth=0.7, linestyle="--", zorder=0)
    axes.set_ylabel("Number of places")
    drawing.whole_numbers(axes, max(int(workers.max()), int(taken.max())))
    drawing.over_time(figure, [axes], run.duration)
    drawing.legend(axes)
    return figure


@drawing.own_settings
def host(found: Sequence[Run]) -> Figure:
    """Draw what a setup takes by how many are at it, and where the clients are and what they get by their number."""
    figure = drawing.new_figure(6.6)
    setup, where, served = figure.subplots(3, 1, height_ratios=(1.2, 1, 1))
    where.sharex(served)
    together = mechanism.setups(found)
    for run in found:
        alone = mechanism.setups([run])
        setup.plot(alone.index, alone["setup [s]"], linestyle="", marker="o", markersize=2.5, color=palette.SETUP)
    rate = float(together["setups [1/s]"].iloc[len(together) // 2 :].median()) if len(together) else np.nan
    most = int(together.index.max()) if len(together) else 1
    setup.plot(
        [0, most],
        [0, most / rate],
        color=palette.OVERALL,
        linestyle="--",
        linewidth=1,
        label=f"{rate:.2g} setups a second",
    )
    setup.set_xlabel("Clients in setup at once")
    setup.set_ylabel("Setup [s]")
    drawing.from_zero(setup, float(together["setup [s]"].max()) if len(together) else 0.0)
    setup.set_xlim(0, most + 1)
    drawing.legend(setup)
    steps = mechanism.where_clients_are(found, group=1)
    clients = steps.index.to_numpy(dtype="float64")
    where.stackplot(
        clients,
        steps["at the server"],
        steps["in setup"],
        labels=("request at the server", "in setup"),
        colors=(palette.KERNEL, palette.SETUP),
    )
    where.set_ylabel("Clients\n(mean of a step)")
    where.tick_params(labelbottom=False)
    drawing.legend(where)
    served.plot(clients, steps["served [1/s]"], color=palette.SERVED, marker="o", markersize=2.5, linewidth=1)
    served.set_ylabel("Served requests\n[1/s]")
    served.set_xlabel("Number of clients")
    served.set_xlim(0, clients.max(initial=1.0))
    drawing.from_zero(served, float(steps["served [1/s]"].max()))
    drawing.plain([setup, where, served])
    figure.align_ylabels([setup, where, served])
    return figure


@drawing.own_settings
def by_gpus(run: Run) -> Figure:
    """Draw the distribution of the warm requests' time at the server, a row for each number of booted task runners."""
    warm = run.requests[series.warm(run)]
    setup = warm["setup_time"].fillna(0.0)
    times = warm["outer_time_ms"] - warm["lag_ms"] - setup
    runners = series.at(series.task_runners(run), (warm["sent"] + setup / 1000).to_numpy())
    numbers = np.unique(runners[runners > 0]).astype("int64")[:_MOST_ROWS]
    figure = drawing.new_figure(1.0 + 0.62 * max(2, len(numbers)))
    rows = np.atleast_1d(figure.subplots(max(1, len(numbers)), 1, sharex=True))
    unit, factor = drawing.time_unit(float(times.max()) if len(times) else 0.0)
    # A few stragglers would leave no room for the others.
    bins = np.linspace(0, float(times.quantile(0.999)) * factor * 1.05 if len(times) else 1.0, _BINS + 1)
    for axes, number in zip(rows, numbers, strict=False):
        values = times[runners == number] * factor
        axes.hist(values, bins, color=palette.WARM, histtype="stepfilled")
        axes.axvline(values.median(), color="0.5", linewidth=1.2)
        axes.set_yticks([])
        axes.set_ylabel(f"{number}", rotation=0, ha="right", va="center")
    if not len(numbers):
        drawing.say(rows[0], "no warm request was served by a task runner that was logged")
    drawing.plain(list(rows))
    for axes in rows:
        axes.spines["left"].set_visible(False)
    figure.supylabel("Number of task runners", fontsize=10)
    rows[-1].set_xlim(0, bins[-1])
    rows[-1].set_xlabel(f"Time at the server [{unit}]")
    return figure
