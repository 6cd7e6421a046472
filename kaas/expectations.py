"""What a user may expect of a run, or repeat it for: the figures that have a stable name, and limits on them.

The names are those of `summary.json` (docs/summary.md; kaas.analysis.facts writes it), of EXPECT and of REPEAT_UNTIL:

    EXPECT="failed=0, refused<=10, p95<=200ms, cold_starts==8"     limits that each repeat must keep
    REPEAT_UNTIL="throughput 5%"                                   how wide the 95 % interval of a mean may be

    python -m kaas.expectations check EXPECT REPEAT_UNTIL    is there such a figure, such a limit? else exit code 2
    python -m kaas.expectations hold SUMMARY EXPECT          say which limits are not kept; exit code 4 if there is one
"""

import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kaas import cli
from kaas.errors import ResultsError, UsageError

NOT_HELD = 4
"""Exit code of a run that is not what was expected of it."""


class Figure(NamedTuple):
    """One number of a repeat: its column in `table-repeats.csv`, "" if it is in none, and its unit."""

    column: str
    unit: str = ""


FIGURES: Mapping[str, Figure] = {
    "requests": Figure("requests"),
    "ok": Figure("ok"),
    "refused": Figure("refused"),
    "failed": Figure("failed"),
    "cold_starts": Figure("cold starts"),
    "duration": Figure("duration [s]", "s"),
    **{part: Figure(f"warm completion time, {part} [ms]", "ms") for part in ("p50", "p95", "p99")},
    **{f"cold_{part}": Figure(f"cold completion time, {part} [ms]", "ms") for part in ("p50", "p95", "p99")},
    "throughput": Figure("throughput [1/s]", "1/s"),
    "last_throughput": Figure("throughput in the last step [1/s]", "1/s"),
    "energy": Figure("energy [J]", "J"),
    "energy_per_request": Figure("energy per served request [J]", "J"),
    "claims_not_held": Figure(""),
    "findings": Figure(""),
}
_IN_UNITS: Mapping[str, Mapping[str, float]] = {
    "": {},
    "s": {"ms": 0.001, "s": 1.0, "min": 60.0},
    "ms": {"ms": 1.0, "s": 1000.0, "min": 60_000.0},
    "1/s": {"1/s": 1.0, "/s": 1.0},
    "J": {"J": 1.0, "kJ": 1000.0},
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LIMIT = re.compile(r"(?P<name>\w+)\s*(?P<sign>[=!<>]=?)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[\w/]*)")
_WIDTH = re.compile(r"(?P<name>\w+)\s+(?P<number>\d+(?:\.\d+)?)\s*%")


class Limit(NamedTuple):
    """What one figure is expected to be, in its unit; `text` is as the user wrote it."""

    text: str
    name: str
    sign: str
    value: float

    def complaint(self, figures: Mapping[str, Any]) -> str:
        """Say why these figures of a repeat do not keep it; "" if they do."""
        found, unit = figures.get(self.name), FIGURES[self.name].unit
        if found is None:
            return f"{self.text} does not hold: {self.name} is not known"
        if _COMPARISONS[self.sign](found, self.value):
            return ""
        return f"{self.text} does not hold: {self.name} is {found:.6g}{f' {unit}' if unit else ''}"


class Width(NamedTuple):
    """How wide the 95 % interval of a figure's mean over the repeats may be, as a part of that mean, to either side."""

    name: str
    part: float


def read_limits(text: str) -> list[Limit]:
    """Read what EXPECT says.

    Raises:
        UsageError: it is no such list, or names no such figure.
    """
    return [_limit(part.strip()) for part in text.split(",")] if text.strip() else []


def _limit(text: str) -> Limit:
    match = _LIMIT.fullmatch(text)
    if match is None or match["sign"] not in _COMPARISONS:
        raise UsageError(f"EXPECT: {text!r} is no limit: write as in failed=0, refused<=10, p95<=200ms")
    unit = FIGURES[_known("EXPECT", match["name"])].unit
    if match["unit"] and match["unit"] not in _IN_UNITS[unit]:
        units = f"give it in {', '.join(_IN_UNITS[unit])}" if unit else "give it without a unit"
        raise UsageError(f"EXPECT: {text!r}: {match['name']} is not in {match['unit']}: {units}")
    factor = _IN_UNITS[unit][match["unit"]] if match["unit"] else 1.0
    return Limit(text, match["name"], match["sign"], float(match["number"]) * factor)


def read_widths(text: str) -> list[Width]:
    """Read what REPEAT_UNTIL says.

    Raises:
        UsageError: it is no such list, or names no such figure.
    """
    found = []
    for part in text.split(",") if text.strip() else ():
        match = _WIDTH.fullmatch(part.strip())
        if match is None or not float(match["number"]):
            raise UsageError(f"REPEAT_UNTIL: {part.strip()!r} is no width: write as in throughput 5%")
        if not FIGURES[_known("REPEAT_UNTIL", match["name"])].column:
            raise UsageError(f"REPEAT_UNTIL: {match['name']} has no mean over the repeats: name another figure")
        found.append(Width(match["name"], float(match["number"]) / 100))
    return found


def _known(setting: str, name: str) -> str:
    if name not in FIGURES:
        raise UsageError(f"{setting}: there is no figure {name!r}: name one of {', '.join(FIGURES)}")
    return name


def complaints(summary: Mapping[str, Any], limits: list[Limit]) -> list[str]:
    """Say what is not kept, by which repeat."""
    said = ((repeat["task"], limit.complaint(repeat["figures"])) for limit in limits for repeat in summary["repeats"])
    return [f"{why} in {task}" for task, why in said if why]


def main() -> int:
    """Do what the command line says."""
    order, *arguments = sys.argv[1:]
    if order == "check":
        read_limits(arguments[0])
        read_widths(arguments[1])
        return 0
    try:
        summary = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"EXPECT cannot be looked up in {arguments[0]}: {error}") from None
    found = complaints(summary, read_limits(arguments[1]))
    for line in found:
        print(f"EXPECT: {line}")  # noqa: T201
    return NOT_HELD if found else 0


if __name__ == "__main__":
    cli.run(main, cli.at_once)
