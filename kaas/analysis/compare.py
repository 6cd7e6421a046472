"""Two experiments side by side: which parameters differ, and which numbers do by more than chance makes them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kaas import comparisons
from kaas.analysis import statistics, tables
from kaas.analysis.judging import CANNOT_BE_TOLD
from kaas.analysis.runs import Run

YES = "yes"
NO = "no"
DIFFERS = "differs"

HOW_TO_READ = (
    "Each line is one number: its mean and range over the repeats of either side, and own less other with the 95 % "
    "interval of that difference (Welch's). 'Effect' is that difference in standard deviations of a repeat (Hedges' "
    "g); 0.8 is large, and its interval says how little few repeats tell. 'p' is how often chance alone would make "
    "such a difference in this one line. Among many lines, some p are small by chance. So 'differs' asks for more: if"
    " nothing differs, it says yes in any line at all in 5 % of comparisons at most. Nothing can be told where a side"
    " has one repeat, or no repeat differs from another of its side."
)

# They tell a run from its repeats, or how it ended, not what it was asked to do.
_OF_SCRIPTS = ("RESULTS", "SMOKE", "RESUME", "REPEAT_UNTIL", "EXPECT")
_NO_PARAMETERS = ("Task name", "Ended", "Went wrong", "Exit code", "Server", "Seed", *_OF_SCRIPTS)
_COUNTS = "Requests "


def compare(own: Sequence[Run], other: Sequence[Run]) -> pd.DataFrame:
    """Put the numbers of two experiments side by side (index: those of `tables.numbers`, of either side).

    Columns: `own mean`, `own min`, `own max` and `own repeats` (in which the number is known), the same of `other`,
    `difference` (own mean less the other's), `difference [%]` (of the other's mean; NaN if that is 0), `difference low`
    and `difference high`, `effect` with `effect low` and `effect high`, `p` (see `statistics.welch`), `p, all
    lines` (see `comparisons.holm`) and `differs`: YES if the latter is below 0.05, NO, or CANNOT_BE_TOLD where it is
    not known. Where no repeat differs from any other of either side, NO.

    Raises:
        ResultsError: the runs of one side are of several experiments.
    """
    sides = {"own": _numbers(own), "other": _numbers(other)}
    names = sides["own"].columns.union(sides["other"].columns, sort=False)
    sides = {side: _complete(numbers, names) for side, numbers in sides.items()}
    frame = pd.concat([_summary(numbers).add_prefix(f"{side} ") for side, numbers in sides.items()], axis="columns")
    found = [statistics.welch(sides["own"][name], sides["other"][name]) for name in names]
    frame["difference"] = [one.difference.mean for one in found]
    frame["difference [%]"] = 100 * frame["difference"] / frame["other mean"].where(frame["other mean"] != 0)
    frame["difference low"] = [one.difference.low for one in found]
    frame["difference high"] = [one.difference.high for one in found]
    frame["effect"] = [one.effect.mean for one in found]
    frame["effect low"] = [one.effect.low for one in found]
    frame["effect high"] = [one.effect.high for one in found]
    frame["p"] = [one.p for one in found]
    frame["p, all lines"] = comparisons.holm(frame["p"])
    differs = (frame["p, all lines"] < comparisons.ALPHA).map({True: YES, False: NO})
    frame[DIFFERS] = differs.where(frame["p"].notna(), CANNOT_BE_TOLD)
    several = frame[["own repeats", "other repeats"]].min(axis="columns") > 1
    equal = several & frame["p"].isna() & (frame["difference"] == 0)
    frame.loc[equal, DIFFERS] = NO
    return frame.rename_axis("number")


def write(own: Sequence[Run], other: Sequence[Run], folder: Path) -> list[Path]:
    """Write both tables into `folder`, which is made if need be: `table-compared.csv` and `table-parameters.csv`.

    Raises:
        ResultsError: the runs of one side are of several experiments, or a file cannot be written.
    """
    return tables.write_frames({"compared": compare(own, other), "parameters": parameters(own, other)}, folder)


def parameters(own: Sequence[Run], other: Sequence[Run]) -> pd.DataFrame:
    """Give the parameters and facts of the machine that differ (index: the parameter; columns: `own` and `other`).

    A value is empty where that side does not name it. Where its repeats differ, all values stand in their order.
    """
    frame = pd.DataFrame({"own": _values(own), "other": _values(other)}, dtype="object").fillna("")
    return frame[frame["own"] != frame["other"]].rename_axis("parameter")


def _numbers(found: Sequence[Run]) -> pd.DataFrame:
    tables.one_experiment(found)
    return tables.numbers(found)


def _complete(numbers: pd.DataFrame, names: pd.Index) -> pd.DataFrame:
    numbers = numbers.reindex(columns=names)
    # A kind of failure that only one side names has happened 0 times on the other.
    failures = [name for name in names if name.startswith("failed: ")]
    numbers[failures] = numbers[failures].fillna(0.0)
    return numbers


def _summary(numbers: pd.DataFrame) -> pd.DataFrame:
    columns = {"mean": numbers.mean(), "min": numbers.min(), "max": numbers.max(), "repeats": numbers.count()}
    return pd.DataFrame(columns)


def _values(found: Sequence[Run]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for run in found:
        for name, value in run.parameters.items():
            if name not in _NO_PARAMETERS and not name.startswith(_COUNTS):
                values.setdefault(name, []).append(value)
    return {name: "; ".join(dict.fromkeys(several)) for name, several in values.items()}
