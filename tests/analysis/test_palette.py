"""The same thing has the same colour in every picture, and different ones that meet have different ones."""

from collections.abc import Callable

import pytest
from made_runs import request, write_run
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure

from kaas.analysis import figures, palette, runs
from kaas.analysis.runs import Run

ROWS = [
    request(0.0, 400.0, cold=True),
    request(0.5, 300.0, waited=True, copy=1),
    *(request(1.0 + at, 100.0) for at in range(9)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("palette")
    write_run(folder, "task-1", ROWS)
    return runs.find_runs(folder)[0]


def colours_of(figure: Figure, label: str) -> set[str]:
    """Give the colours of what a figure's legends call so, however it is drawn."""
    found = set()
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        for handle, own in zip(handles, labels, strict=True):
            if own.startswith(label):
                of = getattr(handle, "get_color", None) or getattr(handle, "get_facecolor", None)
                assert of is not None
                found.add(to_hex(to_rgba_array(of())[0]))
    return found


@pytest.mark.parametrize(
    ("label", "colour"),
    [("warm", palette.WARM), ("waited for a boot", palette.WAITED), ("cold start", palette.COLD)],
)
@pytest.mark.parametrize("draw", [figures.combined, figures.requests, figures.completion_times])
def test_a_kind_of_request_has_its_colour_in_every_picture(
    run: Run, draw: Callable[[Run], Figure], label: str, colour: str
) -> None:
    assert colours_of(draw(run), label) == {colour.lower()}


def test_eight_gpus_have_eight_colours_none_of_which_is_the_mean_s() -> None:
    styles = [palette.gpu_style(gpu, 8) for gpu in range(8)]
    assert len({style["color"] for style in styles} | {palette.OVERALL}) == 9
    assert {style["linestyle"] for style in styles} == {"-"}
