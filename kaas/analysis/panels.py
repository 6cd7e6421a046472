"""The paper's four panels (clients, task runners, utilization, completion time): of a run, of repeats, of two sets."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kaas.analysis import drawing, palette, series
from kaas.analysis.palette import Style
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats

_GRID_POINTS = 500
_FAR_APART = 10.0
"""Completion times of which the highest is more than so many times the median share no linear axis."""


class Set(NamedTuple):
    """Repeats that are drawn as their median and their band, and how."""

    found: Sequence[Run]
    label: str
    style: Style
    scale: float = 1.0
    """From elapsed seconds to what the x axis shows."""

    @property
    def grid(self) -> Floats:
        """Elapsed seconds at which the repeats are compared."""
        return np.linspace(0.0, duration(self.found), _GRID_POINTS)

    @property
    def window_s(self) -> float:
        """The window of its rolling means and medians."""
        return drawing.window_s(duration(self.found))


def duration(found: Sequence[Run]) -> float:
    """Give the seconds of the longest repeat."""
    return max(run.duration for run in found)


def draw_run(panels: Sequence[Axes], run: Run) -> None:
    """Draw one run: steps, the rolling mean of each GPU and of all, and every request as a dot."""
    clients, task_runners, utilization, completion = panels
    draw_steps(clients, series.demand(run), run, demand_label([run]), palette.CLIENTS)
    if not run.is_open_loop:
        draw_alive(clients, series.alive(run), series.clients(run), run.duration)
    draw_steps(task_runners, series.task_runners(run), run, "Number of\ntask runners", palette.TASK_RUNNERS)
    draw_means(utilization, series.utilization, run, "Utilization [%]")
    utilization.set_ylim(0, 105)
    _draw_completion(completion, run)


def demand_label(found: Sequence[Run]) -> str:
    """Name what `series.demand` gives of runs."""
    kinds = {run.is_open_loop: "Requests\nunder way" if run.is_open_loop else "Number of clients" for run in found}
    return kinds.popitem()[1] if len(kinds) == 1 else "Clients, or\nrequests under way"


def draw_steps(axes: Axes, values: "pd.Series[int]", run: Run, label: str, colour: str) -> None:
    """Draw a number that changes in steps."""
    axes.set_ylabel(label)
    drawing.whole_numbers(axes, values.max() if len(values) else 0)
    if values.empty:
        drawing.say(axes, "no server events in this run")
        return
    drawing.steps(axes, values, run.duration, color=colour, linewidth=1.6)


def draw_alive(axes: Axes, alive: "pd.Series[int]", asked: "pd.Series[int]", duration_s: float) -> None:
    """Draw those of the clients that still had replies, where they are fewer than those asked for."""
    if alive.equals(asked.rename("alive")):
        return
    axes.get_lines()[0].set_label("asked for")
    style = {
        "color": palette.OVERALL,
        "linestyle": "--",
        "linewidth": 1.0,
        "label": f"alive ({alive.iloc[-1]} at the end)",
    }
    drawing.steps(axes, alive, duration_s, **style)
    drawing.legend(axes)


def draw_means(axes: Axes, means_of: Callable[[Run, float], pd.DataFrame], run: Run, label: str) -> None:
    """Draw a rolling mean of each GPU and of all of them."""
    window_s = drawing.window_s(run.duration)
    means = means_of(run, window_s)
    means = means[(means.index >= 0) & (means.index <= run.duration)].dropna(axis="columns", how="all")
    axes.set_ylabel(f"{label}\n(mean of last {window_s:g} s)")
    axes.set_ylim(bottom=0)
    if means.empty:
        drawing.say(axes, f"no {label.partition(' ')[0].lower()} known for this run")
        return
    means = drawing.thinned(means)
    # A GPU that was never used has no line of its own, only its part in the mean; many would hide the others.
    used = [int(gpu) for gpu in means.columns[means.max() > 0].to_numpy()]
    number = max(used, default=0) + 1
    for gpu in used:
        axes.plot(means.index, means[gpu], label=palette.gpu_label(gpu, number), **palette.gpu_style(gpu, number))
    known, sampled = len(means.columns), run.monitoring["gpu"].nunique()
    if known > 1:
        unused = known - len(used)
        mean = f"mean of all {known}" if known == sampled else f"mean of {known} of {sampled}"
        mean += f", {unused} of them at 0" if unused else ""
        axes.plot(means.index, means.mean(axis="columns"), color=palette.OVERALL, linewidth=1.6, label=mean)
    drawing.from_zero(axes, float(means.max().max()))
    drawing.legend(axes)


def _draw_completion(axes: Axes, run: Run) -> None:
    requests = run.requests
    ok = requests["status"] == "ok"
    warm = series.warm(run)
    highest = float(requests["outer_time_ms"][ok].max()) if ok.any() else 0.0
    typical = float(requests["outer_time_ms"][warm].median()) if warm.any() else highest
    lowest = float(requests["outer_time_ms"][ok].min()) if ok.any() else 0.0
    far = highest > _FAR_APART * typical and lowest > 0
    unit, factor = ("ms", 1.0) if far else drawing.time_unit(highest)
    axes.set_ylabel(f"Task completion\ntime [{unit}]" + (", log" if far else ""))
    if far:
        drawing.logarithmic(axes, "y", lowest, highest)
        axes.set_ylim(lowest * 0.7, highest * 1.3)
    else:
        axes.set_ylim(0, highest * factor * 1.05 or 1.0)
    times = requests["outer_time_ms"] * factor
    cold, refused = ok & requests["cold_start"], requests["status"] == "rejected"
    for label, chosen, style in (
        ("warm", warm, palette.WARM_MARK),
        ("waited for a boot", ok & requests["waited_for_boot"] & ~cold, palette.WAITED_MARK),
        ("cold start", cold, palette.COLD_MARK),
    ):
        if chosen.any():
            counted = f"{label} ({chosen.sum()})"
            axes.plot(requests["elapsed"][chosen], times[chosen], linestyle="", label=counted, **style)
    # A request that was not served has no completion time: it is marked on the axis, however long it took.
    on_axis = axes.get_xaxis_transform()
    for label, chosen, style in (
        ("refused", refused, palette.REFUSED_MARK),
        ("failed", ~ok & ~refused, palette.FAILED_MARK),
    ):
        if chosen.any():
            at, counted = requests["elapsed"][chosen], f"{label} ({chosen.sum()})"
            axes.plot(at, np.zeros(len(at)), linestyle="", label=counted, transform=on_axis, **style)
    if not ok.any():
        drawing.say(axes, "no request was served in this run")
    drawing.legend(axes)


def draw_sets(panels: Sequence[Axes], sets: Sequence[Set], *, mark_cold_starts: bool = False) -> None:
    """Draw sets of repeats over each other: of each the median of its repeats, and a band from their lowest to highest.

    The completion time is that of the warm requests, on a logarithmic axis if what is drawn is far apart.
    """
    clients, task_runners, utilization, completion = panels
    windows = dict.fromkeys(f"{one.window_s:g} s" for one in sets)
    of_last = f"of last {' or '.join(windows)}"

    spreads = _spreads(sets, lambda run, one: series.at(series.demand(run), one.grid))
    clients.set_ylabel(demand_label([run for one in sets for run in one.found]))
    drawing.whole_numbers(clients, _highest(spreads))
    _draw_spreads(clients, sets, spreads, "", drawstyle="steps-post", named=True)
    alive = _spreads(
        sets, lambda run, one: series.at(series.alive(run) if run.is_steps else series.demand(run), one.grid)
    )
    for one, frame, asked in zip(sets, alive, spreads, strict=True):
        if not frame["median"].equals(asked["median"]):
            over = frame.index.to_numpy() * one.scale
            style = {"color": one.style["color"], "linestyle": ":", "linewidth": 1.2, "label": "_"}
            clients.plot(over, frame["median"], drawstyle="steps-post", **style)

    spreads = _spreads(sets, lambda run, one: series.at(series.task_runners(run), one.grid))
    task_runners.set_ylabel("Number of\ntask runners")
    drawing.whole_numbers(task_runners, _highest(spreads))
    _draw_spreads(task_runners, sets, spreads, "no server events in these runs", drawstyle="steps-post")

    spreads = _spreads(sets, _mean_utilization)
    utilization.set_ylabel(f"Utilization [%]\n(all GPUs, mean\n{of_last})")
    utilization.set_ylim(0, 105)
    _draw_spreads(utilization, sets, spreads, "no utilization known for these runs")

    spreads = _spreads(sets, _median_completion)
    cold = _cold_starts(sets) if mark_cold_starts else pd.Series(dtype="float64")
    typical = [median for frame in spreads if not np.isnan(median := frame["median"].median())]
    highest = max([_highest(spreads), *cold])
    far = bool(typical) and max(*typical, *cold, 0.0) > _FAR_APART * min(typical)
    unit, factor = ("ms", 1.0) if far else drawing.time_unit(highest)
    completion.set_ylabel(f"Task completion\ntime [{unit}]{', log' if far else ''}\n(median {of_last})")
    if far:
        drawing.logarithmic(completion, "y", min(typical), highest)
    else:
        drawing.from_zero(completion, highest * factor)
    if len(cold):
        label = f"cold start ({len(cold)})"
        completion.plot(cold.index, cold * factor, linestyle="", label=label, **palette.COLD_MARK)
    _draw_spreads(completion, sets, spreads, "no warm request was served in these runs", factor=factor)


def _cold_starts(sets: Sequence[Set]) -> "pd.Series[float]":
    """Give the completion times in ms of the cold starts that were served, over what the x axis shows."""
    cold: list[pd.Series[float]] = []
    for one in sets:
        requests = pd.concat([run.requests for run in one.found])
        chosen = requests[requests["cold_start"] & (requests["status"] == "ok")]
        cold.append(chosen["outer_time_ms"].set_axis(chosen["elapsed"] * one.scale))
    return pd.concat(cold)


def _spreads(sets: Sequence[Set], values_of: Callable[[Run, Set], Floats]) -> list[pd.DataFrame]:
    def spread(one: Set) -> pd.DataFrame:
        return series.spread(one.found, one.grid, lambda run, _: values_of(run, one))

    return [spread(one) for one in sets]


def _draw_spreads(
    axes: Axes,
    sets: Sequence[Set],
    spreads: Sequence[pd.DataFrame],
    if_none: str,
    *,
    factor: float = 1.0,
    drawstyle: str = "default",
    named: bool = False,
) -> None:
    step: Literal["post"] | None = "post" if drawstyle == "steps-post" else None
    none = all(frame["median"].isna().all() for frame in spreads)
    if none:
        drawing.say(axes, if_none)
    for one, frame in zip(sets, spreads, strict=True):
        over = frame.index.to_numpy() * one.scale
        known = frame["median"].notna().any()
        # What a colour stands for is said once, above the first panel.
        label = one.label if named else "_" if known or none else f"{one.label}: not known"
        axes.plot(over, frame["median"] * factor, drawstyle=drawstyle, linewidth=1.6, label=label, **one.style)
        if len(one.found) > 1 and known:
            low, high = (frame[column].to_numpy() * factor for column in ("low", "high"))
            band = "lowest to highest" if named else "_"
            colour = one.style["color"]
            axes.fill_between(over, low, high, step=step, color=colour, alpha=0.25, linewidth=0, label=band)
    drawing.legend(axes)


def _mean_utilization(run: Run, one: Set) -> Floats:
    means = series.utilization(run, one.window_s)
    return series.at(means.mean(axis="columns"), one.grid) if len(means) else np.full(len(one.grid), np.nan)


def _median_completion(run: Run, one: Set) -> Floats:
    return series.at(series.completion(run, one.window_s), one.grid, longest_s=one.window_s)


def _highest(spreads: Sequence[pd.DataFrame]) -> float:
    return float(np.nanmax([0.0, *(frame["high"].max() for frame in spreads)]))
