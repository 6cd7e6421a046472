import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_runs import MONITORING_HEADER, PUBLISHED, T0, needs_published, request, write_requests, write_run

from kaas.analysis import runs, series
from kaas.analysis.runs import Run
from kaas.errors import ResultsError
from kaas.events import Event
from kaas.row import COLUMNS, Row, encode_row


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
        (
            "noon,0,50\n",
            "cannot be read (it is neither in the form of this project's monitor nor in that of nvidia-smi)",
        ),
        ("\0\xff\x80\n" * 5, "cannot be read (it is neither"),
        (
            "timestamp, power.draw [W]\n2023/09/20 09:29:27.465, 61.20 W\n",
            "cannot be read (it names no time or no GPU)",
        ),
        ("2023/09/20 09:29:27.465,00000000:15:00.0,0\n", "is left out: the zone of its time stamps cannot be told"),
        (MONITORING_HEADER + "noon,0,,,,,,,,\n", "cannot be read (every line of it is malformed)"),
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


@pytest.mark.parametrize("kept", [1, 30, -4])
def test_a_last_line_without_its_end_is_dropped_with_a_note(tmp_path: Path, kept: int) -> None:
    rows = [request(0), request(1)]
    files = write_run(tmp_path, "task-1", rows, [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    with files.requests.open("ab") as file:
        file.write(encode_row(request(2))[:kept])

    run = read_one(tmp_path)

    assert run.requests["elapsed"].tolist() == [0.0, 1.0]
    assert run.notes == ("task-1.csv ends in mid-line: that line was dropped.",)


@pytest.mark.parametrize("content", ["", ",".join(COLUMNS), ",".join(COLUMNS) + "\n"])
def test_requests_that_came_to_nothing_are_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "task-1.csv").write_text(content)

    with pytest.raises(ResultsError, match=r"task-1\.csv holds no request: move it away"):
        runs.find_runs(tmp_path)


@pytest.mark.parametrize("row", ["noon,1,1,1,False,0,1", "1,1,1,1,False,,1", "1,1,1,1,perhaps,0,1", "1,,1,1,False,0,1"])
def test_a_malformed_request_is_an_error_of_one_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "task-1.csv").write_text(f"{','.join(list(COLUMNS)[:7])}\n{row}\n")

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
    header = ",".join(list(COLUMNS)[:7])
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
    write_run(tmp_path, "task-1", [request(0, 8000)], happened)

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


def test_events_named_for_a_shorter_task_are_found_for_the_same_repeat_only(tmp_path: Path) -> None:
    write_run(tmp_path, "scaling-cuda-matmul-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    short = tmp_path / "scaling-matmul-1-serverlogs.csv"
    (tmp_path / "scaling-cuda-matmul-1-serverlogs.csv").rename(short)
    write_requests(tmp_path, "scaling-cuda-matmul-2", [request(0)])

    first, second = runs.find_runs(tmp_path)

    assert len(first.events) == 1
    assert first.notes == (f"{short.name}, named for a shorter task, was read as its own.",)
    assert second.events.empty


def test_a_run_knows_its_folder_its_experiment_and_its_repeat(tmp_path: Path) -> None:
    for task in ("matmul-500-1", "matmul-500-2", "other"):
        write_run(tmp_path, task, [request(0)], samples=[(0, 0, 1)])

    first, second, other = runs.find_runs(tmp_path)

    assert [(run.experiment, run.repeat) for run in (first, second, other)] == [
        ("matmul-500", 1),
        ("matmul-500", 2),
        ("other", 1),
    ]
    assert (first.folder, first.zone_offset_h) == (tmp_path, None)
    assert runs.by_experiment([first, other, second]) == {"matmul-500": [first, second], "other": [other]}


@pytest.mark.parametrize("content", [b"", b"\0\x80 no, requests\n", ",".join(COLUMNS).encode() + b"\n"])
def test_an_empty_or_broken_repeat_does_not_hide_the_others(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path, "a-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    for repeat in (1, 3):
        write_run(tmp_path, f"b-{repeat}", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    broken = write_run(tmp_path, "b-2", [])
    broken.requests.write_bytes(content)

    found = runs.find_runs(tmp_path)

    assert [(run.task, len(run.notes)) for run in found] == [("a-1", 0), ("b-1", 1), ("b-3", 0)]
    assert found[1].notes[0].startswith("b-2 is left out: b-2.csv ")


def test_malformed_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    good = encode_row(request(3, error='a "quoted" word, and a comma'))
    with files.requests.open("ab") as file:
        # The header again (two files put together), a line cut short, one too long, one with a word for a number.
        file.write(",".join(COLUMNS).encode() + b"\n" + good[:25] + b"\n" + good.strip() + b",1,1\n")
        file.write(b"noon" + good[10:] + b"\n" + good)
    with files.monitoring.open("a") as text:
        text.write(f"{MONITORING_HEADER}{T0 + 1},0,virtual:0,,1..5,,,,,\n{T0 + 2},0,virtual:0,,70,,,,,\n")

    run = read_one(tmp_path)

    assert run.requests["elapsed"].tolist() == [0.0, 3.0]
    assert run.requests["error"].tolist() == ["", 'a "quoted" word, and a comma']
    assert run.monitoring["elapsed"].tolist() == [0.0, 2.0]
    assert run.notes == (
        "task-1.csv has 4 malformed lines that were dropped.",
        "task-1-gpu-monitoring.csv has 2 malformed lines that were dropped.",
    )


def test_a_stray_quote_swallows_its_own_line_only(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0, num_workers=4)], [(0, 0, 1)])
    with files.requests.open("ab") as file:
        file.write(b'17,"\n' + encode_row(request(1)) + encode_row(request(2)))

    run = read_one(tmp_path)

    assert run.requests["elapsed"].tolist() == [0.0, 1.0, 2.0]
    assert run.notes == ("task-1.csv has 1 malformed line that was dropped.",)


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0), request(1)], [Event("booted", T0)], [(0, 0, 1), (1, 0, 2)])
    for path in (files.requests, files.serverlogs, files.monitoring):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    run = read_one(tmp_path)

    assert (len(run.requests), len(run.events), len(run.monitoring), run.notes) == (2, 1, 2, ())


def test_a_run_of_which_nothing_was_served_is_shown_and_says_so(tmp_path: Path) -> None:
    rows = [request(0, status="rejected"), request(1, status="timeout")]
    write_run(tmp_path, "task-1", rows, [Event("rejected", T0)], [(0, 0, 1)])

    run = read_one(tmp_path)

    assert len(run.requests) == 2
    assert run.notes == ("task-1.csv has no request that was served: there are no completion times to show.",)


def ramp(begin: float, clients: int, each: int = 2) -> list[Row]:
    return [request(begin + at, 900, concurrency=1 + at // each) for at in range(clients * each)]


@pytest.mark.parametrize(("first", "second", "shown"), [(3, 2, 1), (2, 3, 2), (2, 2, 1)])
def test_of_two_runs_in_one_file_the_largest_is_shown_with_what_belongs_to_it(
    tmp_path: Path, first: int, second: int, shown: int
) -> None:
    rows = ramp(0, first) + ramp(100, second)
    happened = [Event("booted", T0 + at, num_workers=4) for at in (0.5, 100.5)]
    write_run(tmp_path, "task-1", rows, happened, [(0, 0, 10), (1, 0, 10), (101, 0, 20), (102, 0, 20)])

    run = read_one(tmp_path)

    assert len(run.requests) == 2 * max(first, second)
    assert run.requests["elapsed"].iloc[0] == 0
    assert run.events["elapsed"].tolist() == [0.5]
    assert run.monitoring["utilization_pct"].tolist() == [10 * shown] * 2
    assert run.notes == (
        f"task-1.csv holds 2 runs one after the other ({2 * first}, {2 * second} requests): "
        f"only number {shown}, the largest, is shown.",
    )


@pytest.mark.parametrize(
    ("later", "what"),
    [
        ([request(100, concurrency=3)], "a pause in which as many clients wait"),
        ([request(6.8, concurrency=1)], "fewer clients, without a pause"),
        ([request(6, concurrency=2), request(6.2, concurrency=1)], "a ramp that goes down"),
    ],
)
def test_what_only_resembles_a_second_run_is_none(tmp_path: Path, later: list[Row], what: str) -> None:
    write_run(tmp_path, "task-1", ramp(0, 3) + later, [Event("booted", T0, num_workers=4)], [(0, 0, 1)])

    run = read_one(tmp_path)

    assert (len(run.requests), run.notes) == (6 + len(later), ()), what


def test_a_second_run_that_begins_some_seconds_after_the_first_is_told(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ramp(0, 3) + ramp(9, 4), [Event("booted", T0 + 9, num_workers=4)], [(9, 0, 1)])

    run = read_one(tmp_path)

    assert len(run.requests) == 8
    assert run.notes[0].startswith("task-1.csv holds 2 runs one after the other (6, 8 requests)")


def asking(copies: Iterable[int], until: Callable[[int], float], outer_ms: float = 900) -> list[Row]:
    """Give the requests of clients, each of which starts a second after the one before, and asks until its time."""
    return [
        request(at, outer_ms, copy=copy, concurrency=1 + copy)
        for copy in copies
        for at in range(copy, int(until(copy)))
    ]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (asking(range(4), lambda copy: 20 if copy else 10), "Of 4 clients 1 had no more replies after 10 s."),
        (
            asking(range(4), lambda copy: 8 + copy if copy < 2 else 20),
            "Of 4 clients 2 had no more replies after 8 to 9 s.",
        ),
        (asking((0, 2, 3), lambda _: 20), "Of 4 clients 1 never had any."),
        (
            asking((0, 1, 3), lambda copy: 10 if copy == 1 else 20),
            "Of 4 clients 1 had no more replies after 10 s and 1 never had any.",
        ),
    ],
)
def test_clients_that_hung_are_noted(tmp_path: Path, rows: list[Row], note: str) -> None:
    write_run(tmp_path, "task-1", rows, [Event("booted", T0, num_workers=4)], [(0, 0, 1)])

    assert read_one(tmp_path).notes == (note,)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (asking(range(16), lambda _: 20), "clients that start late"),
        ([*asking(range(3), lambda _: 20), request(20, 60_000, copy=1, concurrency=3)], "a last reply that takes long"),
        (asking(range(3), lambda copy: 20 if copy else 16), "a client that stops a little earlier"),
        (
            [
                *asking(range(3), lambda copy: 20 if copy else 4),
                *(request(at, 900, concurrency=3) for at in (5, 10, 30)),
                *asking((1, 2), lambda _: 49)[40:],
            ],
            "one that pauses as long as it did before",
        ),
        (
            [request(0, 9000), *(request(at, 8000, copy=1, concurrency=2) for at in (0, 8, 16))],
            "one that is silent for less than it takes to ask",
        ),
    ],
)
def test_clients_that_only_wait_are_not_noted(tmp_path: Path, rows: list[Row], what: str) -> None:
    write_run(tmp_path, "task-1", rows, [Event("booted", T0, num_workers=4)], [(0, 0, 1)])

    assert read_one(tmp_path).notes == (), what


def test_a_request_ends_when_its_reply_is_there(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 2500), request(1, 250)])

    run = read_one(tmp_path)

    assert (run.ends.tolist(), run.duration) == ([2.5, 1.25], 2.5)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0, num_workers=4)])
    files.monitoring.unlink()
    files.monitoring.mkdir()

    assert read_one(tmp_path).notes == (
        "task-1-gpu-monitoring.csv cannot be read (Is a directory): what it would show is left out.",
    )


def test_requests_that_may_not_be_read_are_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_run(tmp_path / "results-a", "task-1", [request(0)])

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything

    with pytest.raises(ResultsError, match=r"task-1\.csv cannot be read: Permission denied$"):
        runs.find_runs(files.requests.parent)
    with pytest.raises(ResultsError, match="no results-"):
        runs.newest_results(tmp_path)


@pytest.mark.parametrize(("at", "where"), [(-61, "before"), (11, "after")])
def test_files_of_another_time_are_left_out(tmp_path: Path, at: float, where: str) -> None:
    rows = [request(0), request(9, 1000)]
    files = write_run(tmp_path, "task-1", rows, [Event("booted", T0 + at, num_workers=4)], [(at, 0, 50)])

    run = read_one(tmp_path)

    assert (len(run.requests), len(run.events), len(run.monitoring)) == (2, 0, 0)
    assert run.notes == tuple(
        f"{path.name} is left out: all of it is of a time {where} the requests, so it belongs to something else."
        for path in (files.serverlogs, files.monitoring)
    )


def test_monitoring_in_the_time_of_its_host_is_put_beside_the_requests(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0), request(9, 1000)], [Event("booted", T0, num_workers=4)])
    # T0 is 2023-11-14 22:13:20 UTC; this host is 5 h 45 min ahead.
    lines = [f"2023/11/15 03:58:{second}.500, 00000000:3B:00.0, {second} %\n" for second in (19, 25, 31)]
    files.monitoring.write_text("timestamp, pci.bus_id, utilization.gpu [%]\n" + "".join(lines))

    run = read_one(tmp_path)

    assert (run.zone_offset_h, run.notes) == (5.75, ())
    assert run.monitoring[["elapsed", "gpu", "utilization_pct"]].to_numpy().tolist() == [
        [-0.5, 0, 19],
        [5.5, 0, 25],
        [11.5, 0, 31],
    ]


def test_a_description_that_is_no_text_is_noted(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0)], [Event("booted", T0)], [(0, 0, 1)])
    files.description.write_bytes(b"Client: \xff\n")

    assert read_one(tmp_path).notes == ("task-1.md is missing or empty: the parameters are not known.",)


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let this process be in another zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@needs_published
def test_the_published_repeats_are_read_as_they_are_in_any_zone(zone: str) -> None:
    before = checksums(PUBLISHED)

    first, second = runs.find_runs(PUBLISHED)

    for run, requests, refused, samples in ((first, 2770, 0, 38032), (second, 2767, 2, 38064)):
        assert (len(run.requests), (run.requests["status"] == "rejected").sum()) == (requests, refused)
        assert run.requests["cold_start"].sum() == 8
        assert series.task_runners(run).tolist() == list(range(9))
        assert series.clients(run).tolist() == list(range(1, 49))
        assert run.parameters["Maximum parallel requests"] == "48"
        assert (run.experiment, run.folder, run.zone_offset_h) == ("autoscaling-cuda-matmul-10000", PUBLISHED, -5.0)
        assert len(run.monitoring) == samples
        by_number = run.monitoring.groupby("gpu")["bus_id"].unique().map(list).tolist()
        assert by_number == [[f"00000000:{slot}:00.0"] for slot in ("15", "16", "3A", "3B", "89", "8A", "B2", "B3")]
        short = f"autoscaling-matmul-10000-{run.repeat}"
        assert run.notes[:-1] == (
            f"{short}-serverlogs.csv and {short}-gpu-monitoring.csv, named for a shorter task, were read as its own.",
        )
    assert first.notes[-1] == "Of 48 clients 5 had no more replies after 430 to 464 s and 1 never had any."
    assert second.notes[-1] == "Of 48 clients 5 had no more replies after 315 to 388 s."
    assert first.events["elapsed"].round(3).tolist() == [
        0.659,
        40.64,
        93.828,
        150.786,
        200.888,
        254.705,
        321.562,
        466.889,
    ]
    assert second.events["elapsed"].round(3).tolist() == [
        0.0,
        41.195,
        90.365,
        144.335,
        200.09,
        252.579,
        318.063,
        391.19,
    ]
    assert first.monitoring["elapsed"].iloc[[0, -1]].round(3).tolist() == [-0.026, 485.962]
    assert checksums(PUBLISHED) == before
