"""What a page says first of each run: when, on what, what came of it, and which claims hold."""

from collections.abc import Sequence

import pandas as pd

from kaas.analysis import claims, tables
from kaas.analysis.judging import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, NOT_TESTABLE
from kaas.analysis.run import Run
from kaas.clock import in_words

_MARKS = {HOLDS: "✓", DOES_NOT_HOLD: "✗", CANNOT_BE_TOLD: "?", NOT_TESTABLE: "-"}
_WARM = "warm completion time, {} [ms]"


def summary(found: Sequence[Run]) -> pd.DataFrame:
    """Say the main things of each run in words (index: what; columns: the tasks); "-" for what is not known."""
    numbers = tables.per_repeat(found).T
    return pd.DataFrame({run.task: _of(run, numbers[run.task]) for run in found}, dtype="object")


def _of(run: Run, numbers: "pd.Series[float]") -> dict[str, str]:
    begin = pd.to_datetime(run.requests["timestamp"].iloc[0], unit="s", utc=True)
    return {
        "began": f"{begin:%Y-%m-%d %H:%M:%S} UTC" if run.timed else "-",
        "lasted": in_words(run.duration) if run.timed else "-",
        "on": run.told.machine or "-",
        "whole": "yes" if run.is_whole else "no: see below",
        "requests": f"{len(run.requests):,}",
        "served": f"{numbers['ok']:,}",
        "refused": f"{numbers['refused']:,}",
        "failed": f"{numbers['failed']:,}",
        "warm completion time, p50 and p95": " and ".join(_ms(numbers[_WARM.format(part)]) for part in ("p50", "p95")),
        "cold starts": f"{numbers['cold starts']:,}",
        **{claim.claim: f"{_MARKS[claim.verdict]} {claim.verdict}" for claim in claims.check_run(run)},
    }


def _ms(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"  # noqa: PLR2004
