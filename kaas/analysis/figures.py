"""The figures of a run: the paper's four panels, their variants over repeats and two sets of runs, and the gallery.

This is their public face: each is a function that gives a Figure, and `save` writes it. Nothing goes through pyplot: no
display is needed, and no figure stays open.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from kaas.analysis import breakdown, drawing, energy, palette, panels, series
from kaas.analysis.anatomy import cold_starts, completion_times, decomposition, requests_per_task_runner
from kaas.analysis.drawing import DPI, WIDTH_IN
from kaas.analysis.mechanism_figures import HOW_TO_READ_BY_GPUS, by_gpus
from kaas.analysis.panels import Set
from kaas.analysis.runs import Run
from kaas.analysis.timelines import power, refusals, requests, throughput, utilization
from kaas.errors import ResultsError

__all__ = [
    "DPI",
    "FOUR_PANELS",
    "GALLERY",
    "HOW_TO_READ",
    "HOW_TO_READ_ALL",
    "HOW_TO_READ_COMPARED",
    "HOW_TO_READ_POWER",
    "WIDTH_IN",
    "Picture",
    "by_gpus",
    "cold_starts",
    "combined",
    "combined_all",
    "compared",
    "completion_times",
    "decomposition",
    "is_ours",
    "power",
    "refusals",
    "requests",
    "requests_per_task_runner",
    "save",
    "throughput",
    "utilization",
]

FOUR_PANELS = "Number of clients, number of task runners, utilization and task completion time over the time of"
"""In place of the picture, for who does not see it; the name of what is drawn comes after it."""
HOW_TO_READ = (
    "Read the panels from top to bottom at one moment. How many clients had been started, how many task runners had "
    "been booted for them, how busy was each GPU, and how long did the requests take that began then? A request that "
    "was refused or failed is only a mark on the axis. The grey part is the drain: the last requests are finished, "
    "and none begins. On a laptop, a GPU at 100 % keeps as many cores busy as its workers can use."
)
HOW_TO_READ_ALL = (
    "The same four panels over all repeats. Each line is the median of the repeats at that moment; its band reaches "
    "from the lowest repeat to the highest. The completion time is that of warm requests, with every cold start "
    "marked. A dotted line shows the clients that were still alive, where some had died. The grey part is the drain."
)
HOW_TO_READ_COMPARED = (
    "The same four panels for two sets of runs. Each line is the median of a set's repeats at that moment; its band "
    "reaches from the lowest repeat to the highest. Where two bands part, the sets differ by more than their repeats "
    "do. A set of one repeat has no band: nothing tells how much another repeat would have differed. Means and "
    "medians are taken over a hundredth of a set's own time (1 s at least, 10 s at most)."
)
HOW_TO_READ_POWER = (
    "At the top, the power that each GPU drew at a moment. In the middle, the energy that all GPUs had drawn by then."
    " At the bottom, that energy divided by the requests that were served in the same time. A break in a line at the "
    "top is a gap in the samples; what was drawn during it is part of the energy only where the GPU has a counter."
)

_MAKER = "kaas.analysis"
_HEIGHT_IN = 8.4
_MOST_STRETCHED = 2.0
"""Sets of which one lasts longer than the other by more than this factor share no axis in seconds."""


class Picture(NamedTuple):
    """One picture of the gallery and the words around it."""

    name: str
    """Of its files."""
    title: str
    draw: Callable[[Run], Figure]
    how_to_read: str
    known: Callable[[Run], bool]
    """Says if there is anything to draw."""
    missing: str
    """Says why there is not."""


@drawing.own_settings
def combined(run: Run) -> Figure:
    """Draw the four panels of one run, each from 0 up, over the seconds from its first request to its last reply."""
    figure, axes = _four_panels()
    panels.draw_run(axes, run)
    drawing.over_time(figure, axes, run.duration, ramp_end=run.ramp_end)
    return figure


@drawing.own_settings
def combined_all(found: Sequence[Run]) -> Figure:
    """Draw the four panels of repeats: of each quantity the median over them, and a band from lowest to highest.

    Args:
        found: at least one run.
    """
    figure, axes = _four_panels()
    label = f"median of {len(found)} repeats" if len(found) > 1 else "the only repeat"
    panels.draw_sets(axes, [Set(found, label, {"color": palette.THIS_RUN})], mark_cold_starts=True)
    ends = [run.ramp_end for run in found]
    drawing.over_time(figure, axes, panels.duration(found), ramp_end=max(ends))
    return figure


@drawing.own_settings
def compared(own: Sequence[Run], other: Sequence[Run], names: tuple[str, str]) -> Figure:
    """Draw two sets of repeats over each other in the four panels, each as `combined_all` does.

    If one lasts more than twice as long as the other, time is shown as a share of each.

    Args:
        own: at least one run.
        other: the same.
        names: of the two sets, for the legend, which shortens long ones, and says "own" and "other" for equal ones.
    """
    names = drawing.as_text(drawing.shortened(names[0])), drawing.as_text(drawing.shortened(names[1]))
    if names[0] == names[1]:
        names = "own", "other"
    figure, axes = _four_panels()
    lasting = panels.duration(own) or 1.0, panels.duration(other) or 1.0
    stretched = max(lasting) > _MOST_STRETCHED * min(lasting)
    styles = {"color": palette.THIS_RUN, "linestyle": "-"}, {"color": palette.OTHER_RUN, "linestyle": "--"}
    sets = [
        Set(found, _counted(name, len(found), seconds if stretched else None), style, 100 / seconds if stretched else 1)
        for found, name, style, seconds in zip((own, other), names, styles, lasting, strict=True)
    ]
    panels.draw_sets(axes, sets)
    if stretched:
        drawing.over_time(figure, axes, 100, "Share of each experiment's time [%]")
    else:
        drawing.over_time(figure, axes, max(lasting))
    return figure


def _four_panels() -> tuple[Figure, list[Axes]]:
    figure = drawing.new_figure(_HEIGHT_IN)
    return figure, list(figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1.4, 1.6)))


def _counted(name: str, number: int, lasting_s: float | None) -> str:
    lasting = f", {lasting_s:.0f} s" if lasting_s else ""
    return f"{name} ({number} repeat{'' if number == 1 else 's'}{lasting})"


def _any_served(run: Run) -> bool:
    return bool((run.requests["status"] == "ok").any())


NOTHING_SERVED = "No request was served in this run."

GALLERY = (
    Picture(
        "requests",
        "Every request",
        requests,
        "Each row is a client. Each bar is one of its requests, from its begin to its reply, or many of them, where "
        "they are too short to be told apart. With each cold start (diamond) there is one more task runner (at the "
        "top). Where a row ends early, its client stopped or waited in vain.",
        lambda run: True,
        "",
    ),
    Picture(
        "utilization",
        "Utilization of each GPU",
        utilization,
        "At the top, each row is a GPU: the darker, the busier it was (grey: not known). At the bottom, the "
        "utilization of all GPUs added up (2 is the work of two GPUs that are always busy), and the task runners that "
        "were booted.",
        lambda run: bool(run.monitoring["utilization_pct"].notna().any()),
        "The run's monitoring holds no utilization.",
    ),
    Picture(
        "completion-times",
        "Completion times, warm and cold",
        completion_times,
        "At the top, how many requests of each kind took so long. At the bottom, which share of a kind took no longer; "
        "its median is where its line crosses 50 %. The kinds were sent under different loads. What a cold start "
        "costs is shown in 'Cold starts', which compares requests that were sent with as many clients.",
        _any_served,
        NOTHING_SERVED,
    ),
    Picture(
        "time-at-the-server",
        "Time at the server, by the number of task runners",
        by_gpus,
        HOW_TO_READ_BY_GPUS,
        lambda run: bool(len(series.task_runners(run)) and series.warm(run).any()),
        "The server logged no boot, or served no warm request.",
    ),
    Picture(
        "throughput",
        "Throughput",
        throughput,
        "A request counts at the time of its reply. While the lower line is level, each further client adds as much "
        "throughput as those before it. Where it falls, the clients share what there is.",
        _any_served,
        NOTHING_SERVED,
    ),
    Picture(
        "decomposition",
        "What the completion time is made of",
        decomposition,
        "Each column is the mean completion time of the requests that were served with so many clients (that were "
        "asked for; some may have died), cold starts included, divided into its parts. Where a part grows with the "
        "clients, they get into each other's way. Waiting for a boot is part of the queue, where the queue was logged. "
        "Where only the inner time was logged, it began before the upload and ended after the download, so it is not "
        "the kernel's alone.",
        _any_served,
        NOTHING_SERVED,
    ),
    Picture(
        "cold-starts",
        "Cold starts",
        cold_starts,
        "Each bar is one boot, divided into the phases of its slowest worker. Where the server logged no phases, it is "
        "the request that caused the boot; the black mark is the median of warm requests sent with as many clients.",
        lambda run: bool(len(breakdown.boots(run)) or len(breakdown.cold_starts(run))),
        "The run has no cold start that was served, and its server logged no worker that became ready.",
    ),
    Picture(
        "requests-per-task-runner",
        "Requests of each task runner",
        requests_per_task_runner,
        "Each column is a GPU, and each block one of its workers. A GPU that was booted later had less time to serve. "
        "Of a GPU's idle workers, the server always takes the one with the lowest number.",
        lambda run: bool(len(breakdown.by_worker(run))),
        "The files of this run do not say which GPU and worker served a request.",
    ),
    Picture(
        "refusals",
        "Refused requests",
        refusals,
        "The server refuses a request when every worker of every GPU is busy: then the requests in flight (counted at "
        "the clients, so a few more than at the server) have reached the number of workers. If they have not, some "
        "workers are held by requests that never got a reply; those are in no file.",
        lambda run: bool((run.requests["status"] == "rejected").any()),
        "No request was refused in this run.",
    ),
    Picture(
        "power",
        "Power and energy",
        power,
        HOW_TO_READ_POWER,
        energy.logged,
        "The run's monitoring holds neither power nor energy.",
    ),
)
"""In the order in which they are shown."""


@drawing.own_settings
def save(figure: Figure, path: Path) -> Path:
    """Write `<path>.pdf` and `<path>.png`, and give the latter; earlier ones are replaced if they are ours.

    The figure keeps the layout that it got for the .png. The same data give the same bytes.

    Raises:
        ResultsError: a file cannot be written, or somebody else's is there.
    """
    pdf, png = (path.with_name(path.name + suffix) for suffix in (".pdf", ".png"))
    try:
        for file in (pdf, png):
            if file.exists() and not is_ours(file):
                raise ResultsError(f"{file} was not drawn by this program, and stays: choose another --output")
        # The canvases themselves: `figure.savefig` would lay out and draw everything twice for each file.
        FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
            png, metadata={"Software": _MAKER}, pil_kwargs={"compress_level": 2}
        )
        figure.set_layout_engine("none")
        # Type 42 embeds the fonts as they are: publishers refuse matplotlib's default, Type 3.
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            about = {"Creator": _MAKER, "CreationDate": None}
            FigureCanvasPdf(figure).print_pdf(pdf, metadata=about)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror or error}") from None
    finally:
        figure.set_dpi(DPI)  # the canvas for PDF leaves it at 72
    return png


def is_ours(picture: Path) -> bool:
    """Tell whether `save` wrote a file. Raises OSError if it cannot be read."""
    return _MAKER.encode() in picture.read_bytes()
