"""The benchmark programs run, in small, and report what they promise. What they measure is not a test's business."""

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LIMIT, Marked, StartServer, eventually

from kaas import ROOT

BENCHMARKS = ROOT / "benchmarks"
PROGRAMS = ("overhead", "cold-start", "load-generator", "memory", "connections", "scaling", "naive-cpu")
WITHOUT_TARGETS = {"naive-cpu"}
LINUX = Path("/proc/self/smaps_rollup").exists()
SOAKING = 8
"""Client processes of the soak."""


@pytest.fixture
def marked() -> Iterator[Marked]:
    marked = Marked({"KAAS_PYTHON": sys.executable})
    try:
        yield marked
        marked.assert_nothing_left()
    finally:
        marked.kill()


def test_all_benchmarks_run_in_small_and_report_what_they_measured(marked: Marked, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [BENCHMARKS / "run", "--quick", "--report", tmp_path / "report.md", "--json", tmp_path / "json"],
        cwd=elsewhere,
        env=marked.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(elsewhere.iterdir()) == []
    report = (tmp_path / "report.md").read_text()
    assert "A smoke run" in report
    for name in PROGRAMS:
        found = json.loads((tmp_path / "json" / f"{name}.json").read_text())
        check(found, name)
        assert f"## {found['title']}\n" in report
    for figure in re.findall(r"!\[.*\]\((.*)\)", report):
        assert (tmp_path / figure).stat().st_size > 0


def check(found: dict[str, Any], name: str) -> None:
    assert (found["quick"], found["rounds"]) == (True, 1)
    assert found["machine"]["CPU"]
    assert found["results"] or (name == "memory" and not LINUX)
    for result in found["results"]:
        assert result["low"] <= result["value"] <= result["high"], result
        assert result["unit"]
        assert result["rounds"] >= 1
        assert (result["met"] is None) == (result["target"] is None)
    assert any(result["target"] for result in found["results"]) == (name not in WITHOUT_TARGETS)
    for table in found["tables"]:
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_interrupted_leaves_nothing_and_says_nothing_more(
    marked: Marked, tmp_path: Path, ended_by: signal.Signals
) -> None:
    said = tmp_path / "said"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, BENCHMARKS / "connections.py", "--rounds", "100"],
            env=marked.environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            # A terminal's Ctrl-C goes to a whole group; here, to the program alone.
            start_new_session=True,
        )
    eventually(lambda: "warm-up" in said.read_text() and len(marked.left()) > 32)
    process.send_signal(ended_by)
    assert process.wait(LIMIT) == 128 + ended_by
    assert all(line.startswith("connections.py: ") for line in said.read_text().splitlines()), said.read_text()


def test_an_interruption_in_the_midst_of_a_fork_is_not_lost() -> None:
    code = """
import os, signal
import common
from multiprocessing import get_context
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    common.start(get_context("fork").Process(target=int))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_of_all_benchmarks_that_is_interrupted_ends_the_program_at_work_and_leaves_nothing(
    marked: Marked, tmp_path: Path, ended_by: signal.Signals
) -> None:
    said, scratch = tmp_path / "said", tmp_path / "scratch"
    scratch.mkdir()
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [BENCHMARKS / "run", "--report", tmp_path / "report.md"],
            env=marked.environment | {"TMPDIR": str(scratch)},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # the signal is for the script alone
        )
    eventually(lambda: "warm-up" in said.read_text())
    process.send_signal(ended_by)
    assert process.wait(LIMIT) == 128 + ended_by
    marked.assert_nothing_left()
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "report.md").exists()
    assert all(line.startswith(("== ", "overhead.py: ")) for line in said.read_text().splitlines()), said.read_text()


@pytest.mark.parametrize("connections", ["one", "many"])
def test_a_request_counts_whose_reply_comes_long_after_the_window_in_which_it_was_sent(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: str
) -> None:
    kernel = tmp_path / "stalls.py"
    kernel.write_text("import time\n\n\ndef call(payload):\n    time.sleep(0.6)\n    return payload\n")
    address = start_server(kernel, "-m", "1").address
    monkeypatch.syspath_prepend(BENCHMARKS)
    clients = importlib.import_module("clients")

    def window() -> tuple[int, int]:
        now = time.perf_counter_ns()
        return now, now + 500_000_000

    times, replies = clients._by_kaas(address, window) if connections == "one" else clients._many(address, 1)(window)
    assert len(times) == 1
    assert times[0] >= 600_000_000
    assert replies == 0


@pytest.mark.skipif(not LINUX, reason="the soak needs Linux")
@pytest.mark.parametrize("interrupted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_soak_finds_nothing_wrong_to_its_end_or_until_it_is_interrupted(
    marked: Marked, tmp_path: Path, interrupted: bool
) -> None:
    report, said = tmp_path / "report.json", tmp_path / "said"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, BENCHMARKS / "soak.py", "60" if interrupted else "0.05", "--seed", "1", "--json", report],
            env=marked.environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    if interrupted:
        eventually(lambda: len(marked.left()) == 1 + SOAKING, what="the soak's clients are at work")
        process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 0, f"{said.read_text()} {report.read_text() if report.exists() else ''}"
    found = json.loads(report.read_text())
    assert [result["met"] for result in found["results"] if result["target"]].count(True) >= 13
    asked = {row[0]: row[1] for row in tables(found)["Invocations, as the clients saw them"]}
    assert all(asked[server] > 0 for server in ("faulty", "matrix")) or interrupted
    assert {row[1] for row in tables(found)["In calm phases"]} == {"begin", "after warm-up", "end"}


def test_a_soak_that_is_interrupted_while_it_forks_a_client_ends_in_order(marked: Marked) -> None:
    code = """
import os, runpy, signal, sys
number, pid = [signal.SIGINT], os.getpid()
os.register_at_fork(after_in_parent=lambda: number and os.kill(pid, number.pop()))
sys.argv = ["soak.py", "60", "--seed", "1"]
runpy.run_path("soak.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=BENCHMARKS,
        env=marked.environment | {"PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, "KeyboardInterrupt" in done.stderr) == (0, False), done.stderr


def tables(found: dict[str, Any]) -> dict[str, list[list[Any]]]:
    return {table["title"]: table["rows"] for table in found["tables"]}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--rounds", "4"), "a median of less than 5"),
        (("--json", "nowhere/file.json"), "there is no such folder"),
    ],
)
def test_what_cannot_be_measured_or_written_is_refused_in_one_line(arguments: tuple[str, ...], reason: str) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "cold_start.py", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert reason in done.stderr
