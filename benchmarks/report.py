"""Writes the report of all benchmarks, in Markdown, from the JSON files that they have written: `report.py FILE...`."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common

_FACTS = ("CPU", "Memory", "GPUs", "OS", "Python", "Git revision")


def write(reports: Sequence[dict[str, Any]]) -> str:
    """Make the whole text."""
    return "\n".join(line for part in _parts(reports) for line in (*part, "")).rstrip() + "\n"


def _parts(reports: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    first, minutes = reports[0], sum(one["seconds"] for one in reports) / 60
    yield ["# Performance"]
    yield [
        f"Measured by `benchmarks/run`, from {first['date']} on, in {minutes:.1f} minutes.",
        "Every yardstick is measured in the same run, in rounds that alternate. A figure is the median over the "
        "rounds, unless its row says otherwise, beside the least and the largest of them, and their number.",
    ]
    if first["quick"]:
        yield ["**A smoke run: these figures mean nothing.**"]
    machine = first["machine"] | {"Python": first["machine"]["Python"].partition(" (")[0]}  # not where it lies here
    yield _table(("machine", ""), [(name, machine[name]) for name in _FACTS if name in machine])
    yield ["## Targets"]
    yield _results([result for one in reports for result in one["results"] if result["target"]])
    for one in reports:
        yield from _sections(one)


def _sections(report: dict[str, Any]) -> Iterator[list[str]]:
    yield [f"## {report['title']}"]
    yield [" ".join(paragraph.split()) for paragraph in report["about"].split("\n\n")]
    if report["results"]:
        yield _results(report["results"])
    for table in report["tables"]:
        yield [f"{table['title']}:"]
        yield _table(table["columns"], table["rows"])
    yield from ([note] for note in report["notes"])
    if report["figure"]:
        yield [f"![{report['title']}]({report['figure']})"]


def _results(results: Sequence[dict[str, Any]]) -> list[str]:
    return _table(common.RESULT_COLUMNS, common.result_rows(results))


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    numbers = [all(isinstance(row[at], int | float) for row in rows) for at in range(len(columns))]
    return [
        _line(columns),
        _line(["--:" if right else "---" for right in numbers]),
        *(_line([common.number(cell) for cell in row]) for row in rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the report."""
    sys.stdout.write(write([json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]))


if __name__ == "__main__":
    main()
