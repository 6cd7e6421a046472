"""The description of a run, `<task>.md`: what the columns mean, parameters, machine, and how it ended; for people.

Its `Name: value` lines are read back, ours and those of the published runs.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from kaas.errors import ResultsError
from kaas.row import COLUMNS


def begin(
    path: Path,
    requests: Path,
    begun: float,
    parameters: Mapping[str, object],
    machine: Mapping[str, object],
    *,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Write `<task>.md` as it stands when a run begins: columns, parameters (`Name: value`) and machine.

    `begun` is in seconds since the epoch, of the run's clock, as all time stamps.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = [
        f"This file describes the fields in the file {requests.parent.name}/{requests.name}.",
        f"The measurements were run starting on {_date(begun)}.",
        f"The experiment was run on the machine {machine.get('Host', 'unknown')}.",
        "",
        "## Parameters",
        *(f"{name}: {' '.join(str(value).splitlines())}" for name, value in parameters.items()),
        "",
        "## Columns",
        *(f"- `{name}`: {meaning}" for name, meaning in columns.items()),
        "",
        "## Machine",
        *(f"{name}: {value}" for name, value in machine.items()),
        "",
    ]
    _write(path, "w", lines)


def end(path: Path, ended: float, seconds: float, facts: Mapping[str, object]) -> None:
    """Append to `<task>.md` what there is to say at the end (`Name: value`), when that was, and after how long.

    `ended` is in seconds since the epoch, of the run's clock.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = [
        "",
        _END,
        *(f"{name}: {value}" for name, value in facts.items()),
        f"The experiment terminated on {_date(ended)}.",
        f"The experiment ran for {seconds:.3f} s.",
        "",
    ]
    _write(path, "a", lines)


def _date(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _write(path: Path, mode: str, lines: list[str]) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write("\n".join(lines))
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}") from None


_END = "## End"
_PARAMETER = re.compile(r"(?P<name>[A-Z][^:`]*): (?P<value>.*)")


def read(path: Path) -> dict[str, str]:
    """Read the `Name: value` lines of a `<task>.md`, ours or a published one; a missing file gives none."""
    matches = filter(None, map(_PARAMETER.fullmatch, _lines(path)))
    return {match["name"]: match["value"] for match in matches}


class Told(NamedTuple):
    """What a description tells besides: in sentences ("" or None where it does not), and of how the run began.

    `settings` are the names and values that stand before its end: what was asked of which machine, and not how it went.
    """

    machine: str = ""
    ran_for_s: float | None = None
    settings: tuple[tuple[str, str], ...] = ()


_MACHINE = re.compile(r"The experiment was run on the machine (?P<name>.+)\.")
_RAN_FOR = re.compile(
    r"The experiment ran for (?:(?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):)?(?P<seconds>\d+(?:\.\d+)?)"
    r"(?: s)?\."
)


def read_told(path: Path) -> Told:
    """Read the machine, the length and the settings of a run, ours or a published one (`0:08:06.052530`)."""
    lines = _lines(path)
    begin = lines[: lines.index(_END)] if _END in lines else lines
    told = Told(
        settings=tuple((match["name"], match["value"]) for match in filter(None, map(_PARAMETER.fullmatch, begin)))
    )
    for line in lines:
        if match := _MACHINE.fullmatch(line):
            told = told._replace(machine=match["name"])
        elif match := _RAN_FOR.fullmatch(line):
            minutes = (int(match["days"] or 0) * 24 + int(match["hours"] or 0)) * 60 + int(match["minutes"] or 0)
            told = told._replace(ran_for_s=minutes * 60 + float(match["seconds"]))
    return told


def _lines(path: Path) -> list[str]:
    """Give the lines of a description, whatever editor has saved it; none if it is missing."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        return []
