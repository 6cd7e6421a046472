import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support import LIMIT

from kaas import ROOT
from kaas.errors import ResultsError
from kaas.monitor.samples import record
from kaas.samples import Sample

FIRST = (
    "timestamp,gpu,bus_id,uuid,utilization_pct,power_w,energy_j,memory_mib,sm_clock_mhz,temperature_c"  # the contract
)
HEADER = f"{FIRST},node\n"
INTERVAL = 0.0001


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Source:
    """Gives samples of three GPUs; sends a signal to this process, that is to `record`, within the `last` take."""

    def __init__(self, path: Path, last: int, signal_number: int = signal.SIGTERM) -> None:
        self.path = path
        self.last = last
        self.signal_number = signal_number
        self.taken = 0
        self.seen: list[str] = []  # the file as it stood at each take

    def take(self) -> list[Sample]:
        self.seen.append(self.path.read_text())
        self.taken += 1
        if self.taken == self.last:
            os.kill(os.getpid(), self.signal_number)
        return [Sample(float(self.taken), gpu, f"virtual:{gpu}", utilization_pct=12.5) for gpu in range(3)]


def rows_of(taken: int) -> str:
    return "".join(
        f"{number}.0,{gpu},virtual:{gpu},,12.5,,,,,,\n" for number in range(1, taken + 1) for gpu in range(3)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_recording_after_the_sample_it_is_in(tmp_path: Path, number: int) -> None:
    path = tmp_path / "monitoring.csv"
    source = Source(path, 3, number)
    record(source.take, path, INTERVAL, supervised=0)
    assert source.taken == 3
    assert path.read_text() == HEADER + rows_of(3)


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("line", range(1, 60))
def test_a_signal_at_any_line_of_what_it_waits_with_ends_the_recording(tmp_path: Path, line: int) -> None:
    path, lines = tmp_path / "monitoring.csv", itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "line" and next(lines) == line:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace

    def take() -> list[Sample]:
        sys.settrace(trace)  # of what `record` calls from now on
        return []

    before = sys.gettrace()
    try:
        record(take, path, INTERVAL, supervised=0)
    finally:
        sys.settrace(before)
    assert path.read_text() == HEADER


def test_each_sample_is_in_the_file_whole_before_the_next_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.csv"
    source = Source(path, 4)
    record(source.take, path, INTERVAL, supervised=0)
    # The header may still be under way at the first.
    assert source.seen[1:] == [HEADER + rows_of(taken) for taken in (1, 2, 3)]


def test_what_is_not_known_is_an_empty_cell_and_what_is_known_is_there(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.csv"

    def take() -> list[Sample]:
        os.kill(os.getpid(), signal.SIGTERM)
        return [
            Sample(1.5, 0, "virtual:0"),
            Sample(1.5, 1, "00:15.0", "GPU-1", 45.0, 61.2, 7.0, 512.0, 1530.0, 40.0, "b"),
        ]

    record(take, path, INTERVAL, supervised=0)
    assert (
        path.read_text() == HEADER + "1.5,0,virtual:0,,,,,,,,\n1.5,1,00:15.0,GPU-1,45.0,61.2,7.0,512.0,1530.0,40.0,b\n"
    )


def test_no_samples_at_all_make_a_file_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.csv"

    def take() -> list[Sample]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    record(take, path, INTERVAL, supervised=0)
    assert path.read_text() == HEADER


def test_an_earlier_runs_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.csv"
    path.write_text("an earlier run")
    with pytest.raises(ResultsError, match="earlier run"):
        record(lambda: pytest.fail("a sample was taken"), path, INTERVAL, supervised=0)
    assert path.read_text() == "an earlier run"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="nowhere"):
        record(list, tmp_path / "nowhere" / "monitoring.csv", INTERVAL, supervised=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_supervised_it_leaves_ctrl_c_and_a_terminals_end_to_the_script_in_charge(tmp_path: Path, number: int) -> None:
    path = tmp_path / "monitoring.csv"
    source = Source(path, 4)

    def take() -> list[Sample]:
        os.kill(os.getpid(), number)
        return source.take()

    record(take, path, INTERVAL, supervised=os.getppid())
    assert path.read_text() == HEADER + rows_of(4)


@pytest.mark.parametrize(("supervised", "taken"), [(4711, 2), (0, 4)])
def test_supervised_it_ends_when_its_parent_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervised: int, taken: int
) -> None:
    path = tmp_path / "monitoring.csv"
    source = Source(path, 4)
    monkeypatch.setattr(os, "getppid", lambda: 1 if source.taken >= 2 else 4711)
    record(source.take, path, INTERVAL, supervised=supervised)
    assert path.read_text() == HEADER + rows_of(taken)


def test_sigterm_from_outside_ends_a_recording_process_in_order(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.csv"
    code = """
import itertools, pathlib, sys
from kaas.monitor.samples import record
from kaas.samples import Sample
numbers = itertools.count(1)
def take():
    print("taken", flush=True)
    number = next(numbers)
    return [Sample(float(number), gpu, f"virtual:{gpu}", utilization_pct=12.5) for gpu in range(3)]
record(take, pathlib.Path(sys.argv[1]), 0.001, 0)
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline() == "taken\n"
        child.terminate()
        output = child.stdout.read()  # `communicate` would miss what has been read ahead
        errors = child.communicate(timeout=LIMIT)[1]
    assert (child.returncode, errors) == (0, "")
    assert path.read_text() == HEADER + rows_of(3 + output.count("taken"))
