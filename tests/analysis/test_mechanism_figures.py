from pathlib import Path

import pytest
from made_runs import PUBLISHED, booted, needs_published, request, write_run

from kaas.analysis import mechanism, mechanism_figures, runs
from kaas.events import Event
from kaas.row import Row

SETTING = {"Server number of GPUs": 2, "Server workers per GPU": 2}


@pytest.mark.parametrize(
    ("rows", "happened"),
    [
        pytest.param([request(0, 500, cold=True)], [booted(0, 0)], id="one request"),
        pytest.param([request(at, 0, "failed", copy=at) for at in range(3)], [booted(0, 0)], id="nothing served"),
        pytest.param(
            [request(at, 100, concurrency=1 + at, copy=at) for at in range(5)],
            [booted(0, 0), booted(3, 1)],
            id="no cold",
        ),
        pytest.param([request(at, 5, "rejected") for at in range(3)], [booted(0, 0)], id="all refused"),
        pytest.param([request(at, 5)._replace(setup_time=0.0) for at in range(3)], [booted(0, 0)], id="no setup"),
    ],
)
def test_little_to_tell_is_drawn_and_counted_all_the_same(
    tmp_path: Path, rows: list[Row], happened: list[Event]
) -> None:
    write_run(tmp_path, "task-1", rows, happened, parameters=SETTING)
    found = runs.find_runs(tmp_path)

    assert mechanism.known(found[0])
    assert len(mechanism.write(found, tmp_path / "out")) == 7
    for figure in (
        mechanism_figures.places(found[0]),
        mechanism_figures.host(found),
        mechanism_figures.by_gpus(found[0]),
    ):
        figure.canvas.draw()


@needs_published
def test_the_places_that_are_needed_reach_those_that_there_are_at_each_boot() -> None:
    (axes,) = mechanism_figures.places(runs.find_runs(PUBLISHED)[0]).axes

    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert [len(line.get_ydata()) for name, line in lines.items() if name == "places lost"] == [8]  # type: ignore[arg-type]
    assert max(lines["workers of the booted GPUs"].get_ydata()) == 32  # type: ignore[arg-type, type-var]


@needs_published
def test_a_row_is_drawn_for_each_number_of_task_runners() -> None:
    figure = mechanism_figures.by_gpus(runs.find_runs(PUBLISHED)[0])

    assert [axes.get_ylabel() for axes in figure.axes] == [str(number) for number in range(1, 9)]
