"""What the notebook needs besides figures and tables: which repeat is drawn, and numbers as a reader likes them."""

from collections.abc import Sequence

import pandas as pd

from kaas.analysis.runs import Run
from kaas.errors import ResultsError

_WHOLE_FROM = 1000


def choose(repeats: Sequence[Run], number: str) -> Run:
    """Give the repeat of that number; without a number the first.

    Raises:
        ResultsError: there is no such repeat.
    """
    if not number:
        return repeats[0]
    chosen = [run for run in repeats if str(run.repeat) == number]
    if not chosen:
        there = ", ".join(run.task for run in repeats)
        raise ResultsError(f"there is no repeat {number} (--repeat, KAAS_REPEAT) among {there}")
    return chosen[0]


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Write every number of a table as text: of four significant digits, or whole; "-" for what is not known."""
    return frame.map(_readable)


def _readable(value: object) -> object:
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if isinstance(value, float) and not value.is_integer() and abs(value) < _WHOLE_FROM:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else value
