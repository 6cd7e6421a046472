"""What programs are told of a results folder."""

import json
from pathlib import Path

import pytest
from made_runs import closed_loop, request, write_requests

from kaas import expectations
from kaas.analysis import facts, narrow, report, runs, tables
from kaas.expectations import FIGURES


def test_the_summary_has_the_tables_numbers_under_names_that_stay(tmp_path: Path) -> None:
    closed_loop(tmp_path)
    (run,) = found = runs.find_runs(tmp_path)

    tables.write(found, tmp_path / "out")

    told = json.loads((tmp_path / "out" / facts.NAME).read_text())
    assert set(told) == {"format", "version", "program", "units", "repeats", "pooled"}
    assert (told["format"], told["version"]) == ("kaas-summary", 1)
    (repeat,) = told["repeats"]
    assert set(repeat) == {
        *("task", "experiment", "repeat", "begin", "machine", "whole", "figures", "statuses", "boots", "verdicts"),
        *("findings", "notes", "parameters", "files"),
    }
    numbers = tables.per_repeat(found).loc["task-1"]
    assert (
        list(repeat["figures"])
        == list(FIGURES)
        == [
            *(
                "requests",
                "ok",
                "refused",
                "failed",
                "cold_starts",
                "duration",
                "p50",
                "p95",
                "p99",
                "cold_p50",
                "cold_p95",
            ),
            *(
                "cold_p99",
                "throughput",
                "last_throughput",
                "energy",
                "energy_per_request",
                "claims_not_held",
                "findings",
            ),
        ]
    )
    assert repeat["figures"]["p95"] == numbers["warm completion time, p95 [ms]"]
    assert repeat["figures"]["energy"] == numbers["energy [J]"]
    assert repeat["statuses"] == {"ok": len(run.requests)}
    assert [boot["gpu"] for boot in repeat["boots"]] == [0, 1, 2]
    assert set(repeat["verdicts"]) == {
        *("task_runners", "one_cold_start", "bounded", "throughput", "all_used", "needed", "works", "serial")
    }
    assert repeat["verdicts"]["one_cold_start"]["verdict"] == "holds"
    assert {file["name"] for file in repeat["files"]} == {path.name for path in run.files}
    assert told["pooled"]["task"]["throughput"]["mean"] == pytest.approx(repeat["figures"]["throughput"])


def test_what_was_found_wrong_is_told_and_an_earlier_summary_is_removed_but_no_other_file(tmp_path: Path) -> None:
    write_requests(tmp_path, "task-1", [request(0, 5), request(1, 5, "timeout"), request(1, 5, "timeout")])
    out = tmp_path / "out"
    tables.write(runs.find_runs(tmp_path), out)

    (repeat,) = json.loads((out / facts.NAME).read_text())["repeats"]
    assert repeat["figures"]["findings"] == len(repeat["findings"]) > 0
    assert repeat["figures"]["failed"] == repeat["statuses"]["timeout"]
    assert repeat["notes"]

    report.clear(out)
    assert not list(out.iterdir())
    (out / facts.NAME).write_text('{"mine": true}')
    report.clear(out)
    assert (out / facts.NAME).exists()


def test_repeats_are_enough_once_the_interval_is_narrow(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_requests(tmp_path, f"task-{number}", [request(at, 500 + number) for at in range(40)])
    found = runs.find_runs(tmp_path)

    (told,) = narrow.said(tables.pooled(found), expectations.read_widths("p50 1%"))
    assert told == (True, "after 3 repeats the 95 % interval of p50 is +-0.495 % of its mean (wanted: 1 %)")
    (told,) = narrow.said(tables.pooled(found), expectations.read_widths("p50 0.4%"))
    assert not told[0]
    (told,) = narrow.said(tables.pooled(found[:1]), expectations.read_widths("energy 5%"))
    assert told == (False, "after 0 repeats the 95 % interval of energy is not known (wanted: 5 %)")
