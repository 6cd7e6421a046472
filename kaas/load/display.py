"""What a run shows while it goes on (a live line on a terminal, plain lines elsewhere) and the sums at its end.

Nobody waits for who looks at it: a terminal that is held (Ctrl-S) or closed, or a pipe that nobody reads, takes nothing
from the run.
"""

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TextIO

from kaas.clock import in_words
from kaas.load.pacer import Step
from kaas.load.tally import ENOUGH_FOR_P95, Figures, Tally, percentile
from kaas.outlet import Outlet
from kaas.ramp import Shape
from kaas.shapes import OpenLoop

if TYPE_CHECKING:  # a third of the time to start, of which a load that writes to a file needs nothing
    import rich.console
    import rich.live

_PATIENCE = 60.0
"""Seconds that who reads has to take the last lines, in which no request waits for it any more."""
_ROWS_UNDER_HEADINGS = 20
_UNKNOWN = "-"


class Now(NamedTuple):
    """How a run stands; `task_runners` is None where it is not known."""

    elapsed: float
    clients: int
    task_runners: int | None


class Column(NamedTuple):
    """A number that is shown under its name, or after it."""

    name: str
    width: int
    unit: str = ""


# The narrower a terminal, the fewer of the last ones there are: of 80 columns all fit, of 60 all but the last.
_OF_STEP = (
    Column("step", 7),
    Column("clients", 8),
    Column("task runners", 13),
    Column("refused", 8),
    Column("failed", 7),
    Column("served/s", 9),
    Column("p50", 8, "ms"),
    Column("p95", 8, "ms"),
)
_OF_SUMS = (
    Column("", 15),
    Column("requests", 9),
    Column("per second", 11),
    Column("p50", 9, "ms"),
    Column("p95", 9, "ms"),
    Column("max", 9, "ms"),
)


class Display:
    """Shows the progress of one run.

    Args:
        stream: where to; None if that was closed before the run began.
        shape: the run's load.
    """

    def __init__(self, stream: TextIO | None, shape: Shape) -> None:
        self._shape = shape
        self._screen = None if stream is None else _Screen(stream)
        self._on_terminal = stream is not None and (stream.isatty() or bool(os.environ.get("FORCE_COLOR")))
        self._console: rich.console.Console
        self._live: rich.live.Live | None = None
        if self._on_terminal:
            from rich.console import Console  # noqa: PLC0415 - see above
            from rich.live import Live  # noqa: PLC0415

            self._console = Console(file=self._screen)  # type: ignore[arg-type]
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last: Callable[[], Sequence[str]] | None = None  # the numbers of the step that it is now, as last shown
        self._rows = 0

    def __enter__(self) -> Self:
        shape = self._shape
        clients = f"{shape.clients(0.0)} to {shape.most} clients"
        if isinstance(shape, OpenLoop):
            clients = f"{shape.name}, sent by {shape.most} clients"
        self.say(f"{clients}, {in_words(shape.duration)} in all")
        self._head()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._last is not None:
            self._print(_OF_STEP, self._last())

    def close(self) -> None:
        """Give who reads some time to take what was said last."""
        if self._screen is not None:
            self._screen.outlet.close(_PATIENCE)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._on_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._screen is not None:
            self._screen.write(f"{text}\n")

    def show_sums(self, tally: Tally, seconds: float) -> None:
        """Print what a run of so many seconds comes to."""
        if self._on_terminal:
            self.say(self._headings(_OF_SUMS))
        for row in _sums(tally, seconds):
            self._print(_OF_SUMS, row)

    def keep(self, step: Step, now: Now, figures: Figures) -> None:
        """Print the line of a step that is over."""
        self._print(_OF_STEP, _numbers(step, now, figures))
        self._last = None
        self._rows += 1
        if self._rows % _ROWS_UNDER_HEADINGS == 0:
            self._head()

    def show(self, step: Step, now: Now, figures: Callable[[], Figures]) -> None:
        """Show how the step stands that it is now, on a terminal; `figures` are those since its begin."""
        self._last = lambda: _numbers(step, now, figures())
        if self._live is None or self._screen is None or self._screen.outlet.is_behind:
            return
        from rich.progress_bar import ProgressBar  # noqa: PLC0415 - see above
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        shown = Table.grid(expand=True)
        numbers = self._last()
        shown.add_row(Text(self._aligned(_OF_STEP, numbers), style=_style(_OF_STEP, numbers), no_wrap=True))
        progress = Table.grid(padding=(0, 1), expand=True)
        done = min(now.elapsed, self._shape.duration)
        bar = ProgressBar(self._shape.duration, done, complete_style="default", finished_style="default")
        # With room for the ^C that a terminal echoes: a line that wraps would be one more than is taken away.
        progress.add_row(Text(f"{in_words(self._shape.duration - done)} left", no_wrap=True), bar, Text("  "))
        shown.add_row(progress)
        self._live.update(shown, refresh=True)

    def _head(self) -> None:
        if self._on_terminal:
            self.say(self._headings(_OF_STEP))

    def _headings(self, columns: Sequence[Column]) -> str:
        return self._aligned(columns, [f"{column.name} {column.unit}".rstrip() for column in columns])

    def _print(self, columns: Sequence[Column], values: Sequence[str]) -> None:
        if self._on_terminal:
            from rich.text import Text  # noqa: PLC0415 - see above

            self._console.print(Text(self._aligned(columns, values), style=_style(columns, values)), soft_wrap=True)
        else:
            self.say(_in_a_row(columns, values))

    def _aligned(self, columns: Sequence[Column], values: Sequence[str]) -> str:
        """Put values under their headings, as many as the terminal has room for."""
        line = ""
        for column, value in zip(columns, values, strict=True):
            longer = line + (value.rjust(column.width) if line else value.ljust(column.width))
            if len(longer) > self._console.width:
                break
            line = longer
        return line


class _Screen:
    """A stream as rich wants it, which nobody waits for."""

    def __init__(self, stream: TextIO) -> None:
        self.outlet = Outlet(stream)
        self.encoding = stream.encoding
        self.isatty = stream.isatty
        self.fileno = stream.fileno
        self.write = self.outlet.write

    def flush(self) -> None:
        """Do nothing: what is written is on its way."""


def _in_a_row(columns: Sequence[Column], values: Sequence[str]) -> str:
    """Put values after their names, but for those that are not known: for a file, or a program that reads on."""
    first, *others = (
        f"{column.name} {value} {column.unit}".strip()
        for column, value in zip(columns, values, strict=True)
        if value != _UNKNOWN
    )
    return f"{first}: {', '.join(others)}"


def _style(columns: Sequence[Column], values: Sequence[str]) -> str:
    """Choose red where something is wrong, and only there."""
    failed = dict(zip((column.name for column in columns), values, strict=True)).get("failed", "0")
    return "default" if failed == "0" else "red"


def _numbers(step: Step, now: Now, figures: Figures) -> Sequence[str]:
    seconds = min(now.elapsed, step.end) - step.begin
    return (
        step.label.removeprefix("step "),
        str(now.clients),
        _UNKNOWN if now.task_runners is None else str(now.task_runners),
        str(figures.refused),
        str(figures.failed),
        f"{figures.served / seconds if seconds > 0 else 0.0:.1f}",
        f"{figures.p50_ms:.1f}" if figures.served else _UNKNOWN,
        f"{figures.p95_ms:.1f}" if figures.served >= ENOUGH_FOR_P95 else _UNKNOWN,
    )


def _sums(tally: Tally, seconds: float) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, times in (("ok, warm", tally.warm_ms), ("ok, cold start", tally.cold_ms)):
        if times:
            p95 = f"{percentile(times, 95):.1f}" if len(times) >= ENOUGH_FOR_P95 else _UNKNOWN
            p50, longest = f"{percentile(times, 50):.1f}", f"{max(times):.1f}"
            rows.append((name, str(len(times)), f"{len(times) / seconds:.2f}", p50, p95, longest))
    others = sorted((status, number) for status, number in tally.by_status.items() if status != "ok")
    for status, number in (*others, ("all", tally.by_status.total())):
        rows.append((status, str(number), f"{number / seconds:.2f}", _UNKNOWN, _UNKNOWN, _UNKNOWN))
    return rows
