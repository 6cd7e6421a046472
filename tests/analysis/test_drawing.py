"""What all pictures share: settings of their own, names as text, the drain, and steps that are too many."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from example_runs import legend, lines
from made_runs import T0, closed_loop, request, write_run
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from kaas.analysis import drawing, figures, runs


def test_pictures_are_drawn_with_their_own_settings_and_leave_the_users_as_they_are(tmp_path: Path) -> None:
    closed_loop(tmp_path)
    (run,) = runs.find_runs(tmp_path)
    plain = figures.save(figures.combined(run), tmp_path / "plain").read_bytes()

    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "font.size": 3}):
        styled = figures.save(figures.combined(run), tmp_path / "styled").read_bytes()
        assert matplotlib.rcParams["font.size"] == 3

    assert styled == plain


@pytest.mark.parametrize("name", ["$a", "a $\\\\frac{b", "_hidden", "\U00012345", "日本", "a\nb"])
def test_a_name_is_drawn_and_kept_in_the_legend_whatever_is_in_it(name: str) -> None:
    @drawing.own_settings
    def draw() -> list[str]:
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], label=drawing.as_text(name))
        drawing.legend(axes)
        figure.draw_without_rendering()  # warns of glyphs that are missing
        return legend(axes)

    assert len(draw()) == 1


def test_the_drain_is_grey_and_clients_that_died_are_not_drawn_as_alive(tmp_path: Path) -> None:
    files = closed_loop(tmp_path)
    frame = pd.read_csv(files.requests, dtype={"error": str}, keep_default_na=False)
    frame[(frame["copy"] != 1) | (frame["timestamp"] < T0 + 6)].to_csv(files.requests, index=False)
    (run,) = runs.find_runs(tmp_path)

    clients, *_ = figures.combined(run).axes

    (drain,) = (grey for grey in clients.collections if isinstance(grey, PatchCollection))
    assert drain.get_paths()[0].get_extents().intervalx.tolist() == pytest.approx([18, run.duration])
    assert legend(clients) == ["asked for", "alive (5 at the end)"]
    assert lines(clients)["alive (5 at the end)"].get_ydata()[-1] == 5  # type: ignore[index]
    everything, *_ = figures.combined_all([run]).axes
    assert [line.get_linestyle() for line in everything.get_lines()] == ["-", ":"]


def test_clients_that_change_with_every_row_are_drawn_as_their_lowest_and_highest(tmp_path: Path) -> None:
    rows = [request(row / 100, 9, copy=row % 4, concurrency=3 + row % 2) for row in range(20_000)]
    write_run(tmp_path, "task-1", rows)
    (run,) = runs.find_runs(tmp_path)

    clients, *_ = figures.combined(run).axes

    (line,) = clients.get_lines()
    drawn = np.asarray(line.get_ydata())
    assert len(drawn) <= drawing.MOST_VECTORS
    assert set(drawn.tolist()) == {3, 4}
