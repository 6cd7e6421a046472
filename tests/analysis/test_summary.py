"""What the page says first of each run."""

from dataclasses import replace
from pathlib import Path

from made_runs import closed_loop, request, write_requests

from kaas.analysis import runs, summary
from kaas.analysis.judging import HOLDS


def test_a_whole_run_is_told_in_a_few_words(tmp_path: Path) -> None:
    closed_loop(tmp_path)
    (run,) = runs.find_runs(tmp_path)

    told = summary.summary([run])["task-1"]

    assert told[:10].to_dict() == {
        "began": "2023-11-14 22:13:20 UTC",
        "lasted": f"{run.duration:.0f} s",
        "on": "a host",
        "whole": "yes",
        "requests": str(len(run.requests)),
        "served": str(len(run.requests)),
        "refused": "0",
        "failed": "0",
        "warm completion time, p50 and p95": told["warm completion time, p50 and p95"],
        "cold starts": "3",
    }
    assert told["warm completion time, p50 and p95"].endswith(" ms")
    assert told["Each task runner that is booted costs one cold start."] == f"✓ {HOLDS}"


def test_what_is_not_known_is_a_dash_and_a_run_that_broke_off_is_not_whole(tmp_path: Path) -> None:
    write_requests(tmp_path, "task-1", [request(0, 5, "rejected"), request(1, 5, "timeout")])
    (run,) = runs.find_runs(tmp_path)
    ramp = {"Minimum parallel requests": "1", "Maximum parallel requests": "9", "Step size": "1", "Interval": "5"}

    told = summary.summary([replace(run, timed=False, parameters=ramp)])["task-1"]

    assert told[["began", "lasted", "on"]].tolist() == ["-"] * 3
    assert told["warm completion time, p50 and p95"] == "- and -"
    assert told[["served", "refused", "failed"]].tolist() == ["0", "1", "1"]
    assert told["whole"] == "no: see below"
    assert set(told[10:]) == {"? cannot be told"}


def test_a_script_says_the_main_things_in_lines_that_fit_a_terminal(tmp_path: Path) -> None:
    closed_loop(tmp_path)
    (run,) = runs.find_runs(tmp_path)
    told = summary.summary([run])

    lines = summary.in_short(told).splitlines()

    assert lines[0] == f"task-1: {run.duration:.0f} s"
    assert lines[1] == f"  requests: {len(run.requests)}, refused: 0, failed: 0, cold starts: 3"
    assert lines[2] == f"  warm completion time, p50 and p95: {told['task-1'].iloc[8]}"
    verdicts = [text.split(": ") for text in lines[3].removeprefix("  the paper's claims: ").split(", ")]
    assert sum(int(number) for _, number in verdicts) == 8
    assert len(lines) == 4


def test_a_script_says_that_a_run_is_not_whole(tmp_path: Path) -> None:
    write_requests(tmp_path, "task-1", [request(0), request(1)])
    (run,) = runs.find_runs(tmp_path)
    ramp = {"Minimum parallel requests": "1", "Maximum parallel requests": "9", "Step size": "1", "Interval": "5"}

    said = summary.in_short(summary.summary([replace(run, parameters=ramp)]))

    assert said.splitlines()[-1] == "  the run is not whole: the page says what is missing"
