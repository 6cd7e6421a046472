"""A terminal that is closed ends a load in order, and nothing is lost; under nohup it ends nothing."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from project import PLAIN, Project
from support import LIMIT, Marked, eventually, exists

from kaas import ROOT, description, results

CLIENT = "import time\ndef run_client(arg):\n    time.sleep(0.01)\n    return 1.0, 1.0, 0.0, False\n"
LONG: dict[str, Any] = PLAIN | {"INTERVAL": 600, "MIN_MPL": 2, "MAX_MPL": 2, "AVAILABLE_GPUS": 1}
# Has the terminal for its own, and starts what it is told to.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A terminal with a program that leads its session."""

    def __init__(self, line: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self._ours, theirs = os.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ON_TERMINAL, *line],
                cwd=cwd,
                env=environment | {"TERM": "xterm"},
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    def close(self) -> None:
        """Close the window."""
        with contextlib.suppress(OSError):
            os.close(self._ours)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a load without a server on a terminal of its own, or what `before` makes of it."""
    (tmp_path / "client.py").write_text(CLIENT)
    marked = Marked()
    terminals: list[Terminal] = []

    def make(*before: str) -> Terminal:
        names = ["--input", "1", "--experiment-name", "x", "--task-name", "t", "--server", "none"]
        ramp = ["--min-parallel", "1", "--max-parallel", "1", "--interval", "600"]
        line = [sys.executable, str(ROOT / "load.py"), "--client", "client.py", *names, *ramp]
        terminals.append(Terminal([*before, *line], tmp_path, marked.environment))
        rows = tmp_path / "results-x" / "t.csv"
        eventually(lambda: rows.exists() and results.read_rows(rows))
        return terminals[-1]

    try:
        yield make
        for terminal in terminals:
            terminal.process.wait(LIMIT)
        marked.assert_nothing_left()
    finally:
        marked.kill()
        for terminal in terminals:
            terminal.close()
            terminal.process.wait(LIMIT)


def test_a_load_whose_terminal_is_closed_ends_in_order(start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start()
    terminal.close()
    assert terminal.process.wait(LIMIT) == 130
    described = description.read(tmp_path / "results-x" / "t.md")
    assert described["Ended"] == "the terminal was closed"
    assert described["Requests ok"] == str(len(results.read_rows(tmp_path / "results-x" / "t.csv")))


def test_a_terminals_end_that_is_told_twice_is_no_second_order(start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start()
    client = tmp_path / "results-x" / "t.csv"
    for _ in range(5):
        terminal.process.send_signal(signal.SIGHUP)
    assert terminal.process.wait(LIMIT) == 130
    assert {row.status for row in results.read_rows(client)} == {"ok"}
    assert "Requests failed" not in description.read(tmp_path / "results-x" / "t.md")


def test_under_nohup_a_load_outlives_its_terminal(start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start("nohup")
    terminal.close()
    rows = tmp_path / "results-x" / "t.csv"
    number = len(results.read_rows(rows))
    eventually(lambda: len(results.read_rows(rows)) > number + 20)
    assert exists(terminal.process.pid)
    terminal.process.terminate()
    assert terminal.process.wait(LIMIT) == 130
    assert description.read(tmp_path / "results-x" / "t.md")["Ended"] == "told to end"


def test_a_script_whose_terminal_is_closed_ends_everything_in_order(project: Project) -> None:
    environment = project.marked.environment | {name: str(value) for name, value in LONG.items()}
    terminal = Terminal(["bash", project.script], project.folder, environment | {"PORT": str(project.port)})
    try:
        eventually(project.has_rows, limit=2 * LIMIT)
        group = os.getpgid(terminal.process.pid)
        members = [p.pid for p in psutil.process_iter() if os.getpgid(p.pid) == group]
        assert len(members) >= 4, "script, server, monitor and load"
        terminal.close()
        assert terminal.process.wait(2 * LIMIT) == 129
    finally:
        terminal.close()
    described = description.read(next(project.results.glob("*.md")))
    assert described["Ended"] == "told to end"
    assert {row.status for row in project.rows()} == {"ok"}
    assert [event["event"] for event in project.events()][-1] == "stopped"
    assert project.marked.left() == []
    assert not list(project.results.glob(".*"))
