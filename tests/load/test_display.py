"""What a load shows: on terminals of any width, in a file, and on a terminal that is held."""

import contextlib
import io
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from support import LIMIT

from kaas import ROOT
from kaas.load.display import Display, Now
from kaas.load.pacer import Step
from kaas.load.tally import Figures, Tally
from kaas.outlet import Outlet
from kaas.ramp import Ramp
from kaas.row import Row

RAMP = Ramp(1, 48, 1, 10.0)
LAST = Step("step 48/48", 470.0, 480.0, 48)
FIGURES = Figures(12345, 678, 0, 4321.0, 12345.6)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Our end of a terminal, and a stream to the other one; nobody reads what is shown before it is asked for."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")

    def hold(self) -> None:
        """Let it take no more, as after Ctrl-S."""
        os.set_blocking(self.stream.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while os.write(self.stream.fileno(), b"." * 100):
                pass
        os.set_blocking(self.stream.fileno(), True)

    def read(self) -> bytes:
        """Give some of what is shown, if there is anything."""
        return os.read(self._ours, 65536) if select.select([self._ours], [], [], 0.05)[0] else b""

    def shown(self) -> str:
        """Give all that was shown."""
        self.stream.close()
        shown = b""
        with contextlib.suppress(OSError):  # all is read
            while data := self.read():
                shown += data
        return shown.decode()

    def close(self) -> None:
        """Close the window."""
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Terminal]]:
    """Open a terminal of so many columns."""
    with contextlib.ExitStack() as opened:

        def make(columns: int) -> Terminal:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("TERM", "xterm")
            for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
                monkeypatch.delenv(name, raising=False)
            made = Terminal()
            opened.callback(made.close)
            return made

        yield make


def show_all(stream: TextIO, figures: Figures = FIGURES) -> None:
    """Show a run in its last step, that step's end, and the sums."""
    tally = Tally()
    for status, error in (("ok", ""), ("rejected", ""), ("failed", "boom")):
        tally.add(Row(0.0, 1.0, 20.0, 0.0, False, 0, 48, status=status, error=error), 0.5)
    display = Display(stream, RAMP)
    with display:
        display.show(LAST, Now(475.0, 48, 12), lambda: figures)
        display.keep(LAST, Now(480.0, 48, 12), figures)
    display.show_sums(tally, 480.0)
    display.close()


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (60, ["refused", "failed", "served/s", "p50 ms"]),
        (80, ["refused", "failed", "served/s", "p50 ms", "p95 ms"]),
        (200, ["refused", "failed", "served/s", "p50 ms", "p95 ms"]),
    ],
)
def test_on_a_narrow_terminal_what_was_refused_and_failed_is_shown_and_no_line_is_wrapped(
    terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch, columns: int, names: list[str]
) -> None:
    monkeypatch.setattr(Outlet, "is_behind", False)  # so that the live line is shown however slowly all before it is
    window = terminal(columns)
    show_all(window.stream)
    lines = _CONTROL.sub("", window.shown()).replace("\r", "\n").split("\n")

    assert max(map(len, lines)) <= columns
    headings = next(line for line in lines if line.startswith("step"))
    assert re.findall(r"refused|failed|served/s|p\d\d ms", headings) == names
    row = next(line for line in lines if line.startswith("48/48"))
    assert row.split()[:6] == ["48/48", "48", "12", "678", "0", "2469.0"]


def test_red_is_shown_only_if_something_is_wrong(
    terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outlet, "is_behind", False)
    grey = "90"  # what is left of the bar
    well, badly = terminal(80), terminal(80)
    show_all(well.stream)
    show_all(badly.stream, FIGURES._replace(failed=1))

    assert set(re.findall(r"\x1b\[([\d;]*)m", well.shown())) <= {"", "0", "39", grey}
    assert "\x1b[31m" in badly.shown()


def test_a_file_holds_plain_words_without_boxes_or_padding(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w", encoding="utf-8") as file:
        show_all(file, FIGURES._replace(failed=3))

    assert (tmp_path / "said").read_text(encoding="utf-8").splitlines() == [
        "1 to 48 clients, 8 min in all",
        "step 48/48: clients 48, task runners 12, refused 678, failed 3, served/s 1234.5, p50 4321.0 ms, "
        "p95 12345.6 ms",
        "ok, warm: requests 1, per second 0.00, p50 20.0 ms, max 20.0 ms",
        "failed: requests 1, per second 0.00",
        "rejected: requests 1, per second 0.00",
        "all: requests 3, per second 0.01",
    ]


def test_a_terminal_that_is_held_holds_up_nobody_and_shows_the_lines_that_stay_when_it_is_released(
    terminal: Callable[[int], Terminal],
) -> None:
    window = terminal(80)
    window.hold()
    display = Display(window.stream, RAMP)

    def show() -> None:
        with display:
            for elapsed in range(470, 480):
                display.show(LAST, Now(float(elapsed), 48, 12), lambda: FIGURES)
            display.keep(LAST, Now(480.0, 48, 12), FIGURES)

    showing = threading.Thread(target=show, daemon=True)
    showing.start()
    showing.join(LIMIT)
    held = showing.is_alive()

    ending = threading.Thread(target=display.close, daemon=True)
    ending.start()  # it waits for who reads now
    shown = io.BytesIO()
    while ending.is_alive() or showing.is_alive():
        shown.write(window.read())
    assert not held
    assert "48/48" in shown.getvalue().decode() + window.shown()


def test_what_draws_on_terminals_is_not_imported_for_a_file() -> None:
    program = "import sys, kaas.load.generator; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
