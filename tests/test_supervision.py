"""Programs that a script starts end with it, whenever and however it ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import StandIns
from support import KERNELS, LIMIT, SERVER, Marked, eventually, run_here

from kaas import ROOT, supervision
from kaas.orders import PARENT_CHECK, Orders

# What autoscale.sh does: it names itself to what it starts.
SCRIPT = '"$@" --supervised $$ & wait'
WRAPPED = '"$@" --supervised $$; true'  # bash would otherwise become what it runs
CLIENT = """
import time
def run_client(arg):
    time.sleep(0.01)
    return 1.0, 1.0, 0.0, False
"""
UUIDS = ("GPU-stand-in-0", "GPU-stand-in-1")
PROGRAMS = ("server", "load", "monitor", "guard")


class Programs:
    """The programs of a run, each to be started by a script of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nvidia = StandIns(folder / "nvidia", gpus=2)
        self.marked = Marked(self.nvidia.environment)
        (folder / "client.py").write_text(CLIENT)
        self._said = folder / "said"

    def line(self, name: str) -> list[str]:
        """Give a program's command line."""
        guard = [str(ROOT / "scripts" / "gpu_guard.py"), "hold", "--ready", "ready", "--logs", ".", *UUIDS]
        ramp = ["--min-parallel", "1", "--max-parallel", "1", "--interval", "600"]
        load = ["--input", "1", "--experiment-name", "x", "--task-name", "t", *ramp]
        lines = {
            "server": [str(SERVER), str(KERNELS / "echo.py"), "--port", "0"],
            "load": [str(ROOT / "load.py"), "--client", "client.py", "--server", "none", *load],
            "monitor": [str(ROOT / "gpu-monitor.py"), "samples.csv", "--source", "nvidia-smi"],
            "guard": guard,
        }
        return [sys.executable, *lines[name]]

    def start(self, script: str, line: list[str]) -> "subprocess.Popen[bytes]":
        """Start a script that starts a program."""
        with self._said.open("w") as said:
            return subprocess.Popen(
                ["bash", "-c", script, "script", *line],
                cwd=self.folder,
                env=self.marked.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def works(self, name: str) -> bool:
        """Tell whether a program does its work by now."""
        done: dict[str, Callable[[], bool]] = {
            "server": lambda: " listening on " in self.said(),
            "load": lambda: len(self._lines("results-x/t.csv")) > 1,
            "monitor": lambda: len(self._lines("samples.csv")) > 1,
            "guard": (self.folder / "ready").exists,
        }
        return done[name]()

    def said(self) -> str:
        """Read what was said so far."""
        return self._said.read_text()

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    made = Programs(tmp_path)
    yield made
    made.marked.kill()


def assert_all_is_over(programs: Programs) -> None:
    eventually(lambda: not programs.marked.left(), what="nothing of it runs on")
    assert programs.nvidia.modes() == ["Default", "Default"]
    assert not programs.nvidia.folders_left()


@pytest.mark.parametrize("milliseconds", [0, 10, 50, 200, 500, 1500])
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_of_a_program_runs_on_whose_script_is_killed_while_it_starts(
    programs: Programs, name: str, milliseconds: int
) -> None:
    script = programs.start(SCRIPT, programs.line(name))
    time.sleep(milliseconds / 1000)  # not to be safe: it is what the test is about
    script.kill()
    script.wait(LIMIT)
    assert_all_is_over(programs)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_works_until_its_script_is_killed(programs: Programs, name: str) -> None:
    script = programs.start(SCRIPT, programs.line(name))
    eventually(lambda: programs.works(name))
    assert script.poll() is None
    script.kill()
    script.wait(LIMIT)
    assert_all_is_over(programs)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_python_that_is_a_wrapper_comes_between_script_and_program(programs: Programs, name: str) -> None:
    wrapper = programs.folder / "python"
    wrapper.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    script = programs.start(WRAPPED, [str(wrapper), *programs.line(name)[1:]])
    eventually(lambda: programs.works(name) or script.poll() is not None)
    assert script.poll() is None, programs.said()
    script.kill()
    script.wait(LIMIT)
    assert_all_is_over(programs)


def test_a_program_that_is_told_of_a_process_that_is_none_of_its_parents_ends(programs: Programs) -> None:
    script = programs.start('"$@" --supervised 4194304', programs.line("server"))
    assert script.wait(LIMIT) == 0
    assert "the parent process is gone" in programs.said()
    assert_all_is_over(programs)


@pytest.mark.parametrize("name", ["server", "load", "monitor"])
@pytest.mark.parametrize("number", ["", "me", "0", "-1"])
def test_the_process_in_charge_is_a_number(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, name: str, number: str
) -> None:
    monkeypatch.setattr(supervision, "end_with_parent", lambda: None)
    script, *arguments = programs.line(name)[1:]
    done = run_here(Path(script), *arguments, "--supervised", number)
    assert (done.returncode, "argument --supervised" in done.stderr) == (2, True), done.stderr


def test_parents_and_their_parents_are_there_and_nobody_else() -> None:
    assert not supervision.is_gone(os.getppid())
    child = [sys.executable, "-c", f"from kaas import supervision; print(supervision.is_gone({os.getppid()}))"]
    assert subprocess.check_output(child, cwd=ROOT, text=True) == "False\n"
    assert supervision.is_gone(os.getpid())
    assert supervision.is_gone(4194304)


@pytest.mark.parametrize("found_first", [True, False], ids=["it is found first", "the system says so first"])
def test_that_the_process_in_charge_is_gone_is_one_order(monkeypatch: pytest.MonkeyPatch, found_first: bool) -> None:
    async def orders() -> list[str]:
        found = Orders(os.getppid())
        await asyncio.sleep(0)
        monkeypatch.setattr(supervision, "is_gone", lambda supervisor: True)
        if found_first:
            given = [await found.next()]
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            given = [await found.next()]
        with contextlib.suppress(TimeoutError):
            given.append(await asyncio.wait_for(found.next(), 2 * PARENT_CHECK))
        os.kill(os.getpid(), signal.SIGTERM)
        return [*given, await found.next()]

    assert asyncio.run(orders()) == ["the parent process is gone", "told to end"]
