"""Input that lies: each case has its sentence, and the numbers are right, or none is given."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_runs import PUBLISHED, T0, booted, closed_loop, needs_published, request, write_run

from kaas.analysis import energy, figures, report, runs, series, tables
from kaas.analysis.runs import Run
from kaas.analysis.validity.repeats import alike
from kaas.errors import ResultsError
from kaas.results import RunFiles

Change = Callable[[pd.DataFrame], pd.DataFrame]


def changed(path: Path, change: Change) -> None:
    """Write a CSV file anew, changed."""
    frame = pd.read_csv(path, dtype={"error": str, "detail": str}, keep_default_na=False)
    change(frame).to_csv(path, index=False)


def read_one(folder: Path) -> Run:
    (run,) = runs.find_runs(folder)
    return run


def found(run: Run) -> list[str]:
    """Give what was found wrong with a run."""
    return [check.found for check in run.checks if check.found]


def numbers(run: Run) -> dict[str, float]:
    """Give the numbers that a wrong clock makes wrong."""
    frame = tables.numbers([run]).iloc[0]
    kept = {
        str(name): float(value) for name, value in frame.items() if "booted" in str(name) or "throughput" in str(name)
    }
    return kept | {
        "duration": float(frame["duration [s]"]),
        "energy": float(frame["energy [J]"]),
        "utilization": series.mean_utilization(run),
    }


@pytest.fixture
def right(tmp_path: Path) -> Run:
    """A run of which all files are as they should be."""
    closed_loop(tmp_path / "right")
    return read_one(tmp_path / "right")


def at(row: int, column: str, value: Callable[[float], float]) -> Change:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[row] = value(values[row])
        return frame.assign(**{column: values})

    return change


def stamps(change: Callable[["pd.Series[float]"], "pd.Series[float]"]) -> Change:
    return lambda frame: frame.assign(timestamp=change(frame["timestamp"].astype("float64")))


def test_nothing_is_found_in_a_run_that_is_as_it_should_be(right: Run) -> None:
    assert found(right) == []
    assert right.notes == ()
    assert tables.checks([right])["found"].unique().tolist() == ["-"]
    seen = tables.checks([right])["seen"]
    assert seen["At least 95% of the run were sampled."].tolist() == ["100.0% for mean utilization, 100.0% for energy"]
    assert seen["The run came to the end of its ramp."].tolist() == ["6 of 6 clients"]


def step_the_clock(files: RunFiles, after: float, size: float) -> None:
    """Let all that was written later than `after` seconds into the run have `size` added to its time stamp."""

    def stepped(frame: pd.DataFrame) -> pd.DataFrame:
        times = frame["timestamp"].astype("float64")
        return frame.assign(timestamp=times.where(times <= T0 + 0.01 + after, times + size))

    changed(files.requests, stepped)
    changed(files.monitoring, stepped)
    changed(files.serverlogs, lambda frame: stepped(frame).sort_values("timestamp"))


@pytest.mark.parametrize(
    ("after", "size"), [(6.2, -10), (6.2, -30), (6.2, 10), (6.2, 3600), (10, -3), (0.5, -10), (17, -10), (3.1, 20)]
)
def test_a_clock_that_was_set_in_mid_run_is_told_and_undone(
    tmp_path: Path, right: Run, after: float, size: float
) -> None:
    step_the_clock(closed_loop(tmp_path / "stepped"), after, size)

    run = read_one(tmp_path / "stepped")

    assert numbers(run) == pytest.approx(numbers(right), abs=1e-6)
    said, *rest = found(run)
    where = re.fullmatch(r"the clock was set (back|ahead) by ([\d.]+) s at ([\d.]+) s of the run.*was undone", said)
    assert where is not None
    assert (where[1], float(where[2])) == ("back" if size < 0 else "ahead", abs(size))
    assert float(where[3]) == pytest.approx(after, abs=0.7)
    assert rest == ([] if size > 0 else [f"the clock of the samples was set back by {-size:.1f} s: undone"])
    assert run.notes == (), "nothing is taken for another run"


def test_a_clock_that_was_set_twice_is_undone_twice(tmp_path: Path, right: Run) -> None:
    files = closed_loop(tmp_path / "stepped")
    step_the_clock(files, 12, 5)
    step_the_clock(files, 6.2, -10)

    run = read_one(tmp_path / "stepped")

    assert numbers(run)["duration"] == pytest.approx(numbers(right)["duration"])
    assert found(run)[0].startswith("the clock was set back by 10.0 s at 6.")
    assert " and ahead by 5.0 s at 12." in found(run)[0]


def test_where_the_order_was_lost_no_time_is_given(tmp_path: Path, right: Run) -> None:
    files = closed_loop(tmp_path / "stepped")
    step_the_clock(files, 8, -4)
    changed(files.requests, lambda frame: frame.sort_values("timestamp"))

    run = read_one(tmp_path / "stepped")

    assert not run.timed
    assert re.match(r"\d+ requests began before the last one of the same client had ended", found(run)[0])
    frame = tables.numbers([run]).iloc[0]
    timed = frame.filter(regex="duration|throughput|energy|Little|booted")
    assert len(timed) > 7
    assert timed.isna().all()
    assert frame["warm completion time, p50 [ms]"] == tables.numbers([right]).iloc[0]["warm completion time, p50 [ms]"]


def test_a_file_that_is_only_sorted_by_time_is_as_right_as_before(tmp_path: Path, right: Run) -> None:
    changed(closed_loop(tmp_path / "sorted").requests, lambda frame: frame.sort_values("timestamp"))

    run = read_one(tmp_path / "sorted")

    assert (found(run), numbers(run)) == ([], numbers(right))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            stamps(lambda times: times * 1000),
            "the time stamps of its requests are in milliseconds: they were taken as such",
        ),
        (
            stamps(lambda times: times * 1e6),
            "the time stamps of its requests are in microseconds: they were taken as such",
        ),
        (lambda frame: pd.concat([frame, frame.iloc[30:60]]), "30 rows are a copy of another: they were counted once"),
        (lambda frame: pd.concat([frame, frame]), "105 rows are a copy of another: they were counted once"),
    ],
)
def test_units_and_copies_are_told_and_change_no_number(
    tmp_path: Path, right: Run, change: Change, sentence: str
) -> None:
    changed(closed_loop(tmp_path / "changed").requests, change)

    run = read_one(tmp_path / "changed")

    assert (found(run), len(run.requests)) == ([sentence], 105)
    assert numbers(run) == pytest.approx(numbers(right), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            at(40, "timestamp", lambda stamp: stamp - 1e6),
            r"1 request left out, whose time stamp is far .*-1,000,00\d s",
        ),
        (
            at(60, "timestamp", lambda stamp: stamp - 8),
            "1 request left out, whose time stamp is far from those around it",
        ),
        (
            at(40, "timestamp", lambda stamp: -stamp),
            "1 request with impossible numbers .1 with a time below 0. left out",
        ),
        (at(40, "outer_time_ms", lambda _: -5), "1 request with impossible numbers .1 with a time below 0. left out"),
        (at(40, "concurrency", lambda _: -1), "1 request with impossible numbers .1 with a number of clients below 1."),
        (
            at(40, "copy", lambda _: 2_000_000_000),
            "1 request with impossible numbers .1 with a client's number that can",
        ),
    ],
)
def test_a_row_that_cannot_be_is_left_out_and_told(tmp_path: Path, right: Run, change: Change, sentence: str) -> None:
    changed(closed_loop(tmp_path / "changed").requests, change)

    run = read_one(tmp_path / "changed")

    (said,) = found(run)
    assert re.match(sentence, said), said
    assert (run.duration, len(run.requests)) == (right.duration, 104)
    assert run.notes == ()


def test_a_file_of_impossible_rows_is_an_error_that_says_so(tmp_path: Path) -> None:
    changed(closed_loop(tmp_path / "changed").requests, lambda frame: frame.assign(concurrency=-3))

    with pytest.raises(
        ResultsError, match=r"105 requests with impossible numbers .105 with a number of clients below 1"
    ):
        runs.find_runs(tmp_path / "changed")


def test_a_request_that_took_less_than_its_kernel_is_told(tmp_path: Path) -> None:
    changed(closed_loop(tmp_path / "changed").requests, at(9, "inner_time_ms", lambda _: 90_000.0))

    assert found(read_one(tmp_path / "changed")) == [
        "1 request took less than the kernel in it: the one or the other is wrong"
    ]


@pytest.mark.parametrize(
    ("digits", "sentence"),
    [
        (1, "the time stamps of its requests were rounded to 0.1 s: all times are true to that only"),
        (0, "the time stamps of its requests were rounded to 1 s: all times are not to be trusted, and not given"),
        (
            -5,
            "the time stamps of its requests were rounded to 100,000 s: all times are not to be trusted, and not given",
        ),
    ],
)
def test_stamps_that_a_spreadsheet_rounded_are_told(tmp_path: Path, digits: int, sentence: str) -> None:
    changed(closed_loop(tmp_path / "rounded").requests, stamps(lambda times: times.round(digits)))

    run = read_one(tmp_path / "rounded")

    assert found(run)[0] == sentence
    assert run.timed == (digits == 1)


def test_a_client_that_waits_after_a_refusal_or_hangs_is_no_clock_that_was_set(tmp_path: Path) -> None:
    rows = [
        request(0.1 + 5.2 * number + copy / 100, 200.0, "rejected", copy=copy, concurrency=3)
        for number in range(6)
        for copy in range(3)
    ]
    rows += [request(0.2 + second, 900.0, copy=3, concurrency=4) for second in (*range(8), *range(20, 30))]
    write_run(tmp_path, "task-1", sorted(rows, key=lambda row: row.timestamp + row.outer_time_ms / 1000))

    assert found(read_one(tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "part", "sentence"),
    [
        (
            lambda frame: frame[frame["timestamp"].astype(float) < T0 + 9],
            0.49,
            "only 49% of the run were sampled of every GPU",
        ),
        (
            lambda frame: frame[frame["timestamp"].astype(float) > T0 + 9],
            0.51,
            "only 51% of the run were sampled of every GPU",
        ),
        (
            lambda frame: frame[(frame["timestamp"].astype(float) < T0 + 3) | (frame["gpu"] != 1)],
            0.16,
            "only 16% of the run were sampled of 1 GPU",
        ),
    ],
)
def test_where_too_little_was_sampled_there_is_no_mean_and_no_energy(
    tmp_path: Path, change: Change, part: float, sentence: str
) -> None:
    changed(closed_loop(tmp_path / "partly").monitoring, change)

    run = read_one(tmp_path / "partly")

    assert found(run) == [f"{sentence}, so no mean utilization is given; {sentence}, so no energy is given"]
    assert run.coverage("utilization_pct") == pytest.approx(part, abs=0.01)
    assert not run.utilization_is_covered
    (label,) = (
        str(line.get_label())
        for line in figures.utilization(run).axes[1].get_lines()
        if "summed" in str(line.get_label())
    )
    assert label == "utilization, summed (mean over the run: not given, as too little was sampled)"
    assert tables.per_repeat([run])[["energy [J]", "energy per served request [J]"]].isna().all(axis=None)
    assert energy.energy(run)["seconds"].max() > 0, "what each GPU drew while it was sampled stands in its own table"


@pytest.mark.parametrize("off", [-8, 7])
def test_samples_of_another_time_are_told_by_when_the_gpus_begin_to_work(tmp_path: Path, off: float) -> None:
    changed(closed_loop(tmp_path / "off").monitoring, stamps(lambda times: times + off))

    run = read_one(tmp_path / "off")

    said = found(run)[0]
    assert re.match(r"its GPUs begin to work [67] s (before|after) they were booted \(median of 3\)", said), said
    assert run.monitoring.empty
    assert pd.isna(series.mean_utilization(run))


def local_samples(files: RunFiles, hours: Callable[[float], float]) -> None:
    """Write the samples as `nvidia-smi` does, in the time of a host that is so many hours ahead at a second."""
    lines = []
    for sample in csv.DictReader(files.monitoring.read_text().splitlines()):
        stamp = float(sample["timestamp"])
        shown = pd.Timestamp(stamp + 3600 * hours(stamp - T0), unit="s")
        lines.append(f"{shown:%Y/%m/%d %H:%M:%S}.{shown.microsecond // 1000:03}, 00000000:{sample['gpu']}0:00.0, ")
        lines[-1] += f"{float(sample['utilization_pct']):.0f} %, {float(sample['power_w']):.2f} W\n"
    files.monitoring.write_text("timestamp, pci.bus_id, utilization.gpu [%], power.draw [W]\n" + "".join(lines))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (-4, -5)])
def test_local_stamps_across_an_end_or_begin_of_summer_time_are_told_and_undone(
    tmp_path: Path, right: Run, before: float, after: float
) -> None:
    local_samples(closed_loop(tmp_path / "local"), lambda second: before if second < 9 else after)

    run = read_one(tmp_path / "local")

    summer = ", as where summer time ends" if after < before else ""
    way = "back" if after < before else "ahead"
    assert found(run) == [f"the clock of the samples was set {way} by 3,600.0 s{summer}: undone"]
    assert run.zone_offset_h == before
    assert numbers(run) == pytest.approx(numbers(right), rel=1e-3)


def test_of_a_run_that_broke_off_nothing_after_its_end_counts(tmp_path: Path) -> None:
    changed(
        closed_loop(tmp_path / "broken").requests,
        lambda frame: frame[frame["timestamp"].astype(float) + frame["outer_time_ms"] / 1000 < T0 + 10],
    )

    run = read_one(tmp_path / "broken")

    assert found(run) == [
        "1 event of the server after the last reply left out (1 booted)",
        "its requests last 10.0 s, while it says that it ran for 18.6 s (shorter by 46.3%)",
        "it broke off after 10.0 of 18 s: the ramp came to 4 of 6 clients",
    ]
    assert series.task_runners(run).tolist() == [0, 1, 2]
    assert not run.is_whole


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda text: text.replace("Ended: at the end of the ramp", "Ended: interrupted by SIGINT"),
            "it was ended early (interrupted by SIGINT)",
        ),
        (
            lambda text: text.replace("## End", "Clock notes: the machine slept for 30.0 s at 5.000\n\n## End"),
            "the run noted: the machine slept for 30.0 s at 5.000",
        ),
        (
            lambda text: re.sub("ran for .* s", "ran for 0:00:24.000000", text),
            "its requests last 18.5 s, while it says that it ran for 24.0 s (shorter by 23.0%)",
        ),
    ],
)
def test_what_the_description_says_of_the_end_is_put_at_the_head(
    tmp_path: Path, change: Callable[[str], str], sentence: str
) -> None:
    files = closed_loop(tmp_path / "run")
    files.description.write_text(change(files.description.read_text()))

    run = read_one(tmp_path / "run")

    assert found(run) == [sentence]
    assert report.head([run]) == f"- **task-1**, checked: {sentence}."


def test_boots_before_their_cold_starts_can_have_arrived_are_no_boots_of_a_server(tmp_path: Path) -> None:
    rows = [
        request(0.5, 3000, cold=True)._replace(setup_time=650.0),
        request(9, 4000, copy=1, concurrency=2, cold=True)._replace(setup_time=900.0),
    ]
    write_run(tmp_path / "client", "task-1", rows, [booted(0.5, 0), booted(9, 1)])
    write_run(tmp_path / "server", "task-1", rows, [booted(1.16, 0), booted(9.91, 1)])

    (said,) = found(read_one(tmp_path / "client"))

    assert said.startswith(
        "2 of 2 boots in the server's log are 0.33 to 0.45 s before the request that caused them can"
    )
    assert "they equal the begin of the cold start at its client" in said
    assert found(read_one(tmp_path / "server")) == []


@needs_published
def test_of_the_published_logs_that_of_repeat_2_alone_is_none_of_a_server() -> None:
    first, second = runs.find_runs(PUBLISHED)

    assert found(first) == []
    (said,) = found(second)
    assert said.startswith(
        "8 of 8 boots in the server's log are 0.65 to 1.39 s before the request that caused them can"
    )
    seen = tables.checks([first])["seen"]
    assert seen["Every boot follows the arrival of the request that made the server boot."].tolist() == [
        "8 boots, 4 to 7 ms after"
    ]
    assert series.alive(first).iloc[-1] == 42
    assert series.alive(second).iloc[-1] == 43


def test_only_repeats_that_are_alike_are_taken_together(tmp_path: Path) -> None:
    for task, clients in (("x-1", 6), ("x-01", 6), ("x-2", 6), ("x-3", 4)):
        files = closed_loop(tmp_path, task, clients=clients)
        if task == "x-2":  # of another day
            for path in (files.requests, files.serverlogs, files.monitoring):
                changed(path, stamps(lambda times: times + 86400))
    found_runs = runs.find_runs(tmp_path)

    pooled, differing = alike(found_runs)

    assert [run.task for run in pooled] == ["x-01", "x-2"]
    assert differing == {
        "x-1": "it holds the requests of x-01",
        "x-3": "Maximum parallel requests is 4 here, 6 there; Server number of GPUs is 2 here, 3 there",
    }
    head = report.head(found_runs)
    assert "- **x-1**, checked: it is left out of means over repeats: it holds the requests of x-01." in head
    assert "- **x-1**, checked: x-01 bears the same number of a repeat." in head
    tables.write(found_runs, tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "table-pooled.csv", index_col=["experiment", "number"])
    assert written.xs("requests", level="number")[["repeats", "min", "max"]].to_numpy().tolist() == [[2, 105, 105]]
    assert len(pd.read_csv(tmp_path / "out" / "table-repeats.csv")) == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("Host: a host", "Host: another"), "Host is another here, a host there"),
        (lambda text: text.replace("Client: a client", "Client: b"), "Client is b here, a client there"),
        (lambda text: text.replace("at the end of the ramp", "SIGINT"), "it did not come to its end"),
        (lambda text: text, ""),
        (lambda text: text.replace("Host: a host", "Host: a host\nServer: 127.0.0.1:41413"), ""),
        (lambda text: text.replace("Host: a host", "Host: a host\nCPU load before the run: 1.02, 0.50, 0.20"), ""),
        (lambda text: text + "CPU time of others: 3.1 % (neither of this run nor idle)\nMPS: server 4711\n", ""),
    ],
)
def test_what_differs_between_repeats_is_said(tmp_path: Path, change: Callable[[str], str], why: str) -> None:
    for number in (1, 2, 3):
        files = closed_loop(tmp_path, f"x-{number}")
        for path in (files.requests, files.serverlogs, files.monitoring):
            changed(path, stamps(lambda times, by=number: times + 3600 * by))  # type: ignore[misc]
    files.description.write_text(change(files.description.read_text()))

    assert alike(runs.find_runs(tmp_path)).differing == ({"x-3": why} if why else {})


def test_files_that_a_spreadsheet_saved_are_read(tmp_path: Path, right: Run) -> None:
    forms: dict[str, Callable[[pd.DataFrame], str]] = {
        "quoted": lambda frame: frame.to_csv(index=False, quoting=csv.QUOTE_ALL),
        "crlf": lambda frame: "\ufeff" + frame.to_csv(index=False, lineterminator="\r\n"),
        "bare": lambda frame: frame.to_csv(index=False).rstrip("\n"),
    }
    for form, change in forms.items():
        files = closed_loop(tmp_path / form)
        for path in (files.requests, files.serverlogs, files.monitoring):
            path.write_bytes(change(pd.read_csv(path, dtype=str, keep_default_na=False)).encode())
        text = files.description.read_bytes()
        files.description.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))

        run = read_one(tmp_path / form)

        assert (run.notes, found(run)) == ((), []), form
        assert run.parameters == right.parameters
        assert numbers(run) == pytest.approx(numbers(right)), form


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace(",", ";"), "its cells are separated by semicolons: save it as CSV with commas"),
        (
            lambda text: text.replace(",", ";").replace(".", ","),
            "its cells are separated by semicolons and its numbers have decimal commas: save it as CSV with commas "
            "between cells, and points in numbers",
        ),
        (
            lambda text: text.replace(",", "\t"),
            "its cells are separated by tabs: save it as CSV with commas between cells",
        ),
        (
            lambda text: re.sub(r"(\d+)\.(\d+)", r'"\1,\2"', text),
            "its numbers have decimal commas: save it as CSV with points in numbers",
        ),
        (lambda text: text.encode("utf-16"), "it is text in UTF-16: save it as CSV in UTF-8"),
    ],
)
def test_a_csv_of_another_kind_is_refused_by_name(
    tmp_path: Path, change: Callable[[str], str | bytes], sentence: str
) -> None:
    for part in ("requests", "monitoring"):
        files = closed_loop(tmp_path / part)
        path: Path = getattr(files, part)
        content = change(path.read_text())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ResultsError) as caught:
        runs.find_runs(tmp_path / "requests")
    assert sentence in str(caught.value)
    assert sentence in read_one(tmp_path / "monitoring").notes[0]


def test_a_whole_last_line_without_its_end_is_kept_unless_its_number_may_lack_digits(tmp_path: Path) -> None:
    for name, last, kept in (("whole", "100.0,1,900,1,False,0,12", 3), ("torn", "100.0,1,900,1,False,0,1", 2)):
        (tmp_path / name).mkdir()
        header = "timestamp,inner_time_ms,outer_time_ms,setup_time,cold_start,copy,concurrency\n"
        rows = "98.0,1,900,1,True,0,12\n99.0,1,900,1,False,0,12\n"
        (tmp_path / name / "task-1.csv").write_text(header + rows + last)

        run = read_one(tmp_path / name)

        assert len(run.requests) == kept
        assert ("task-1.csv ends in mid-line: that line was dropped." in run.notes) == (kept == 2)


def test_clients_that_died_are_not_alive(tmp_path: Path) -> None:
    def until(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[((frame["copy"] != 1) | (frame["timestamp"].astype(float) < T0 + 6)) & (frame["copy"] != 3)]

    changed(closed_loop(tmp_path / "died").requests, until)

    run = read_one(tmp_path / "died")

    steps = series.alive(run).round(1)
    assert series.clients(run).tolist() == [1, 2, 3, 4, 5, 6]
    assert steps.tolist() == [1, 2, 3, 2, 3, 4]
    assert run.notes == ("Of 6 clients 1 had no more replies after 6 s and 1 never had any.",)


def test_the_last_step_ends_with_the_ramp_and_has_a_rate_only_if_requests_fit_into_it(tmp_path: Path) -> None:
    # One more client each 2 s; the last asks at 4 s and is busy beyond the end of the ramp at 6 s, like the others.
    rows = [request(0.001, 1500), request(1.6, 2400), request(2, 2050, copy=1, concurrency=2)]
    rows += [request(4.001, 5000, copy=0, concurrency=3), request(4.06, 4000, copy=1, concurrency=3)]
    rows += [request(4.004, 1900, copy=2, concurrency=3)]
    ramp = {"Minimum parallel requests": 1, "Maximum parallel requests": 3, "Step size": 1, "Interval": 2}
    write_run(tmp_path / "told", "task-1", rows, parameters=ramp)
    write_run(tmp_path / "untold", "task-1", rows)

    told, untold = (tables.per_repeat(runs.find_runs(tmp_path / name)) for name in ("told", "untold"))

    assert told["throughput in the last step [1/s]"].tolist() == pytest.approx([2 / (6 - 4)], rel=0.01)
    assert untold["throughput in the last step [1/s]"].isna().all(), "0.06 s have no rate"
    assert read_one(tmp_path / "told").ramp_end == pytest.approx(6)
