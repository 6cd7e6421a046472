import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kaas import ROOT, events, results
from kaas.analysis import runs, series, summary
from kaas.analysis.runs import Run
from kaas.errors import ResultsError
from kaas.events import Event
from kaas.results import Outcome, Row, RunFiles

T0 = 1_700_000_000.0
PUBLISHED = ROOT.parent / "shared" / "paper-results"
MONITORING_HEADER = "timestamp,gpu,bus_id,uuid,utilization_pct,power_w,energy_j,memory_mib,sm_clock_mhz,temperature_c\n"


def request(
    at: float,
    outer_ms: float = 100.0,
    *,
    copy: int = 0,
    concurrency: int = 1,
    cold: bool = False,
    status: str = "ok",
    **more: Any,
) -> Row:
    outcome = Outcome(outer_ms, outer_ms / 2, 1.0, cold, status, **more)
    return results.make_row(T0 + at, copy, concurrency, outcome)


def write_requests(folder: Path, task: str, rows: Iterable[Row]) -> RunFiles:
    files = RunFiles(folder, task)
    results.create_requests(files.requests)
    with files.requests.open("ab") as file:
        file.writelines(results.encode_row(row) for row in rows)
    return files


def write_run(
    folder: Path,
    task: str,
    rows: Iterable[Row],
    happened: Iterable[Event] = (),
    samples: Iterable[tuple[float, int, float | None]] = (),
) -> RunFiles:
    files = write_requests(folder, task, rows)
    results.begin_description(files.description, files.requests, {"Client": "a client"}, {"Host": "a host"})
    log = folder / f"{task}-server.log"
    log.write_text("".join(events.format(event) + "\n" for event in happened))
    events.sort_log(log, files.serverlogs)
    lines = [
        f"{T0 + at},{gpu},virtual:{gpu},,{'' if percent is None else percent},,,,,\n" for at, gpu, percent in samples
    ]
    files.monitoring.write_text(MONITORING_HEADER + "".join(lines))
    return files


def read_one(folder: Path) -> Run:
    (run,) = runs.find_runs(folder)
    return run


def test_a_run_is_read_with_its_times_counted_from_its_first_request(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "task-1",
        [request(2, copy=1, concurrency=2, gpu=0, worker=3), request(0, cold=True)],
        [Event("booted", T0 + 0.5, gpu=0, num_workers=4)],
        [(-1, 0, None), (1, 0, 50)],
    )

    run = read_one(tmp_path)

    assert (run.task, run.notes, run.duration) == ("task-1", (), 2.1)
    assert run.parameters["Client"] == "a client"
    assert run.requests["elapsed"].tolist() == [0.0, 2.0]
    assert run.requests["cold_start"].tolist() == [True, False]
    assert run.requests["worker"].tolist() == [pd.NA, 3]
    assert run.requests["error"].tolist() == ["", ""]
    assert run.events[["event", "gpu", "elapsed"]].to_numpy().tolist() == [["booted", 0, 0.5]]
    assert run.monitoring["elapsed"].tolist() == [-1.0, 1.0]
    assert run.monitoring["utilization_pct"].isna().tolist() == [True, False]
    assert run.monitoring["power_w"].isna().all()


def test_repeats_come_in_natural_order_and_other_files_are_no_runs(tmp_path: Path) -> None:
    for repeat in (10, 1, 2):
        write_run(tmp_path, f"task-{repeat}", [request(0)])
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "task-1.log").write_text("")

    assert [run.task for run in runs.find_runs(tmp_path)] == ["task-1", "task-2", "task-10"]


def test_a_missing_file_is_an_empty_frame_of_the_same_columns_and_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", "task-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    write_requests(tmp_path / "bare", "task-1", [request(0)])
    whole, bare = read_one(tmp_path / "whole"), read_one(tmp_path / "bare")

    assert bare.notes == (
        "task-1.md is missing or empty: the parameters are not known.",
        "task-1-serverlogs.csv is missing: what it would show is left out.",
        "task-1-gpu-monitoring.csv is missing: what it would show is left out.",
    )
    for there, missing in ((whole.events, bare.events), (whole.monitoring, bare.monitoring)):
        assert missing.empty
        assert missing.dtypes.to_dict() == there.dtypes.to_dict()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        (MONITORING_HEADER, "has no rows"),
        ("2023/09/20 09:29:27.465,00000000:15:00.0,0\n", "has another format"),
        (MONITORING_HEADER + "noon,0,,,,,,,,\n", "cannot be read"),
        (MONITORING_HEADER + "1.0,,,,,,,,,\n", "cannot be read"),
    ],
)
def test_unreadable_monitoring_is_noted_and_the_rest_of_the_run_is_read(
    tmp_path: Path, content: str, reason: str
) -> None:
    files = write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0, num_workers=4)])
    files.monitoring.write_text(content)

    run = read_one(tmp_path)

    (note,) = run.notes
    assert note.startswith(f"task-1-gpu-monitoring.csv {reason}")
    assert run.monitoring.empty
    assert series.utilization(run, 1.0).empty
    assert len(run.events) == 1


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_last_line_without_its_end_is_dropped_with_a_note(tmp_path: Path, kept: int) -> None:
    rows = [request(0), request(1)]
    files = write_run(tmp_path, "task-1", rows, [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    with files.requests.open("ab") as file:
        file.write(results.encode_row(request(2))[:kept])

    run = read_one(tmp_path)

    assert run.requests["elapsed"].tolist() == [0.0, 1.0]
    assert run.notes == ("task-1.csv ends in the middle of a line: that line was dropped.",)


@pytest.mark.parametrize("content", ["", ",".join(results.COLUMNS), ",".join(results.COLUMNS) + "\n"])
def test_requests_that_came_to_nothing_are_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "task-1.csv").write_text(content)

    with pytest.raises(ResultsError, match=r"task-1\.csv holds no request: move it away"):
        runs.find_runs(tmp_path)


@pytest.mark.parametrize("row", ["noon,1,1,1,False,0,1", "1,1,1,1,False,,1", "1,1,1,1,perhaps,0,1", "1,,1,1,False,0,1"])
def test_a_malformed_request_is_an_error_of_one_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "task-1.csv").write_text(f"{','.join(list(results.COLUMNS)[:7])}\n{row}\n")

    with pytest.raises(ResultsError, match=r"task-1\.csv is not a file of requests: .+") as caught:
        runs.find_runs(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_or_holds_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no run"):
        runs.find_runs(tmp_path)
    with pytest.raises(ResultsError, match="is not a folder: name a results folder"):
        runs.find_runs(tmp_path / "nowhere")


def test_the_newest_results_are_those_whose_requests_were_written_last(tmp_path: Path) -> None:
    for name, written in (("old", 100), ("new", 300), ("middle", 200)):
        files = write_requests(tmp_path / f"results-{name}", "task-1", [request(0)])
        os.utime(files.requests, (written, written))
    write_requests(tmp_path / "results-begun", "task-1", [])
    (tmp_path / "results-bare").mkdir()

    assert runs.newest_results(tmp_path) == tmp_path / "results-new"


def test_without_results_the_error_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"run \./autoscale-cpu\.sh first"):
        runs.newest_results(tmp_path)


def test_clients_are_steps_that_begin_at_0_and_change_when_the_number_does(tmp_path: Path) -> None:
    rows = [request(at, concurrency=number) for at, number in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 3))]
    write_run(tmp_path, "task-1", rows)

    assert series.clients(read_one(tmp_path)).to_dict() == {0.0: 1, 2.0: 2, 4.0: 4, 5.0: 3}


def test_published_clients_were_counted_at_the_end_of_a_request(tmp_path: Path) -> None:
    # The request from 1 s to 6 s began with one client; it is marked 2 for the client that came before it ended.
    rows = ["100.0,1,500,1,True,0,1", "101.0,1,5000,1,False,0,2", "102.0,1,1000,1,False,1,2"]
    header = ",".join(list(results.COLUMNS)[:7])
    (tmp_path / "task-1.csv").write_text("\n".join([header, *rows, ""]))

    assert series.clients(read_one(tmp_path)).to_dict() == {0.0: 1, 3.0: 2}


def test_task_runners_are_those_booted_and_not_stopped_whatever_else_happens(tmp_path: Path) -> None:
    happened = [
        Event("booted", T0 + 1, gpu=0, num_workers=4),
        Event("ready", T0 + 2, gpu=0, worker=0),
        Event("booted", T0 + 3, gpu=1, num_workers=4),
        Event("rejected", T0 + 4),
        Event("lost", T0 + 5, gpu=1, worker=4),
        Event("stopped", T0 + 6, gpu=1, num_workers=4, detail="idle"),
        Event("booted", T0 + 7, gpu=1, num_workers=4),
    ]
    write_run(tmp_path, "task-1", [request(0)], happened)

    assert series.task_runners(read_one(tmp_path)).to_dict() == {0.0: 0, 1.0: 1, 3.0: 2, 6.0: 1, 7.0: 2}


def test_task_runners_booted_before_the_first_request_count_from_the_begin(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0 - 5, gpu=0, num_workers=4)])

    steps = series.task_runners(read_one(tmp_path))

    assert steps[steps.index <= 0].iloc[-1] == 1


def test_without_events_there_are_no_steps_of_task_runners(tmp_path: Path) -> None:
    write_requests(tmp_path, "task-1", [request(0)])

    assert series.task_runners(read_one(tmp_path)).empty


def test_utilization_is_the_mean_over_a_time_however_many_samples_fall_into_it(tmp_path: Path) -> None:
    # GPU 0 is sampled densely at first, then late; GPU 1 is not known at all until 4 s.
    samples = [(0, 0, 100), (0.5, 0, 50), (1, 0, 0), (4, 0, 80), (4, 1, 10), (5, 0, 40), (5, 1, 30)]
    write_run(tmp_path, "task-1", [request(0)], samples=samples)

    means = series.utilization(read_one(tmp_path), 2.0)

    expected = pd.DataFrame(
        {0: [100.0, 75.0, 50.0, 80.0, 60.0], 1: [None, None, None, 10.0, 20.0]},
        index=pd.Index([0.0, 0.5, 1.0, 4.0, 5.0], name="elapsed"),
        dtype=float,
    ).rename_axis("gpu", axis="columns")
    pd.testing.assert_frame_equal(means, expected, check_column_type=False)


def test_the_summary_keeps_what_was_not_served_or_not_warm_out_of_the_completion_times(tmp_path: Path) -> None:
    rows = [
        request(0, 5000, cold=True),
        request(1, 4000, waited_for_boot=True),
        request(2, 100),
        request(3, 200),
        request(4, 1, status="rejected"),
        request(5, 9000, status="worker_lost"),
        request(18, 2000),
    ]
    happened = [Event("booted", T0 + at, gpu=gpu, num_workers=4) for at, gpu in ((0.5, 0), (2.5, 1), (9, 0))]
    write_run(tmp_path, "task-1", rows, happened)

    assert summary.numbers(read_one(tmp_path)) == pytest.approx(
        {
            "requests": 7,
            "requests ok": 5,
            "requests rejected": 1,
            "requests worker_lost": 1,
            "cold starts": 1,
            "waited for a boot besides": 1,
            "duration [s]": 20.0,
            "served requests per second": 0.25,
            "warm completion time, median [ms]": 200.0,
            "warm completion time, 95th percentile [ms]": 1820.0,
            "GPU 0 first booted [s]": 0.5,
            "GPU 1 first booted [s]": 2.5,
        }
    )


def test_events_named_for_a_shorter_task_are_found_for_the_same_repeat_only(tmp_path: Path) -> None:
    write_run(tmp_path, "scaling-cuda-matmul-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    short = tmp_path / "scaling-matmul-1-serverlogs.csv"
    (tmp_path / "scaling-cuda-matmul-1-serverlogs.csv").rename(short)
    write_requests(tmp_path, "scaling-cuda-matmul-2", [request(0)])

    first, second = runs.find_runs(tmp_path)

    assert len(first.events) == 1
    assert first.notes == (f"scaling-cuda-matmul-1-serverlogs.csv is missing: {short.name} was taken for it.",)
    assert second.events.empty


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published results lie outside the project, and not here")
def test_the_published_repeats_are_read_as_they_are() -> None:
    first, second = runs.find_runs(PUBLISHED)

    for run, requests, refused in ((first, 2770, 0), (second, 2767, 2)):
        numbers = summary.numbers(run)
        assert (numbers["requests"], numbers["requests rejected"], numbers["cold starts"]) == (requests, refused, 8)
        assert series.task_runners(run).tolist() == list(range(9))
        assert series.clients(run).tolist() == list(range(1, 49))
        assert run.parameters["Maximum parallel requests"] == "48"
