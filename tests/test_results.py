import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import LIMIT

from kaas import ROOT, description, results, wire
from kaas.errors import ResultsError
from kaas.results import Outcome, RowReader, RowWriter, RunFiles
from kaas.row import COLUMNS, OF_ARRIVALS, Row, encode_row, make_row

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60
)

PUBLISHED = ROOT.parent / "shared" / "paper-results"
FIRST_SEVEN = "timestamp,inner_time_ms,outer_time_ms,setup_time,cold_start,copy,concurrency"
STATUSES = (*wire.STATUSES, "failed", "wrong_result")

times = st.floats(0.0, 1e7)
numbers = st.integers(0, 10**6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
outcomes = st.builds(
    Outcome,
    outer_ms=times,
    inner_ms=times,
    setup_ms=times,
    cold_start=st.booleans(),
    status=st.sampled_from(STATUSES),
    waited_for_boot=st.booleans(),
    gpu=st.none() | numbers,
    worker=st.none() | numbers,
    queued_ms=times,
    kernel_ms=times,
    error=texts,
)
rows = st.builds(make_row, timestamp=st.floats(0.0, 1e11), copy=numbers, concurrency=numbers, result=outcomes)

ROW = Row(1_700_000_000.25, 50.0, 100.0, 1.0, cold_start=True, copy=3, concurrency=4, gpu=0, worker=2)


def write(path: Path, *some: Row) -> None:
    path.unlink(missing_ok=True)
    results.create_requests(path)
    writer = RowWriter(path)
    for row in some:
        writer.append(row)
    writer.close()


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published results are not here: {path}")
    return path


# Rows


def test_the_first_seven_columns_are_the_originals_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    results.create_requests(path)
    header = path.read_text()
    assert header.startswith(FIRST_SEVEN + ",")
    assert header.endswith("\n")
    assert header.strip().split(",") == list(COLUMNS)
    assert [*COLUMNS, *OF_ARRIVALS] == list(Row._fields)


def test_a_row_is_one_line_of_csv_to_the_letter() -> None:
    assert encode_row(ROW) == b"1700000000.25,50.0,100.0,1.0,True,3,4,ok,False,0,2,0.0,0.0,\n"


@patient
@given(st.lists(rows, max_size=5))
def test_rows_come_back_as_they_were_written(tmp_path: Path, some: list[Row]) -> None:
    path = tmp_path / "task.csv"
    write(path, *some)
    assert results.read_rows(path) == some
    assert path.read_bytes().count(b"\n") == 1 + len(some)


def test_an_error_text_of_several_lines_with_quotes_and_commas_stays_one_row(tmp_path: Path) -> None:
    outcome = Outcome(1.0, 0.0, 0.0, cold_start=False, status="failed", error='Error: "a",\n  b\r\n\u2028c')
    write(tmp_path / "task.csv", make_row(1.0, 0, 1, outcome), ROW)
    first, second = results.read_rows(tmp_path / "task.csv")
    assert first.error == 'Error: "a", b c'
    assert second == ROW


def test_an_error_text_that_utf8_cannot_hold_is_a_row_all_the_same(tmp_path: Path) -> None:
    # Python names a file whose name is no UTF-8 with such characters, in the text of an exception.
    outcome = Outcome(1.0, 0.0, 0.0, cold_start=False, status="failed", error="no file caf\udce9")
    write(tmp_path / "task.csv", make_row(1.0, 0, 1, outcome))
    (row,) = results.read_rows(tmp_path / "task.csv")
    assert row.error.startswith("no file caf")


def test_a_very_long_error_text_can_be_read_back(tmp_path: Path) -> None:
    outcome = Outcome(1.0, 0.0, 0.0, cold_start=False, status="kernel_error", error="x" * 200_000)
    write(tmp_path / "task.csv", make_row(1.0, 0, 1, outcome), ROW)
    first, second = results.read_rows(tmp_path / "task.csv")
    assert first.error.startswith("xxx")
    assert second == ROW


# What run_client returns


@pytest.mark.parametrize(
    ("result", "status", "inner_ms"),
    [
        ((100.0, 50.0, 1.0, True), "ok", 50.0),  # served
        ((100.0, 0.0, 1.0, False), "failed", 0.0),  # not served; why, it has no way to say
        ((100, 0, 1, 0), "failed", 0.0),  # whole numbers do as well
        ((100.0, 1e-3, 1.0, False), "ok", 0.001),  # a very short one is served all the same
    ],
)
def test_a_plain_four_tuple_of_the_originals_kind_makes_a_row(
    result: tuple[float, float, float, bool], status: str, inner_ms: float
) -> None:
    row = make_row(5.0, 7, 9, result)
    expected = Row(5.0, inner_ms, 100.0, 1.0, bool(result[3]), copy=7, concurrency=9, status=status)
    assert row._replace(error="") == expected
    assert bool(row.error) == (status == "failed")
    assert type(row.cold_start) is bool


class OwnResult(NamedTuple):
    total: float
    kernel: float
    copying: float
    first: bool
    gpu: int
    error: str
    colour: str  # nothing of ours


def test_a_users_own_named_tuple_may_carry_more() -> None:
    row = make_row(5.0, 0, 1, OwnResult(100.0, 50.0, 1.0, first=True, gpu=3, error="", colour="blue"))
    assert row == Row(5.0, 50.0, 100.0, 1.0, cold_start=True, copy=0, concurrency=1, status="ok", gpu=3)


def test_a_users_own_named_tuple_without_a_status_has_failed_by_an_inner_time_of_zero() -> None:
    row = make_row(5.0, 0, 1, OwnResult(100.0, 0.0, 1.0, first=False, gpu=3, error="full", colour="blue"))
    assert (row.status, row.error) == ("failed", "full")


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "ok"])
def test_what_was_not_served_has_no_inner_time(status: str) -> None:
    assert make_row(5.0, 0, 1, Outcome(100.0, 50.0, 1.0, cold_start=False, status=status)).inner_time_ms == 0.0


@pytest.mark.parametrize("result", [None, (), (1.0, 2.0, 3.0), ("a", "b", "c", "d"), (None, None, None, None), 5])
def test_a_result_that_is_none_is_a_value_or_type_error(result: tuple[float, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make_row(5.0, 0, 1, result)


# Files of rows


def test_an_earlier_runs_requests_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    write(path, ROW)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="earlier run"):
        results.create_requests(path)
    assert path.read_bytes() == before


def test_the_results_folder_is_made(tmp_path: Path) -> None:
    files = RunFiles.of("autoscaling", "task-1", tmp_path)
    results.create_requests(files.requests)
    assert files.requests == tmp_path / "results-autoscaling" / "task-1.csv"
    assert files.requests.is_file()


def test_the_names_of_a_runs_files_are_the_documented_ones() -> None:
    files = RunFiles.of("e", "t", Path("p"))
    assert [files.requests, files.description, files.serverlogs, files.monitoring] == [
        Path("p/results-e/t.csv"),
        Path("p/results-e/t.md"),
        Path("p/results-e/t-serverlogs.csv"),
        Path("p/results-e/t-gpu-monitoring.csv"),
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "results-e").write_text("a file, not a folder")
    with pytest.raises(ResultsError, match="results-e"):
        results.create_requests(RunFiles.of("e", "t", tmp_path).requests)


def test_rows_of_many_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    results.create_requests(path)
    code = """
import pathlib, sys
from kaas.results import RowWriter
from kaas.row import Row
copy = int(sys.argv[2])
writer = RowWriter(pathlib.Path(sys.argv[1]))
sys.stdin.readline()
for number in range(300):
    writer.append(Row(float(number), 1.0, 2.0, 3.0, False, copy, 5, error=str(copy) * (number % 97)))
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(copy)], cwd=ROOT, stdin=subprocess.PIPE)
        for copy in range(5)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"begin\n")
        child.stdin.close()
    assert [child.wait(timeout=LIMIT) for child in children] == [0] * 5
    written = results.read_rows(path)
    assert len(written) == 5 * 300
    for copy in range(5):
        assert [row for row in written if row.copy == copy] == [
            Row(
                float(number),
                1.0,
                2.0,
                3.0,
                cold_start=False,
                copy=copy,
                concurrency=5,
                error=str(copy) * (number % 97),
            )
            for number in range(300)
        ]


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    results.create_requests(path)
    reader, writer = RowReader(path), RowWriter(path)
    for number in range(3):
        writer.append(ROW._replace(copy=number))
        assert [row.copy for row in reader.new_rows()] == [number]
    assert list(reader.new_rows()) == []
    reader.close()
    writer.close()


def test_a_torn_last_line_waits_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    write(path, ROW)
    line = encode_row(ROW._replace(copy=77, error="caf\u00e9"))
    reader = RowReader(path)
    got = []
    with path.open("ab", buffering=0) as file:
        for at in range(len(line)):
            got += [row.copy for row in reader.new_rows()]
            assert got == [3]
            file.write(line[at : at + 1])
    assert [row.copy for row in reader.new_rows()] == [77]
    reader.close()


def test_a_torn_last_line_is_left_out_of_a_file_that_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    write(path, ROW, ROW)
    os.truncate(path, path.stat().st_size - 1)
    assert results.read_rows(path) == [ROW]


def test_a_header_that_is_not_complete_yet_gives_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    path.write_text(FIRST_SEVEN)
    reader = RowReader(path)
    assert list(reader.new_rows()) == []
    with path.open("a") as file:
        file.write("\n1.0,50.0,100.0,1.0,False,0,1\n")
    assert [row.outer_time_ms for row in reader.new_rows()] == [100.0]
    reader.close()


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n",  # another kind of CSV
        FIRST_SEVEN + "\n1.0,50.0\n",  # too few values
        FIRST_SEVEN + "\n1.0,fifty,100.0,1.0,False,0,1\n",  # not a number
        FIRST_SEVEN + "\n1.0,50.0,100.0,1.0,maybe,0,1\n",  # not a boolean
        FIRST_SEVEN + "\n1.0,50.0,100.0,1.0,False,0,1\r2.0,50.0,100.0,1.0,False,0,1\n",  # a carriage return inside
        "\udcff\udcfe\n\udcff\n",  # not text
    ],
)
def test_a_file_that_is_none_of_requests_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        results.read_rows(path)


@patient
@given(st.binary(max_size=200))
def test_a_file_of_garbage_raises_nothing_but_results_errors(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "task.csv"
    for content in (garbage, FIRST_SEVEN.encode() + b"\n" + garbage + b"\n"):
        path.write_bytes(content)
        with contextlib.suppress(ResultsError):
            results.read_rows(path)


def test_a_file_with_windows_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    path.write_bytes(f"{FIRST_SEVEN}\r\n1.0,50.0,100.0,1.0,False,0,1\r\n".encode())
    assert [row.concurrency for row in results.read_rows(path)] == [1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nothing\.csv"):
        results.read_rows(tmp_path / "nothing.csv")


@pytest.mark.parametrize(("repeat", "number", "refused"), [(1, 2770, 0), (2, 2767, 2)])
def test_published_rows_are_read(repeat: int, number: int, refused: int) -> None:
    read = results.read_rows(published(f"autoscaling-cuda-matmul-10000-{repeat}.csv"))
    assert len(read) == number
    assert sum(row.status == "rejected" for row in read) == refused
    assert sum(row.status == "ok" for row in read) == number - refused
    assert sum(row.cold_start for row in read) == 8
    assert {row.gpu for row in read} == {None}


# Descriptions

BEGUN = 1695220167.5  # 2023-09-20 14:29:27.5 UTC

lines = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
names = st.from_regex(r"[A-Z][A-Za-z ]{0,20}[A-Za-z]", fullmatch=True)


@patient
@given(st.dictionaries(names, lines, max_size=5))
def test_parameters_come_back_from_the_description(tmp_path: Path, parameters: dict[str, str]) -> None:
    path = tmp_path / "task.md"
    description.begin(path, tmp_path / "task.csv", BEGUN, parameters, {})
    assert description.read(path) == parameters


def test_a_description_of_several_lines_is_no_other_parameter(tmp_path: Path) -> None:
    path = tmp_path / "task.md"
    parameters = {"Experiment description": "First line.\nInterval: 99", "Step size": 1}
    description.begin(path, tmp_path / "task.csv", BEGUN, parameters, {})
    read = description.read(path)
    assert "Interval" not in read
    assert read["Step size"] == "1"


def test_a_description_tells_the_whole_story_of_a_run(tmp_path: Path) -> None:
    files = RunFiles.of("autoscaling", "task-1", tmp_path)
    files.folder.mkdir()
    parameters = {"Client": "cuda-matmul-client", "Input": 500, "Interval": "2.5"}
    machine = {"Host": "ai05", "Memory": "16.0 GiB"}
    description.begin(files.description, files.requests, BEGUN, parameters, machine)
    facts = {"Requests ok": 7, "Requests rejected": 2, "Ended": "the ramp is over"}
    description.end(files.description, BEGUN + 13, 12.3456, facts)
    text = files.description.read_text()
    assert text.startswith("This file describes the fields in the file results-autoscaling/task-1.csv.\n")
    assert "The experiment was run on the machine ai05.\n" in text
    assert "starting on 2023-09-20 14:29:27.500000+00:00.\n" in text
    assert "terminated on 2023-09-20 14:29:40.500000+00:00.\n" in text
    assert "The experiment ran for 12.346 s.\n" in text
    for column in COLUMNS:
        assert f"- `{column}`: " in text
    assert description.read(files.description) == {
        "Client": "cuda-matmul-client",
        "Input": "500",
        "Interval": "2.5",
        "Host": "ai05",
        "Memory": "16.0 GiB",
        "Requests ok": "7",
        "Requests rejected": "2",
        "Ended": "the ramp is over",
    }


def test_a_missing_description_has_no_parameters(tmp_path: Path) -> None:
    assert description.read(tmp_path / "task.md") == {}


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_published_description_is_read(repeat: int) -> None:
    task = f"autoscaling-cuda-matmul-10000-{repeat}"
    assert description.read(published(f"{task}.md")) == {
        "Client": "cuda-matmul-client",
        "Input": "10000",
        "Experiment name": "autoscaling",
        "Task name": task,
        "Experiment description": "Autoscaling of a multicore GPU app (cuda-matmul) with adapted KaaS",
        "Minimum parallel requests": "1",
        "Maximum parallel requests": "48",
        "Step size": "1",
        "Interval": "10",
    }
