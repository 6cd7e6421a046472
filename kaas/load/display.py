"""What a run shows while it goes on (a live line on a terminal, plain lines elsewhere) and the table at its end."""

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kaas.load.pacer import Step
from kaas.load.tally import ENOUGH_FOR_P95, Figures, Tally, percentile
from kaas.ramp import Shape


class Now(NamedTuple):
    """How a run stands; `task_runners` is None where it is not known."""

    elapsed: float
    clients: int
    task_runners: int | None


class Display:
    """Shows the progress of one run; a terminal that is gone takes nothing from the run."""

    def __init__(self, console: Console, shape: Shape) -> None:
        self._console = console
        self._shape = shape
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last: Callable[[], str] | None = None  # describes the step that it is now, as it was last shown

    def __enter__(self) -> Self:
        shape = self._shape
        self.say(f"{shape.clients(0.0)} to {shape.most} clients, {_minutes(shape.duration)} in all")
        if self._live is not None:
            with _survived():
                self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            with _survived():
                self._live.stop()
        if self._last is not None:
            self.say(self._last())

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with _survived():
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show_summary(self, table: RenderableType) -> None:
        """Print what is made of the whole run."""
        with _survived():
            self._console.print(table)

    def keep(self, step: Step, now: Now, figures: Figures) -> None:
        """Print the line of a step that is over."""
        self.say(_describe(step, now, figures))
        self._last = None

    def show(self, step: Step, now: Now, figures: Callable[[], Figures]) -> None:
        """Show how the step stands that it is now, on a terminal; `figures` are those since its begin."""
        self._last = lambda: _describe(step, now, figures())
        if self._live is None:
            return
        bar = ProgressBar(total=self._shape.duration, completed=min(now.elapsed, self._shape.duration))
        left = f"{_minutes(self._shape.duration - now.elapsed)} left"
        line = Text(f"{left} | {self._last()}", no_wrap=True, overflow="ellipsis")
        with _survived():
            self._live.update(Group(line, bar), refresh=True)


@contextlib.contextmanager
def _survived() -> Iterator[None]:
    """Go on if there is nobody any more to show anything to: a terminal that was closed, a pipe without a reader."""
    with contextlib.suppress(OSError):
        yield


def _describe(step: Step, now: Now, figures: Figures) -> str:
    seconds = min(now.elapsed, step.end) - step.begin
    parts = (
        step.label,
        _plural(now.clients, "client"),
        _plural(now.task_runners, "task runner"),
        f"{figures.served / seconds if seconds > 0 else 0.0:.1f} requests/s",
        f"p50 {figures.p50_ms:.1f} ms",
        f"p95 {figures.p95_ms:.1f} ms" if figures.served >= ENOUGH_FOR_P95 else "",
        f"{figures.refused} refused",
        f"{figures.failed} failed" if figures.failed else "",
    )
    return " | ".join(filter(None, parts))


def _plural(number: int | None, noun: str) -> str:
    return f"{'?' if number is None else number} {noun}{'' if number == 1 else 's'}"


def _minutes(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole // 60}:{whole % 60:02d} min"


def summary(tally: Tally, seconds: float) -> Table:
    """Make the table at the end of a run."""
    table = Table(title="Requests", title_justify="left")
    table.add_column("status")
    for heading in ("requests", "per second", "p50 (ms)", "p95 (ms)", "max (ms)"):
        table.add_column(heading, justify="right")
    for name, times in (("ok, warm", tally.warm_ms), ("ok, cold start", tally.cold_ms)):
        if times:
            p95 = f"{percentile(times, 95):.1f}" if len(times) >= ENOUGH_FOR_P95 else ""
            p50, longest = f"{percentile(times, 50):.1f}", f"{max(times):.1f}"
            table.add_row(name, str(len(times)), f"{len(times) / seconds:.2f}", p50, p95, longest)
    for status, number in sorted(tally.by_status.items()):
        if status != "ok":
            table.add_row(status, str(number), f"{number / seconds:.2f}", "", "", "")
    total = tally.by_status.total()
    table.add_row("all", str(total), f"{total / seconds:.2f}", "", "", "", style="bold")
    return table
