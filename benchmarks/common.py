"""What the benchmark programs share: their command line, rounds that alternate, and the report of what was measured.

A program calls `main` with a function that measures and returns a `Report`, which is printed and, with --json, written.
Import this first: it puts the project on the path.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
__import__("kaas")  # before the libraries: it says what is missing

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from kaas import SINGLE_THREADED, cli, machine  # noqa: E402
from kaas.errors import UsageError  # noqa: E402

MODULES = Path(__file__).resolve().parent / "modules"
"""Kernels and clients that do nothing."""
LEAST_ROUNDS = 5
_QUICK_ROUNDS = 1
_MOST_SAID = 200
"""Characters of one measured value that are told as it comes."""

Value = TypeVar("Value")
Options = argparse.Namespace
"""`rounds`, `quick`, `json`, `figure`, and what the program's own arguments add."""


class Target(NamedTuple):
    """What a value shall be: at most the limit, or at least."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Tell whether a value is as it shall be."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {number(self.limit)}"


class Report:
    """What one program has measured.

    Args:
        title: of the report.
        about: how it was measured, for a reader who has not seen the program.
    """

    def __init__(self, title: str, about: str) -> None:
        self.title = title
        self.about = about
        self.results: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.figure = ""

    def add(
        self,
        name: str,
        unit: str,
        values: Sequence[float],
        target: Target | None = None,
        of: Callable[[Sequence[float]], float] = statistics.median,
    ) -> None:
        """Add a result: one value a round, `of` which the median counts unless something else is said."""
        value = of(values)
        self.results.append(
            {
                "name": name,
                "unit": unit,
                "value": value,
                "low": min(values),
                "high": max(values),
                "rounds": len(values),
                "target": None if target is None else str(target),
                "met": None if target is None else target.met(value),
            }
        )

    def add_table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table of values that have no target."""
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(row) for row in rows]})

    def as_json(self, options: Options, seconds: float) -> dict[str, Any]:
        """Give all of it as what a JSON file takes; `seconds` is what the measuring took, up to now."""
        return {
            "title": self.title,
            "about": self.about,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time() - seconds)),
            "rounds": options.rounds,
            "quick": options.quick,
            "seconds": seconds,
            "results": self.results,
            "tables": self.tables,
            "notes": self.notes,
            "figure": self.figure,
            "machine": machine.describe(),
        }

    def show(self) -> None:
        """Print it."""
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        if self.results:
            console.print(_table(self.title, RESULT_COLUMNS, result_rows(self.results)))
        for table in self.tables:
            console.print(_table(table["title"], table["columns"], table["rows"]))
        for note in self.notes:
            console.print(note, markup=False, soft_wrap=True)


RESULT_COLUMNS = ("what", "unit", "measured", "rounds", "target", "met")


def result_rows(results: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Make the rows of a table of results."""
    return [
        [
            result["name"],
            result["unit"],
            number(result["value"]),
            f"{number(result['low'])} to {number(result['high'])} ({result['rounds']})",
            result["target"] or "",
            "" if result["met"] is None else "yes" if result["met"] else "NO",
        ]
        for result in results
    ]


def number(value: object) -> str:
    """Write a number with three digits that count, or more where it is large; anything else as it is."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(number, row))
    return table


def alternate(
    measures: Mapping[str, Callable[[], Value]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[Value]]:
    """Measure all of them in each round, every other round in the opposite order; give each one's values.

    One round more, the first, is a warm-up and does not count, unless nothing of it would last; nor is there one where
    the figures mean nothing anyway.
    """
    values: dict[str, list[Value]] = {name: [] for name in measures}
    for name in measures if warm_up and rounds >= LEAST_ROUNDS else ():
        say(f"warm-up: {name}")
        measures[name]()
    for at in range(rounds):
        for name in list(measures) if at % 2 == 0 else reversed(list(measures)):
            value = measures[name]()
            values[name].append(value)
            say(f"round {at + 1} of {rounds}: {name}: {str(value)[:_MOST_SAID]}")  # should the rest be cut off
    return values


def ratios(values: Sequence[float], yardstick: Sequence[float]) -> list[float]:
    """Give each round's value as a multiple of the yardstick's in the same round."""
    return [value / unit for value, unit in zip(values, yardstick, strict=True)]


def times_ns(call: Callable[[], object], repeats: int) -> list[int]:
    """Call it again and again; give the nanoseconds of each call."""
    clock, times = time.perf_counter_ns, []
    for _ in range(repeats):
        begun = clock()
        call()
        times.append(clock() - begun)
    return times


def start(process: BaseProcess) -> None:
    """Start a process that is forked; Ctrl-C and SIGTERM wait, for what they raise is lost in the midst of a fork."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(f"{cli.program()}: {text}", file=sys.stderr, flush=True)


def main(
    measure: Callable[[Options], Report],
    about: str | None,
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Be a benchmark program: read the command line, measure, print, and write the file that is asked for."""
    cli.run(lambda: _main(measure, about, arguments))


def _main(
    measure: Callable[[Options], Report], about: str | None, arguments: Callable[[argparse.ArgumentParser], None]
) -> None:
    parser = cli.parser(about)
    parser.add_argument("--rounds", type=cli.positive_int, default=LEAST_ROUNDS, help="default and least: %(default)s")
    parser.add_argument("--quick", action="store_true", help="only see that it runs: the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there, too")
    arguments(parser)
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        raise UsageError(f"--rounds is {options.rounds}: a median of less than {LEAST_ROUNDS} says little")
    if options.quick:
        options.rounds = _QUICK_ROUNDS
    for path in (options.json, getattr(options, "figure", None)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no such folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    for name in [name for name in os.environ if name.startswith("KAAS_") or name == "SEGMENTS"]:
        del os.environ[name]  # a server that the user has elsewhere is none of ours
    os.environ.update(SINGLE_THREADED)
    begun = time.monotonic()
    report = measure(options)
    report.show()
    if options.json:
        found = report.as_json(options, time.monotonic() - begun)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def add_figure_option(parser: argparse.ArgumentParser) -> None:
    """Add `--figure`, the file that a figure is drawn to."""
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a figure there (.png, .pdf or .svg)")
