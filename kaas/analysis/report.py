"""What the notebook needs besides figures and tables: an output folder, which repeat is drawn, readable numbers."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kaas.analysis import facts, figures, tables
from kaas.analysis.runs import Run
from kaas.errors import ResultsError

STYLE = """<style>
.jp-RenderedHTMLCommon > div:has(> table) {
  --page: var(--jp-layout-color0, white);
  overflow-x: auto;
  background:
    linear-gradient(to right, var(--page) 30%, transparent) left / 3em 100% no-repeat local,
    linear-gradient(to left, var(--page) 30%, transparent) right / 3em 100% no-repeat local,
    linear-gradient(to right, #8889, transparent) left / 1em 100% no-repeat,
    linear-gradient(to left, #8889, transparent) right / 1em 100% no-repeat;
}
.jp-RenderedHTMLCommon > div::-webkit-scrollbar { height: 9px; }
.jp-RenderedHTMLCommon > div::-webkit-scrollbar-thumb { background: #8889; border-radius: 5px; }
.jp-RenderedHTMLCommon tbody tr { background: none !important; }
.jp-RenderedHTMLCommon tbody tr:nth-child(even) { background: #8881 !important; }
.jp-RenderedHTMLCommon :is(td, th) { text-align: left !important; vertical-align: top; max-width: 22em; }
.jp-RenderedHTMLCommon :is(td, th) { overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
</style>"""
"""Of tables, in the notebook and in the page: prose is on the left, and what scrolls has a shadow where it goes on."""

_MARKUP = frozenset("&<>*_[]$#|~^{}\\`")
_PRODUCTS = ("autoscaling-*.pdf", "autoscaling-*.png", "table-*.csv", "autoscaling-report.html", facts.NAME)


def clear(folder: Path) -> None:
    """Remove an earlier report, so that nothing in `folder` is of another one; files of other makers stay.

    Raises:
        ResultsError: it cannot be removed.
    """
    for path in [path for pattern in _PRODUCTS for path in folder.glob(pattern)]:
        try:
            is_ours = facts.is_ours if path.name == facts.NAME else figures.is_ours
            if path.suffix in {".csv", ".html"} or is_ours(path):
                path.unlink()
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None


def choose(repeats: Sequence[Run], number: str) -> Run:
    """Give the repeat of that number; without a number the first.

    Raises:
        ResultsError: there is no such repeat.
    """
    if not number:
        return repeats[0]
    named = [run for run in repeats if run.task.endswith(f"-{number}")]
    chosen = named or [run for run in repeats if str(run.repeat) == number]
    if not chosen:
        there = ", ".join(run.task for run in repeats)
        raise ResultsError(f"there is no repeat {number} (--repeat, KAAS_REPEAT) among {there}")
    return chosen[0]


def text(words: object) -> str:
    """Write somebody's words such that Markdown and HTML show them as they are: a name is text, whatever is in it."""
    return "".join(f"&#{ord(one)};" if one in _MARKUP else " " if one in "\r\n" else one for one in str(words))


def head(found: Sequence[Run]) -> str:
    """Say in Markdown, a line each, what was noted of the runs, and what was found wrong with them."""
    checked = tables.checks(found).reset_index()
    wrong = checked[checked["found"] != "-"]
    lines = []
    for run in found:
        lines += [f"- **{text(run.task)}**: {text(note)}" for note in run.notes]
        lines += [f"- **{text(run.task)}**, checked: {text(one)}." for one in wrong["found"][wrong["task"] == run.task]]
    return "\n".join(lines)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Write every number of a table as text: whole, or of at least four digits; "-" for what is not known."""
    return frame.map(_readable)


def _readable(value: object) -> object:
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if not isinstance(value, int | float):
        return value
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 0.001 else f"{value:.1g}"  # noqa: PLR2004
