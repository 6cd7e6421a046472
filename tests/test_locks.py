"""A results folder belongs to one run at a time, by what experiment.sh and kaas.locks do together."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LIMIT, Marked, eventually

from kaas import ROOT, locks
from kaas.locks import Holder

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]
# Where a run is process 2 or so: a number that nobody has in a namespace of which it would be process 1.
BELOW_ANOTHER = [*NAMESPACE, "sh", "-c", '"$@"; exit $?', "sh"]
# A run that takes its folder and then waits for a line, or its end.
RUN = f"""
set -euo pipefail
ROOT=$PWD
source {shlex.quote(str(ROOT / "scripts" / "experiment.sh"))}
EXPERIMENT=x
trap on_exit EXIT
trap 'on_signal 143' TERM
make_folder
echo ours
read -r line || true
"""
ELSEWHERE = Holder("node7", "another-boot", "pid:[1]", 1, "17", "2026-11-28 01:02:03")

skip_without_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="this user, or system, makes no process namespaces",
)


class Runs:
    """Runs in one folder."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.file = folder / ".results-x.lock"
        python_path = {"KAAS_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        self.marked = Marked(python_path | environment)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *before: str, script: str = RUN) -> "subprocess.Popen[str]":
        run = subprocess.Popen(
            [*before, "bash", "-c", script],
            cwd=self.folder,
            env=self.marked.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(run)
        return run

    def end(self) -> None:
        """End what a test that failed has left."""
        self.marked.kill()
        for run in self.started:
            run.wait(LIMIT)
            for stream in (run.stdin, run.stdout, run.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def refused(self) -> str:
        """Start a run that must not have the folder; give the line that it says."""
        run = self.start()
        assert not has_folder(run)
        _, said = run.communicate(timeout=LIMIT)
        assert run.returncode == 2, said
        (line,) = said.splitlines()
        assert "another run is writing to" in line
        assert str(self.folder / "results-x") in line
        return str(line)

    def write(self, holder: Holder, touched: float = 0.0) -> None:
        """Leave the file of a holder, touched some seconds ago."""
        self.file.write_text(json.dumps(holder._asdict()) + "\n")
        os.utime(self.file, (time.time() - touched, time.time() - touched))


def has_folder(run: "subprocess.Popen[str]") -> bool:
    """Wait until a run has the folder, or has ended without."""
    assert run.stdout is not None
    return any(line == "ours\n" for line in iter(run.stdout.readline, ""))


def end(run: "subprocess.Popen[str]") -> None:
    _, said = run.communicate("\n", timeout=LIMIT)
    assert (run.returncode, said) == (0, "")


@pytest.fixture
def start_runs(tmp_path: Path) -> Iterator[Callable[..., Runs]]:
    made: list[Runs] = []

    def make(**environment: Any) -> Runs:
        made.append(Runs(tmp_path, **environment))
        return made[-1]

    yield make
    for runs in made:
        runs.end()


@pytest.fixture(params=["locks", "no locks"])
def runs(start_runs: Callable[..., Runs], request: pytest.FixtureRequest) -> Runs:
    """Give runs in a folder whose file system has locks, and in one that has none."""
    return start_runs(**request.getfixturevalue("without_locks") if request.param == "no locks" else {})


def test_of_two_runs_started_at_once_one_has_the_folder_and_the_other_is_told_whose_it_is(runs: Runs) -> None:
    for _ in range(5):
        pair = [runs.start(), runs.start()]
        has = [has_folder(run) for run in pair]
        assert sorted(has) == [False, True]
        winner, loser = pair if has[0] else reversed(pair)
        _, told = loser.communicate(timeout=LIMIT)
        assert loser.returncode == 2
        assert re.search(
            rf"another run is writing to .*results-x \(process {winner.pid} on {os.uname().nodename},", told
        )
        end(winner)
        assert [path.name for path in runs.folder.glob(".*")] == [], "nothing but data is left behind"


def test_a_run_that_was_killed_keeps_nobody_from_its_folder(runs: Runs) -> None:
    run = runs.start()
    assert has_folder(run)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    (runs.folder / "results-x" / "precious").touch()
    after = runs.start()
    assert has_folder(after)
    end(after)
    assert [path.parent.name for path in runs.folder.glob("*/precious")] != ["results-x"]


def test_what_a_killed_run_has_started_keeps_the_folder_until_it_has_ended(start_runs: Callable[..., Runs]) -> None:
    runs = start_runs()
    run = runs.start(script=RUN.replace("echo ours", "sleep 600 & echo ours"))
    assert has_folder(run)
    run.kill()
    run.wait()
    eventually(lambda: f"process {run.pid} on" in (line := runs.refused()) and "which was killed" in line)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    after = runs.start()
    assert has_folder(after)
    end(after)


@skip_without_namespaces
@pytest.mark.parametrize("where", [NAMESPACE, BELOW_ANOTHER])
def test_a_run_in_another_process_namespace_is_alive_whatever_its_number(runs: Runs, where: list[str]) -> None:
    first = runs.start(*where)
    assert has_folder(first)
    precious = runs.folder / "results-x" / "precious"
    precious.touch()
    second = runs.start(*NAMESPACE)
    assert not has_folder(second)
    _, said = second.communicate(timeout=LIMIT)
    assert (second.returncode, "another run is writing to" in said) == (2, True), said
    assert precious.exists()
    end(first)


@skip_without_namespaces
def test_a_container_that_is_started_again_is_not_kept_waiting_by_itself(start_runs: Callable[..., Runs]) -> None:
    runs = start_runs()
    first = runs.start(*NAMESPACE)
    assert has_folder(first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    again = runs.start(*NAMESPACE)
    assert has_folder(again)
    end(again)


def test_a_run_on_another_machine_is_alive_while_it_touches_its_file_and_no_longer(runs: Runs) -> None:
    runs.write(ELSEWHERE)
    assert "(process 1 on node7, since 2026-11-28 01:02:03" in runs.refused()
    assert runs.file.exists()
    runs.write(ELSEWHERE, touched=locks.UNTOUCHED + 5)
    run = runs.start()
    assert has_folder(run)
    written = runs.file.stat().st_mtime
    assert json.loads(runs.file.read_text())["process"] == run.pid
    eventually(lambda: runs.file.stat().st_mtime > written, what="it touches the file")
    end(run)


def test_a_number_that_is_somebody_elses_by_now_keeps_nobody_from_the_folder(runs: Runs) -> None:
    runs.write(Holder.of(os.getpid())._replace(started="1"))
    run = runs.start()
    assert has_folder(run)
    end(run)


def test_a_dead_process_that_nobody_has_reaped_is_not_alive(runs: Runs) -> None:
    dead = subprocess.Popen(["sleep", "600"])
    holder = Holder.of(dead.pid)
    assert holder.runs
    dead.kill()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    runs.write(holder)
    run = runs.start()
    assert has_folder(run)
    end(run)
    dead.wait()


@pytest.mark.parametrize("text", ["", "1\n", "{}", "null", '{"host": "x"}', '["a"]', "\x00" * 5000])
def test_a_file_that_names_nobody_keeps_nobody_from_the_folder(runs: Runs, text: str) -> None:
    runs.file.write_text(text)
    run = runs.start()
    assert has_folder(run)
    end(run)
