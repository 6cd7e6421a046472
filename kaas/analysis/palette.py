"""The colours of all pictures, by what they stand for: the same thing has the same colour in each.

They are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with impaired colour vision can tell
apart, and one of Paul Tol's "muted" ones.
"""

from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

Style = dict[str, Any]

_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _VERMILLION, _PURPLE, _GREY, _WINE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
    "#882255",
)

# What the experiment is about.
CLIENTS = SERVED = _BLUE
TASK_RUNNERS = _GREEN
OVERALL = _BLACK
"""The mean or sum of all GPUs; means, medians and bounds beside what they are of."""
ENERGY = _PURPLE
THIS_RUN, OTHER_RUN = _BLUE, _WINE
NOT_MEASURED = _VERMILLION

# What became of a request. A second shade tells a client's warm requests apart, or a GPU's workers.
WARM, SECOND_SHADE = _BLUE, _SKY
WAITED = _PURPLE
COLD = _ORANGE
REFUSED = FAILED = LOST = _VERMILLION

# What a request, or a boot, takes its time for. The phases of a boot are whatever the server names.
SETUP, QUEUE, KERNEL, REST = _SKY, _YELLOW, _BLUE, _GREY
LAG = _WINE
PHASES = (_BLUE, _SKY, _GREEN, _PURPLE, _WINE)

# Black is left to the mean of all GPUs; a thin line in yellow is hardly seen on paper. From the ninth GPU on they are
# dashed instead.
_GPUS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _VERMILLION, _GREY, _WINE)
MOST_NAMED_GPUS = 2 * len(_GPUS)
# From dark to light, in the same order in print and for the colour-blind; its lightest would not be seen on paper.
_GPU_MAP, _GPU_MAP_END = "cividis", 0.85

WARM_MARK: Style = {"marker": ".", "markersize": 2.5, "color": WARM, "markeredgewidth": 0, "rasterized": True}
WAITED_MARK: Style = {"marker": "^", "markersize": 4, "color": WAITED, "markeredgewidth": 0, "clip_on": False}
COLD_MARK: Style = {
    "marker": "D",
    "markersize": 5,
    "color": COLD,
    "markeredgecolor": _BLACK,
    "markeredgewidth": 0.6,
    "clip_on": False,
    "zorder": 3,
}
REFUSED_MARK: Style = {"marker": "|", "markersize": 7, "color": REFUSED, "clip_on": False, "zorder": 4}
FAILED_MARK: Style = {"marker": "x", "markersize": 6, "color": FAILED, "clip_on": False, "zorder": 4}


def gpu_style(gpu: int, number: int) -> Style:
    """Give a GPU's line its colour and dashes; of more GPUs than can be told apart, one shade after the other."""
    if number > MOST_NAMED_GPUS:
        return {"color": to_hex(colormaps[_GPU_MAP](_GPU_MAP_END * gpu / (number - 1))), "linewidth": 0.5}
    dashes = "-" if gpu < len(_GPUS) else "--"
    return {"color": _GPUS[gpu % len(_GPUS)], "linestyle": dashes, "linewidth": 1.1}


def gpu_label(gpu: int, number: int) -> str:
    """Name a GPU's line, or no more than the first and the last where they are too many to name."""
    named = number <= MOST_NAMED_GPUS or gpu in {0, number - 1}
    return f"GPU {gpu}" if named else "_"
