"""The notebook's cells without a kernel and a page, which take most of a small report's time."""

import json
import runpy
import tempfile
from pathlib import Path

import IPython.display
import pandas as pd
import pytest

from kaas import ROOT
from kaas.analysis import figures


def code_of(*names: str) -> str:
    """Give the code of the cells with these ids, or of all."""
    cells = json.loads((ROOT / "plot-autoscaling.ipynb").read_text())["cells"]
    chosen = [cell for cell in cells if cell["cell_type"] == "code" and (not names or cell["id"] in names)]
    return "\n".join("".join(cell["source"]) for cell in chosen)


def show(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    output: Path,
    *pictures: str,
    compare: Path | None = None,
    repeat: int = 0,
) -> str:
    """Run the cells in this process; give the Markdown and the HTML that they display, but no picture.

    Args:
        monkeypatch: of the test.
        folder: the results.
        output: where figures and tables go.
        pictures: the names of those of the gallery that are drawn.
        compare: the results put beside them, if any.
        repeat: the number of the repeat that is drawn; 0 for the first.

    Raises:
        ResultsError: what scripts/report says in its one line.
    """
    shown: list[str] = []

    def display(one: object, **_: object) -> None:
        if isinstance(one, pd.DataFrame):
            shown.append(one.to_html())
        elif isinstance(one, IPython.display.Markdown):
            shown.append(str(one.data))

    chosen = [picture for picture in figures.GALLERY if picture.name in pictures]
    assert len(chosen) == len(pictures)
    monkeypatch.setattr(figures, "GALLERY", chosen)
    monkeypatch.setattr(IPython.display, "display", display)
    for name, value in {"RESULTS": folder, "REPORT": output, "COMPARE": compare or "", "REPEAT": repeat or ""}.items():
        monkeypatch.setenv(f"KAAS_{name}", str(value))
    code = code_of()
    with tempfile.TemporaryDirectory() as folder_of_cells:
        script = Path(folder_of_cells, "cells.py")
        script.write_text(code)
        with pd.option_context("display.max_colwidth", None, "display.html.use_mathjax", False):
            runpy.run_path(str(script))
    return "\n".join(shown)
