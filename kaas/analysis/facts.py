"""`summary.json`: what the tables beside it say of a results folder, for programs, under names that stay.

docs/summary.md describes it. Nothing is reckoned here: it is the tables' own numbers, and what was read and checked.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kaas import __version__, machine
from kaas.analysis import claims, provenance
from kaas.analysis.judging import DOES_NOT_HOLD
from kaas.analysis.run import Run
from kaas.errors import ResultsError
from kaas.expectations import FIGURES

NAME = "summary.json"
FORMAT = "kaas-summary"
VERSION = 1
"""It grows by one when a name changes its meaning or goes; new names are no other version."""
_UNITS = {"begin": "s since the epoch, UTC", "first_booted": "s", "took": "s"}
_BOOTS = {"first booted [s]": "first_booted", "boot took [s]": "took"}
_POOLED = {"repeats": "repeats", "mean": "mean", "ci low": "low", "ci high": "high"}


def write(told: Mapping[str, Any], folder: Path) -> Path:
    """Write `summary.json` into a folder that is there; an earlier one is replaced.

    Raises:
        ResultsError: it cannot be written.
    """
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    return put(folder / NAME, lambda path: path.write_text(text, encoding="utf-8"))


def put(path: Path, write: Callable[[Path], object]) -> Path:
    """Have a file written beside its place, and put there at once, whatever was there before.

    Raises:
        ResultsError: it cannot be written.
    """
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            write(begun)
            begun.replace(path)
        finally:
            begun.unlink(missing_ok=True)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from None
    return path


def is_ours(path: Path) -> bool:
    """Tell whether a file is one that `write` has written."""
    try:
        return f'"format": "{FORMAT}"' in path.read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return False


def summary(found: Sequence[Run], frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Give what `summary.json` says of runs.

    Args:
        found: the runs.
        frames: the tables of these by their names (see `tables.write`): repeats, pooled, boots, claims and validity.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "program": {"version": __version__, "revision": machine.revision()},
        "units": _UNITS | {name: figure.unit for name, figure in FIGURES.items() if figure.unit},
        "repeats": [_repeat(run, frames) for run in found],
        "pooled": _pooled(frames["pooled"]),
    }


def _repeat(run: Run, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    numbers = frames["repeats"].loc[run.task]
    verdicts = frames["claims"].xs(run.task, level="task")
    wrong = frames["validity"].xs(run.task, level="task")["found"].loc[lambda found: found != "-"]
    counted = {
        "claims_not_held": int((verdicts["verdict"] == DOES_NOT_HOLD).sum()),
        "findings": len(wrong),
    }
    return {
        "task": run.task,
        "experiment": run.experiment,
        "repeat": run.repeat,
        "begin": _number(run.requests["timestamp"].iloc[0]) if run.timed else None,
        "machine": run.told.machine,
        "whole": run.is_whole,
        "figures": {
            name: _number(numbers[figure.column]) if figure.column else counted[name]
            for name, figure in FIGURES.items()
        },
        "statuses": {
            str(name): int(number) for name, number in run.requests["status"].value_counts().items() if number
        },
        "boots": _boots(frames["boots"], run.task),
        "verdicts": {
            claims.NAMES[str(claim)]: {"claim": claim, "verdict": row["verdict"], "found": row["found"] or row["note"]}
            for claim, row in verdicts.iterrows()
        },
        "findings": [{"rule": str(rule), "found": found} for rule, found in wrong.items()],
        "notes": list(run.notes),
        "parameters": dict(run.parameters),
        "files": [{"name": path.name, "sha256": digest} for path, digest in provenance.checksums(run).items()],
    }


def _boots(boots: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Give each GPU's first boot, of those that were booted."""
    of_task = boots[boots.index.get_level_values("task") == task].droplevel("task").dropna(how="all")
    return [
        {"gpu": int(str(gpu)), **{name: _number(row[column]) for column, name in _BOOTS.items()}}
        for gpu, row in of_task.iterrows()
    ]


def _pooled(pooled: pd.DataFrame) -> dict[str, Any]:
    """Give each experiment's means over its repeats, with the 95 % interval of each."""
    told: dict[str, Any] = {}
    for experiment in pooled.index.unique("experiment"):
        of_one = pooled.xs(experiment, level="experiment")
        told[str(experiment)] = {
            name: {key: _number(of_one[column][figure.column]) for column, key in _POOLED.items()}
            for name, figure in FIGURES.items()
            if figure.column
        }
    return told


def _number(value: Any) -> float | int | None:
    """Write a number of NumPy's or pandas' as Python's, whole numbers as such; None is what is not known."""
    if pd.isna(value) or math.isinf(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
