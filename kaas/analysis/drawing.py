"""What the figures share: size, bars, lines, legends and words; for colours see palette. Never through pyplot."""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kaas.analysis import palette
from kaas.analysis.run import not_measured

WIDTH_IN = 7.2
DPI = 200

MOST_POINTS = 1200
"""Of a line: more than can be told apart in print."""
MOST_VECTORS = 2000
"""Of a scatter or of bars: more make a PDF that pages slowly, and are drawn as pixels."""

# From this factor on, a logarithmic axis has room for the powers of ten only.
_WIDE = 1e3

# Of a legend, in points; the width of a character is the mean one of its font.
_LEGEND_SIZE, _CHARACTER, _SWATCH, _PANEL_WIDTH = 8, 4.7, 28, 450

# Names may be in any script: the first has Latin, Greek and Cyrillic, of the others those count that are installed.
_FONT = "DejaVu Sans"
_MORE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Sans Hebrew",
    "Noto Sans Thai",
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def new_figure(height_in: float) -> Figure:
    """Make a figure of the width of a page of print."""
    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def own_settings(draw: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function draw with matplotlib's own settings, whatever the user's are, and leave those as they are.

    What was not measured is drawn with a title that says so.
    """

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
        with matplotlib.rc_context(settings | {"font.family": [_FONT, *_more_fonts()]}):
            figure = draw(*args, **kwargs)
            if isinstance(figure, Figure) and (said := not_measured(args)):
                figure.suptitle(as_text(said), color=palette.NOT_MEASURED, fontsize="large")
            return figure

    return drawn


def as_text(name: str) -> str:
    """Let a name of somebody else's be drawn as it is.

    A `$` begins no formula, an underscore in front hides it from no legend, and what no font here has is drawn as its
    code in Unicode: a box would tell nothing.
    """
    fonts = [font_manager.get_font(font_manager.findfont(font)) for font in (_FONT, *_more_fonts())]
    known = [any(font.get_char_index(ord(one)) for font in fonts) for one in name]
    text = "".join(
        one if is_known else one.encode("ascii", "backslashreplace").decode()
        for one, is_known in zip(name, known, strict=True)
    )
    hidden = "\u200a" if text.startswith("_") else ""  # a hair space
    return hidden + text.replace("$", r"\$")


@cache
def _more_fonts() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return tuple(font for font in _MORE_FONTS if font in installed)


def window_s(duration_s: float) -> float:
    """Choose the window of a rolling mean."""
    # Wide enough to be read over any length of run, and never so wide as to blur what booting one GPU did.
    return min(10.0, max(1.0, round(duration_s / 100)))


def plain(panels: Sequence[Axes]) -> None:
    """Give panels a light grid, and no frame where it bounds nothing."""
    for panel in panels:
        panel.grid(color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def over_time(
    figure: Figure,
    panels: Sequence[Axes],
    duration_s: float,
    label: str = "Experiment time [s]",
    ramp_end: float | None = None,
) -> None:
    """Finish panels that stand above each other and share the time from 0 to the run's end.

    What comes after the end of the ramp is the drain: grey.
    """
    plain(panels)
    panels[-1].set_xlim(0, duration_s or 1.0)
    panels[-1].set_xlabel(label)
    if ramp_end is not None and ramp_end < duration_s:
        for panel in panels:
            drain = Rectangle((ramp_end, 0.0), duration_s - ramp_end, 1.0)
            grey = PatchCollection(
                [drain], transform=panel.get_xaxis_transform(), facecolor="0.93", edgecolor="none", zorder=0
            )
            panel.add_collection(grey, autolim=False)
    figure.align_ylabels(panels)


def whole_numbers(axes: Axes, highest: float) -> None:
    """Let the y axis count from 0 to the highest value."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, max(1, highest) * 1.1)


def from_zero(axes: Axes, highest: float) -> None:
    """Let the y axis go from 0 to a little above the highest value, which may be NaN."""
    axes.set_ylim(0, highest * 1.1 if highest > 0 else 1.0)


def logarithmic(axes: Axes, which: Literal["x", "y"], lowest: float, highest: float) -> None:
    """Make an axis logarithmic, with plain numbers on it."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if highest < _WIDE * lowest else (1.0,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def time_unit(highest_ms: float) -> tuple[str, float]:
    """Choose the unit of durations up to this one, and the factor from ms to it."""
    return ("s", 1e-3) if highest_ms >= 1e3 else ("ms", 1.0)  # noqa: PLR2004


def steps(axes: Axes, values: "pd.Series[int]", duration_s: float, **style: Any) -> None:
    """Draw steps until the end of the run; what comes after it (that task runners stop with the server) is no news."""
    values = _outline(values[values.index <= duration_s])
    axes.plot([*values.index, duration_s], [*values, values.iloc[-1]], drawstyle="steps-post", **style)


def _outline(values: "pd.Series[int]") -> "pd.Series[int]":
    """Keep of steps that are too many to be told apart the lowest and the highest in each stretch of time."""
    if len(values) <= MOST_VECTORS:
        return values
    numbered = pd.Series(values.to_numpy())
    stretch = np.arange(len(values)) * (MOST_VECTORS // 4) // len(values)
    by_stretch = numbered.groupby(stretch)
    kept = np.unique(np.concatenate([by_stretch.idxmin(), by_stretch.idxmax(), [0, len(values) - 1]]))
    return values.iloc[kept]


def bars(axes: Axes, sides: tuple[Any, Any, Any, Any], **style: Any) -> PolyCollection:
    """Draw rectangles as one artist.

    Args:
        axes: where to. Its limits stay as they are.
        sides: left, right, bottom and top of all of them, arrays or numbers.
        style: of the collection.
    """
    left, right, bottom, top = np.broadcast_arrays(*(np.asarray(side, dtype="float64") for side in sides))
    corners = np.stack([left, bottom, left, top, right, top, right, bottom], axis=-1).reshape(-1, 4, 2)
    return axes.add_collection(PolyCollection(corners, **style), autolim=False)  # type: ignore[arg-type, return-value]


def thinned(values: pd.DataFrame) -> pd.DataFrame:
    """Leave out rows that no eye could tell apart, but none that breaks a line, nor the last one."""
    every = -(-len(values) // MOST_POINTS)
    keep = values.isna().all(axis="columns").to_numpy(copy=True)
    keep[::every] = keep[-1] = True
    return values[keep]


def shortened(name: str, longest: int = 24) -> str:
    """Leave out the middle of a name that is too long for a legend."""
    if len(name) <= longest:
        return name
    head = longest // 2
    return f"{name[:head]}…{name[head + 1 - longest :]}"


def legend(axes: Axes, most_columns: int = 5) -> None:
    """Name what is drawn, in rows above the panel: it hides no data there."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = _columns_that_fit(labels, most_columns)
    # Read by rows, while matplotlib fills one column after the other.
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]
    drawn = axes.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        fontsize=_LEGEND_SIZE,
        frameon=False,
        borderaxespad=0.1,
        handlelength=1.6,
        columnspacing=1.2,
    )
    for swatch in drawn.get_lines():
        swatch.set_markersize(max(5.0, swatch.get_markersize()))
        swatch.set_linewidth(min(5.0, max(1.6, swatch.get_linewidth())))


def _columns_that_fit(labels: Sequence[str], most: int) -> int:
    for rows in range(1, len(labels)):
        columns = -(-len(labels) // rows)
        longest = (max(map(len, labels[column::columns])) for column in range(columns))
        if columns <= most and sum(longest) * _CHARACTER + columns * _SWATCH <= _PANEL_WIDTH:
            return columns
    return 1


def say(axes: Axes, words: str) -> None:
    """Write into a panel that has nothing to show why it has not."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.4", style="italic")
