"""The validity check: is what the files of a run say possible at all, and does it fit together?

Each rule is a function that says in its docstring why what it looks for is wrong, and gives a `Check`: what was looked
at, and in one sentence what was found. Where the files allow, the rule also mends what it found; where a number cannot
be trusted then, the run says so (`runs.Run.timed` and its coverage), and none is given. The rules on the rows of
requests stand in `rows`, those on the clock in `clock`, on what is beside the requests in `beside`, on how the run
ended in `ending`, and on several repeats in `repeats`. None of them reads a file.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

HOW_TO_READ = (
    "Each line is one rule that every sound run keeps: what was seen of it, and what was found against it. A dash "
    "says that nothing was found, or that the files do not tell."
)


class Check(NamedTuple):
    """One rule put to one run: what has to be so, what was found against it in one sentence, and what was seen."""

    rule: str
    found: str = ""
    seen: str = ""


def table(checks: Iterable[tuple[str, Check]]) -> pd.DataFrame:
    """Give what was found of each run by each rule (index: rule and task; columns: `seen` and `found`, or "-").

    Args:
        checks: the name of a task, and one of its checks.
    """
    rows = [(check.rule, task, check.seen or "-", check.found or "-") for task, check in checks]
    return pd.DataFrame(rows, columns=["rule", "task", "seen", "found"]).set_index(["rule", "task"])


def several(number: int, thing: str) -> str:
    """Write a number of things, as in `1 row` and `2 rows`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
