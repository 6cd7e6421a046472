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
