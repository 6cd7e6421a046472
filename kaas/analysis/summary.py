"""What a page says first of each run, and a script last: when, on what, what came of it, and which claims hold."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from kaas.analysis import claims, tables
from kaas.analysis.judging import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, NOT_TESTABLE
from kaas.analysis.run import Run
from kaas.clock import in_words

_MARKS = {HOLDS: "✓", DOES_NOT_HOLD: "✗", CANNOT_BE_TOLD: "?", NOT_TESTABLE: "-"}
_TIMES = "warm completion time, p50 and p95"
_WARM = "warm completion time, {} [ms]"


def summary(found: Sequence[Run]) -> pd.DataFrame:
    """Say the main things of each run in words (index: what; columns: the tasks); "-" for what is not known."""
    numbers = tables.per_repeat(found).T
    return pd.DataFrame({run.task: _of(run, numbers[run.task]) for run in found}, dtype="object")


def in_short(told: pd.DataFrame) -> str:
    """Say the same of each run in some lines for a terminal: what a script says last. It takes what `summary` gave."""
    lines = []
    for task, of in told.items():
        verdicts = Counter(text.partition(" ")[2] for text in of if text[0] in _MARKS.values() and text[1:2] == " ")
        counts = (f"{what}: {of[what]}" for what in ("requests", "refused", "failed", "cold starts"))
        lines += [
            f"{task}: {of['lasted']}",
            f"  {', '.join(counts)}",
            f"  {_TIMES}: {of[_TIMES]}",
            f"  the paper's claims: {', '.join(f'{verdict}: {number}' for verdict, number in verdicts.items())}",
        ]
        if of["whole"] != "yes":
            lines.append("  the run is not whole: the page says what is missing")
    return "\n".join(lines)


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
