import csv
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import LIMIT

from kaas import ROOT, events
from kaas.errors import EventLineError, ResultsError
from kaas.events import Event

patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60
)

BOOTED = "@@@ Booted 4 new workers on GPU 0 at 1694604659.1637785"
REJECTED = "@@@ ERROR all workers are full at 1694604659.16"
HEADER = "num_workers,gpu,timestamp,event,worker,detail,node"

timestamps = st.floats(1e9, 1e10)
numbers = st.integers(0, 10**6)
details = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nodes = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=20)
happenings = st.one_of(
    st.builds(Event, st.sampled_from(["booted", "stopped"]), timestamps, numbers, numbers, st.none(), details, nodes),
    st.builds(Event, st.sampled_from(["ready", "lost"]), timestamps, numbers, st.just(1), numbers, details, nodes),
    st.builds(Event, st.just("rejected"), timestamps, st.just(0), st.just(0), st.none(), details, st.just("")),
)


def as_one_line(event: Event) -> Event:
    return event._replace(detail=" ".join(event.detail.split()))


def sorted_rows(tmp_path: Path, log: str) -> list[list[str]]:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.write_text(log, encoding="utf-8")
    events.sort_log(source, target)
    return list(csv.reader(target.read_text(encoding="utf-8").splitlines()))[1:]


def sort_as_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sortserverlogs.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


# Lines


def test_the_original_lines_are_written_to_the_letter() -> None:
    assert events.format(Event("booted", 1694604659.1637785, gpu=0, num_workers=4)) == BOOTED
    assert events.format(Event("rejected", 1694604659.16)) == REJECTED


def test_the_original_lines_are_read() -> None:
    assert events.parse(BOOTED) == Event("booted", 1694604659.1637785, gpu=0, num_workers=4)
    assert events.parse(REJECTED) == Event("rejected", 1694604659.16)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "@@@ Ready worker 2 on GPU 0 at 1694604659.4 (fork 0.004 s, import 0.021 s)",
            Event("ready", 1694604659.4, 0, 1, 2, "fork 0.004 s, import 0.021 s"),
        ),
        (
            "@@@ Lost worker 6 on GPU 1 at 1694604671.0 (ended by SIGKILL)",
            Event("lost", 1694604671.0, 1, 1, 6, "ended by SIGKILL"),
        ),
        ("@@@ Stopped 4 workers on GPU 0 at 1694604731.2 (idle)", Event("stopped", 1694604731.2, 0, 4, None, "idle")),
        (
            "@@@ Booted 4 new workers on GPU 2 at 1694604731.2 on node 10.0.0.7",
            Event("booted", 1694604731.2, 2, 4, None, "", "10.0.0.7"),
        ),
        (
            "@@@ Lost worker 6 on GPU 1 at 1694604671.0 on node simulated-2 (ended by SIGKILL)",
            Event("lost", 1694604671.0, 1, 1, 6, "ended by SIGKILL", "simulated-2"),
        ),
    ],
)
def test_the_other_documented_lines_are_written_and_read(line: str, event: Event) -> None:
    assert events.parse(line) == event
    assert events.format(event) == line


@patient
@given(happenings)
def test_an_event_comes_back_from_its_line(event: Event) -> None:
    line = events.format(event)
    assert line.splitlines() == [line]
    assert events.parse(line) == as_one_line(event)
    assert events.parse(f"{line}\r\n") == as_one_line(event)


def test_every_kind_of_event_has_a_line() -> None:
    for kind in events.EVENTS:
        parsed = events.parse(events.format(Event(kind, 1.5, worker=3)))
        assert parsed is not None
        assert parsed.event == kind


@pytest.mark.parametrize(
    "line",
    [
        "",
        "@@@ Elapsed inner time (ms): 66.5",
        "@@@",
        "2026-11-24 07:00:00 server INFO: listening on 127.0.0.1:8080",
        "a kernel printed: @@@ Booted 4 new workers",
        "ERROR all workers are full at 1694604659.16",
    ],
)
def test_other_lines_are_passed_over(line: str) -> None:
    assert events.parse(line) is None


@pytest.mark.parametrize(
    "line",
    [
        BOOTED.removesuffix(" at 1694604659.1637785"),  # cut off
        BOOTED[: BOOTED.index("GPU 0") + 4],  # cut off before the GPU's number
        REJECTED + " and more",
        REJECTED.replace("1694604659.16", "yesterday"),
        "@@@ ERROR of another kind",
        "@@@ Ready worker two on GPU 0 at 1694604659.4",
        "@@@ Booted -1 new workers on GPU 0 at 1694604659.4",
        BOOTED + BOOTED,  # two lines run together
    ],
)
def test_a_line_that_only_begins_like_an_event_is_an_error(line: str) -> None:
    with pytest.raises(EventLineError, match="not a whole event line"):
        events.parse(line)


@patient
@given(st.text(max_size=60))
def test_whatever_follows_an_events_beginning_raises_nothing_else(tail: str) -> None:
    for beginning in ("@@@ Booted ", "@@@ ERROR ", "@@@ Ready ", "@@@ Lost ", "@@@ Stopped ", ""):
        problem = ""
        try:
            events.parse(beginning + tail)
        except EventLineError as error:
            problem = str(error)
        assert len(problem.splitlines()) <= 1


# Logs


def test_the_original_lines_become_the_documented_rows(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.write_text(f"{BOOTED}\n{REJECTED}\n")
    assert events.sort_log(source, target) == 2
    assert target.read_text().splitlines() == [
        HEADER,
        "0,0,1694604659.16,rejected,,,",
        "4,0,1694604659.1637785,booted,,,",
    ]


def test_lines_that_are_no_events_leave_no_trace(tmp_path: Path) -> None:
    log = f"listening\n@@@ Elapsed inner time (ms): 66.5\n\n{BOOTED}\nnot one of ours\n"
    assert [row[3] for row in sorted_rows(tmp_path, log)] == ["booted"]


@patient
@given(st.lists(happenings, max_size=6))
def test_every_event_of_a_log_is_in_the_csv_in_order_of_time(tmp_path: Path, happened: list[Event]) -> None:
    rows = sorted_rows(tmp_path, "".join(events.format(event) + "\n" for event in happened))
    expected = [as_one_line(event) for event in sorted(happened, key=lambda event: event.timestamp)]
    assert rows == [
        [
            str(event.num_workers),
            str(event.gpu),
            str(event.timestamp),
            event.event,
            "" if event.worker is None else str(event.worker),
            event.detail,
            event.node,
        ]
        for event in expected
    ]


def test_events_of_the_same_time_stay_in_the_order_of_the_log(tmp_path: Path) -> None:
    log = "".join(f"@@@ Booted 4 new workers on GPU {gpu} at 5.0\n" for gpu in (2, 0, 1))
    assert [row[1] for row in sorted_rows(tmp_path, log)] == ["2", "0", "1"]


def test_an_empty_log_makes_a_csv_with_nothing_but_its_header(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.touch()
    assert events.sort_log(source, target) == 0
    assert target.read_text() == HEADER + "\n"


def test_a_log_that_is_not_text_is_read_all_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.write_bytes(b"\xff\xfe\0\n" + BOOTED.encode() + b"\n")
    assert events.sort_log(source, target) == 1


def test_malformed_event_lines_are_named_and_the_sound_ones_are_written(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.write_text(f"first\n{BOOTED[:-20]}\n{BOOTED}\n@@@ ERROR\n")
    with pytest.raises(ResultsError) as caught:
        events.sort_log(source, target)
    text = str(caught.value)
    assert str(source) in text
    assert "line 2" in text
    assert "line 4" in text
    assert "line 3" not in text
    assert target.read_text() == f"{HEADER}\n4,0,1694604659.1637785,booted,,,\n"


def test_a_missing_log_is_named_and_no_csv_appears(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    with pytest.raises(ResultsError, match=r"server\.log"):
        events.sort_log(source, target)
    assert not target.exists()


def test_a_csv_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = tmp_path / "server.log"
    source.touch()
    with pytest.raises(ResultsError, match="nowhere"):
        events.sort_log(source, tmp_path / "nowhere" / "serverlogs.csv")


# The script


def test_the_script_sorts_a_log_and_says_how_many_events_there_were(tmp_path: Path) -> None:
    source, target = tmp_path / "server.log", tmp_path / "serverlogs.csv"
    source.write_text(f"{BOOTED}\n{REJECTED}\n")
    done = sort_as_script(source, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 events" in done.stdout
    assert len(target.read_text().splitlines()) == 3


@pytest.mark.parametrize("log", [None, "@@@ Booted\n@@@ ERROR\n"])
def test_the_script_says_in_one_line_what_is_wrong(tmp_path: Path, log: str | None) -> None:
    source = tmp_path / "server.log"
    if log is not None:
        source.write_text(log)
    done = sort_as_script(source, tmp_path / "serverlogs.csv")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sortserverlogs.py: ")
    assert str(source) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_of_a_disk_that_is_full_it_is_said_which(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text(events.format(Event("booted", 1.0, 0, 4)) + "\n")
    with pytest.raises(ResultsError, match=r"^/dev/full: No space left on device$"):
        events.sort_log(tmp_path / "server.log", Path("/dev/full"))


def test_the_script_without_its_arguments_shows_how_it_is_used(tmp_path: Path) -> None:
    done = sort_as_script(tmp_path / "server.log")
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "Traceback" not in done.stderr


# On stdout


def test_an_event_line_that_is_lost_is_told_and_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        lines = events.Printer(lambda stamp: stamp + 1.0)
        with monkeypatch.context() as full:
            full.setattr("kaas.outlet.os.write", torn_write(os.write))
            lines.print(Event("booted", 0.5, 0, 4))
        lines.print(Event("booted", 1.5, 1, 4))
    monkeypatch.undo()
    assert path.read_text().splitlines() == ["@@@ Boo", "@@@ Booted 4 new workers on GPU 1 at 2.5"]
    assert caplog.messages == ["stdout: No space left on device; lost: @@@ Booted 4 new workers on GPU 0 at 1.5"]


# Refusals by the million

MANY = "@@@ ERROR all workers are full at 1694604660.5 (3 times since 1694604660.4)"


def test_a_line_that_stands_for_many_refusals_becomes_as_many_rows(tmp_path: Path) -> None:
    rows = sorted_rows(tmp_path, f"{MANY}\n{BOOTED}\n{REJECTED}\n")
    assert [row[3] for row in rows] == ["rejected", "booted", *["rejected"] * 3]
    assert {tuple(row[:4]) for row in rows[2:]} == {("0", "0", "1694604660.5", "rejected")}
    assert events.sort_log(tmp_path / "server.log", tmp_path / "again.csv") == 5


def test_only_a_refusal_stands_for_many(tmp_path: Path) -> None:
    assert len(sorted_rows(tmp_path, "@@@ Stopped 4 workers on GPU 0 at 5.0 (3 times since 4.0)\n")) == 1


def test_refusals_at_ordinary_rates_have_a_line_each_to_the_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ROOM", 100)
    stamps = [number / 100 for number in range(100)] + [1.0 + number / 5 for number in range(1, 50)]
    lines = printed(tmp_path, monkeypatch, [Event("rejected", stamp) for stamp in stamps])
    assert lines == [f"@@@ ERROR all workers are full at {stamp}" for stamp in stamps]


def test_a_storm_of_refusals_is_few_lines_and_every_one_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ROOM", 100)
    storm = [Event("rejected", 1e9 + number / 1e6) for number in range(50_000)]
    lines = printed(tmp_path, monkeypatch, [*storm, Event("booted", 1e9 + 60, 0, 4), Event("rejected", 1e9 + 61)])
    assert len(lines) < 1000, "a line for each tenth of a second that it took, but for those that have room"
    rows = sorted_rows(tmp_path, "".join(line + "\n" for line in lines))
    assert [row[3] for row in rows] == ["rejected"] * 50_000 + ["booted", "rejected"]


def test_refusals_that_nobody_reads_are_counted_and_said_once_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as read, os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        lines = events.Printer(float)
        for number in range(30_000):  # more than the pipe and the lines that wait have room for
            lines.print(Event("rejected", float(number)))
        monkeypatch.undo()
        counted = 0
        while counted < 30_000:
            counted += sum(map(events.times, events.parse_log([read.readline()], [])))
        assert counted == 30_000
        lines.close()


def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: list[Event]) -> list[str]:
    """Print events to a file; give its lines."""
    path = tmp_path / "printed"
    with path.open("w") as file, monkeypatch.context() as context:
        context.setattr(sys, "stdout", file)
        lines = events.Printer(float)
        for event in happened:
            lines.print(event)
        lines.close()
    return path.read_text().splitlines()


def torn_write(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """Make a write to a disk that has room for a few bytes only."""
    rooms = iter((7,))

    def torn(descriptor: int, data: bytes) -> int:
        room = next(rooms, 0)
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:room])

    return torn
