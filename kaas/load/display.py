"""What a run shows while it goes on (a live line on a terminal, plain lines elsewhere) and the table at its end."""

from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kaas.load.ramp import Ramp
from kaas.load.tally import Tally, percentile


class Now(NamedTuple):
    """How a run stands; `task_runners` is None where it is not known."""

    elapsed: float
    clients: int
    task_runners: int | None


class Display:
    """Shows the progress of one run."""

    def __init__(self, console: Console, ramp: Ramp) -> None:
        self._console = console
        self._ramp = ramp
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._line = ""  # how the step that is now shown stood when it was last looked at
        self._step = 0

    def __enter__(self) -> Self:
        ramp = self._ramp
        self.say(
            f"{ramp.min_clients} to {ramp.max_clients} clients, {ramp.steps} steps of {ramp.interval:g} s: "
            f"{_minutes(ramp.duration)} in all"
        )
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._line:
            self.say(self._line)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, now: Now, tally: Tally) -> None:
        """Show how the run stands: live on a terminal, and for each step that is over one line that stays."""
        step = min(int(now.elapsed // self._ramp.interval), self._ramp.steps - 1)
        if step != self._step:
            self.say(self._line)
            self._step = step
        self._line = self._describe(now, tally)
        if self._live is not None:
            bar = ProgressBar(total=self._ramp.duration, completed=min(now.elapsed, self._ramp.duration))
            left = f"{_minutes(self._ramp.duration - now.elapsed)} left"
            line = Text(f"{left} | {self._line}", no_wrap=True, overflow="ellipsis")
            self._live.update(Group(line, bar), refresh=True)

    def _describe(self, now: Now, tally: Tally) -> str:
        rate, median, high = tally.recent(now.elapsed)
        parts = (
            f"step {self._step + 1}/{self._ramp.steps}",
            _plural(now.clients, "client"),
            _plural(now.task_runners, "task runner"),
            f"{rate:.1f} requests/s",
            f"p50 {median:.1f} ms",
            f"p95 {high:.1f} ms",
            f"{tally.by_status['rejected']} refused",
            f"{tally.failed} failed" if tally.failed else "",
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
            figures = (percentile(times, 50), percentile(times, 95), max(times))
            table.add_row(name, str(len(times)), f"{len(times) / seconds:.2f}", *(f"{time:.1f}" for time in figures))
    for status, number in sorted(tally.by_status.items()):
        if status != "ok":
            table.add_row(status, str(number), f"{number / seconds:.2f}", "", "", "")
    total = tally.by_status.total()
    table.add_row("all", str(total), f"{total / seconds:.2f}", "", "", "", style="bold")
    return table
