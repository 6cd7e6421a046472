"""Two experiments side by side: which numbers differ by more than repeats do, and which parameters do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kaas.analysis import claims, statistics, tables
from kaas.analysis.runs import Run

YES = "yes"
NO = "no"

# They tell a run from its repeats, or how it ended, not what it was asked to do.
_NO_PARAMETERS = ("Task name", "Ended")
_COUNTS = "Requests "
_TO_HAVE_A_RANGE = 2


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
    ranges = [
        (frame[f"{name} max"] - frame[f"{name} min"]).where(frame[f"{name} repeats"] >= _TO_HAVE_A_RANGE)
        for name in sides
    ]
    frame["spread"] = pd.concat(ranges, axis="columns").max(axis="columns")
    beyond = (frame["difference"].abs() > frame["spread"]).map({True: YES, False: NO})
    known = frame["difference"].notna() & frame["spread"].notna()
    frame["beyond the spread"] = beyond.where(known, claims.CANNOT_BE_TOLD)
    return frame.rename_axis("number")


def by_chance(own: int, other: int, *, draws: int = 20_000, seed: int = 0) -> float:
    """Give the part of numbers that `compare` would call beyond the spread if both sides did the very same.

    All repeats are drawn from one normal distribution; the same seed gives the same. NaN if neither side has two.

    Args:
        own: the repeats of one side, 1 at least.
        other: those of the other.
        draws: how many numbers are compared.
        seed: of the random numbers.
    """
    if max(own, other) < _TO_HAVE_A_RANGE:
        return statistics.NAN
    drawn = np.random.default_rng(seed).standard_normal((own + other, draws))
    sides = np.split(drawn, [min(own, other)])  # the same for either order
    means = [side.mean(axis=0) for side in sides]
    spread = np.max([np.ptp(side, axis=0) for side in sides], axis=0)  # that of a single repeat is 0
    return float((np.abs(means[0] - means[1]) > spread).mean())


def how_to_read(own: Sequence[Run], other: Sequence[Run]) -> str:
    """Say how to read what `compare` gives of these runs, and how often chance alone would say yes."""
    sizes = len(own), len(other)
    chance = by_chance(*sizes)
    caution = (
        "As each side has one repeat, this cannot be told."
        if np.isnan(chance)
        else f"With {sizes[0]} and {sizes[1]} repeats, chance alone makes {100 * chance:.0f} % of the lines say yes."
    )
    return (
        "Read each line as one number: its mean and range over the repeats of either side, own less other, and whether "
        f"that is more than repeats of one side differ from each other (the larger of the two ranges). {caution}"
    )


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
