"""The picture of policies side by side, drawn of the table that the simulation writes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kaas.analysis import policies
from kaas.errors import ResultsError
from kaas.simulation.policies import MEASURES, Compared, write


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Give a table of two policies, which differ in the first measure only."""
    values, same = np.tile(np.arange(9.0), (12, 1)), np.full(9, 1.0)
    found = [
        Compared("paper", values, same, same),
        Compared("ahead, queue", values + 2.0, same, np.array([0.01, *[0.5] * 8])),
    ]
    write(found, tmp_path / "table.csv")
    return tmp_path / "table.csv"


def test_each_measure_is_a_panel_and_only_what_differs_is_a_filled_mark(table: Path) -> None:
    figure = policies.side_by_side(policies.read(table))

    assert [axes.get_title() for axes in figure.axes] == list(MEASURES)
    assert figure.get_suptitle() == "SIMULATED, not measured (12 seeds)"
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["paper", "ahead, queue"]
    for number, axes in enumerate(figure.axes):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert [mark.get_xdata()[0] for mark in marks] == [number, number + 2.0]  # type: ignore[index]
        filled = [to_hex(mark.get_markerfacecolor()) != "#ffffff" for mark in marks]
        assert filled == [False, number == 0]


def test_what_is_no_table_of_policies_is_said(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="No such file"):
        policies.read(tmp_path / "nowhere.csv")
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    table.write_text("\n".join(",".join(row[:3]) for row in rows))
    with pytest.raises(ResultsError, match="is no table of policies"):
        policies.read(table)
    table.write_text("")
    with pytest.raises(ResultsError, match="is no table of policies"):
        policies.read(table)
