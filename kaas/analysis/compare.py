"""Two experiments side by side: which numbers differ by more than repeats do, and which parameters do."""

from collections.abc import Sequence

import pandas as pd

from kaas.analysis import claims, tables
from kaas.analysis.runs import Run

HOW_TO_READ = (
    "Read each line as one number: its mean and range over the repeats of either side, own less other, and whether "
    "that is more than repeats of one side differ from each other (the larger of the two ranges). Where each side has "
    "one repeat, this cannot be told."
)

YES = "yes"
NO = "no"

# They tell a run from its repeats, or how it ended, not what it was asked to do.
_NO_PARAMETERS = ("Task name", "Ended")
_COUNTS = "Requests "


def compare(own: Sequence[Run], other: Sequence[Run]) -> pd.DataFrame:
    """Put the numbers of two experiments side by side (index: those of `tables.numbers`, of either side).

    Columns: `own mean`, `own min`, `own max` and `own repeats` (in which the number is known), the same of `other`,
    `difference` (own mean less the other's), `difference [%]` (of the other's mean; NaN if that is 0), `spread` (the
    larger range, from min to max, of those of two repeats at least) and `beyond the spread`: YES if the difference is
    larger, NO, or `claims.CANNOT_BE_TOLD` where neither side has two repeats or one does not know the number.

    Raises:
        ResultsError: the runs of one side are of several experiments.
    """
    sides = {"own": _numbers(own), "other": _numbers(other)}
    names = sides["own"].columns.union(sides["other"].columns, sort=False)
    frame = pd.concat(
        [_summary(numbers, names).add_prefix(f"{side} ") for side, numbers in sides.items()], axis="columns"
    )
    frame["difference"] = frame["own mean"] - frame["other mean"]
    base = frame["other mean"].where(frame["other mean"] != 0)
    frame["difference [%]"] = 100 * frame["difference"] / base
    ranges = [(frame[f"{name} max"] - frame[f"{name} min"]).where(frame[f"{name} repeats"] > 1) for name in sides]
    frame["spread"] = pd.concat(ranges, axis="columns").max(axis="columns")
    beyond = (frame["difference"].abs() > frame["spread"]).map({True: YES, False: NO})
    known = frame["difference"].notna() & frame["spread"].notna()
    frame["beyond the spread"] = beyond.where(known, claims.CANNOT_BE_TOLD)
    return frame.rename_axis("number")


def parameters(own: Sequence[Run], other: Sequence[Run]) -> pd.DataFrame:
    """Give the parameters and facts of the machine that differ (index: the parameter; columns: `own` and `other`).

    A value is empty where that side does not name it. Where its repeats differ, all values stand in their order.
    """
    frame = pd.DataFrame({"own": _values(own), "other": _values(other)}, dtype="object").fillna("")
    return frame[frame["own"] != frame["other"]].rename_axis("parameter")


def _numbers(found: Sequence[Run]) -> pd.DataFrame:
    tables.one_experiment(found)
    return tables.numbers(found)


def _summary(numbers: pd.DataFrame, names: pd.Index) -> pd.DataFrame:
    numbers = numbers.reindex(columns=names)
    # A kind of failure that only one side names has happened 0 times on the other.
    failures = [name for name in names if name.startswith("failed: ")]
    numbers[failures] = numbers[failures].fillna(0.0)
    columns = {"mean": numbers.mean(), "min": numbers.min(), "max": numbers.max(), "repeats": numbers.count()}
    return pd.DataFrame(columns)


def _values(found: Sequence[Run]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for run in found:
        for name, value in run.parameters.items():
            if name not in _NO_PARAMETERS and not name.startswith(_COUNTS):
                values.setdefault(name, []).append(value)
    return {name: "; ".join(dict.fromkeys(several)) for name, several in values.items()}
