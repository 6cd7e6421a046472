"""nvidia-smi as the monitor reads it: whatever it prints besides, however slow it is, whichever GPU is lost."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import StandIns
from support import eventually

from kaas import machine
from kaas.monitor import nvidia_smi, stream
from kaas.monitor.nvidia_smi import NvidiaSmi
from kaas.samples import Sample

UUIDS = [f"GPU-stand-in-{gpu}" for gpu in range(4)]
StartMonitor = Callable[..., NvidiaSmi]


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Four GPUs, told of by the stand-in for nvidia-smi."""
    stand_ins = StandIns(tmp_path / "nvidia", 4)
    for name, text in stand_ins.environment.items():
        monkeypatch.setenv(name, text)
    return stand_ins


@pytest.fixture
def said() -> list[str]:
    """What the monitor says."""
    return []


@pytest.fixture
def start(nvidia: StandIns, said: list[str]) -> Iterator[StartMonitor]:
    """Start a monitor; it is ended with the test."""
    started: list[NvidiaSmi] = []

    def start(uuids: list[str] = UUIDS, interval_ms: int = 10) -> NvidiaSmi:
        started.append(NvidiaSmi(interval_ms, uuids, said.append, time.time))
        return started[-1]

    yield start
    for monitor in started:
        monitor.close()


def take_until(monitor: NvidiaSmi, condition: Callable[[list[Sample]], bool]) -> list[Sample]:
    """Take samples until those that were taken satisfy a condition."""
    samples: list[Sample] = []

    def satisfied() -> bool:
        samples.extend(monitor.take())
        return condition(samples)

    eventually(satisfied)
    return samples


def gpus_of(samples: list[Sample]) -> set[int]:
    return {sample.gpu for sample in samples}


@pytest.mark.parametrize(
    ("state", "unknown"),
    [
        (("style", "units"), set()),
        (("style", "na"), {"utilization_pct", "power_w", "sm_clock_mhz"}),
        (("unknown-fields", "total_energy_consumption\nclocks.sm"), {"energy_j", "sm_clock_mhz"}),
    ],
    ids=["units, header and blanks", "values that are none", "fields that this driver does not know"],
)
def test_whatever_nvidia_smi_prints_is_read_and_what_is_none_is_unknown(
    nvidia: StandIns, start: StartMonitor, state: tuple[str, str], unknown: set[str]
) -> None:
    nvidia.set(*state)

    samples = take_until(start(), lambda samples: len(samples) > 4)

    assert {name for name, value in samples[0]._asdict().items() if value is None} == unknown
    if "power_w" not in unknown:
        assert {sample.power_w for sample in samples} == {100.5, 101.5, 102.5, 103.5}


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which an nvidia-smi and a git note the environments that they were started with."""
    path = tmp_path / "environments"
    for name in ("nvidia-smi", "git"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\n/usr/bin/env >>"{path}"\necho "{name} was here" >>"{path}"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KAAS_TOKEN", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    return path


def test_programs_that_do_not_talk_to_the_server_do_not_get_its_token(environments: Path) -> None:
    monitor = NvidiaSmi(100, (), print, time.time)
    try:
        eventually(lambda: environments.read_text().count("nvidia-smi was here") == 2)
        machine.describe()
    finally:
        monitor.close()
    said = environments.read_text()
    assert said.count("nvidia-smi was here") == 3
    assert "git was here" in said
    assert "LANG=C.UTF-8" in said
    assert "secret" not in said


def test_a_warning_and_an_exit_code_do_not_keep_the_monitor_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins = StandIns(tmp_path / "nvidia", gpus=2)
    stand_ins.set("warns", "WARNING: infoROM is corrupted at gpu 0000:16:00.0")
    for name, value in stand_ins.environment.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []

    monitor = NvidiaSmi(100, (), said.append, time.time)
    try:
        samples = eventually(monitor.take, what="there are samples")
    finally:
        monitor.close()

    assert {sample.uuid for sample in samples} <= {"GPU-stand-in-0", "GPU-stand-in-1"}
    description = machine.describe()["GPUs"]
    assert description == "0: Stand-in V100, 570.00; 1: Stand-in V100, 570.00"


def test_an_nvidia_smi_that_takes_long_to_say_its_first_word_is_waited_for(
    nvidia: StandIns, start: StartMonitor, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia_smi, "_PATIENCE_S", 0.1)
    nvidia.set("silent-until", tmp_path / "ready")
    monitor = start()
    for _ in range(4):
        assert monitor.take() == []  # after a quarter of a second each
    (tmp_path / "ready").touch()

    take_until(monitor, lambda samples: gpus_of(samples) == {0, 1, 2, 3})

    assert said == []
    assert len(nvidia.calls("nvidia-smi")) == 2  # the question for fields, and this one


def test_an_nvidia_smi_that_says_nothing_for_too_long_is_killed_and_it_is_said_so(
    nvidia: StandIns, start: StartMonitor, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia.set("silent-until", tmp_path / "never")
    monkeypatch.setattr(nvidia_smi, "_PATIENCE_S", 0.1)
    monitor = start(UUIDS[:1])
    monkeypatch.setattr("kaas.nvidia.PATIENCE", 0.1)

    eventually(lambda: monitor.take() or len(said) > 0)

    assert re.match(r"nvidia-smi said nothing for \d+ s and was killed at ", said[0])
    assert "exit code" not in said[0]
    (tmp_path / "never").touch()
    take_until(monitor, lambda samples: gpus_of(samples) == {0})


@pytest.mark.parametrize("uuids", [UUIDS, []], ids=["GPUs named", "all GPUs"])
def test_when_one_gpu_is_lost_the_others_are_still_monitored(
    nvidia: StandIns, start: StartMonitor, said: list[str], uuids: list[str]
) -> None:
    monitor = start(uuids)
    take_until(monitor, lambda samples: gpus_of(samples) == {0, 1, 2, 3})
    nvidia.set("lost", 1)
    eventually(lambda: not monitor.take())  # what was under way has been taken

    after = take_until(monitor, lambda samples: min([sum(one.gpu == gpu for one in samples) for gpu in (0, 2, 3)]) > 20)

    assert {sample.uuid for sample in after if sample.gpu != 1} == {UUIDS[0], UUIDS[2], UUIDS[3]}
    assert any("Unable to determine the device handle" in line for line in said)
    assert any("ended with exit code 15" in line for line in said)


@pytest.mark.parametrize("uuids", [UUIDS, []], ids=["GPUs named", "all GPUs"])
@pytest.mark.parametrize("how", [("lost-late", "yes"), ("lost-after", "1")], ids=["some are told of", "all are, once"])
def test_when_nvidia_smi_tells_of_well_gpus_before_it_ends_at_a_lost_one_those_behind_it_are_monitored(
    nvidia: StandIns, start: StartMonitor, said: list[str], uuids: list[str], how: tuple[str, str]
) -> None:
    monitor = start(uuids)
    take_until(monitor, lambda samples: gpus_of(samples) == {0, 1, 2, 3})
    nvidia.set(*how)
    nvidia.set("lost", 1)

    # Of those that go on without a break in one nvidia-smi of their own.
    take_until(monitor, lambda _: "each GPU is asked alone from now on" in said)
    take_until(monitor, lambda samples: min([sum(one.gpu == gpu for one in samples) for gpu in (0, 2, 3)]) > 20)

    monitor.close()
    ended = [line for line in said if "ended with" in line]
    assert not any(UUIDS[gpu] in line for line in ended for gpu in (0, 2, 3)), ended


def test_when_a_gpu_is_lost_from_the_start_the_others_are_monitored(nvidia: StandIns, start: StartMonitor) -> None:
    nvidia.set("lost", 1)

    samples = take_until(start(), lambda samples: gpus_of(samples) >= {0, 2, 3})

    assert gpus_of(samples) == {0, 2, 3}


def test_a_lost_gpu_that_is_back_is_monitored_again(nvidia: StandIns, start: StartMonitor) -> None:
    nvidia.set("lost", 1)
    monitor = start()
    take_until(monitor, lambda samples: gpus_of(samples) >= {0, 2, 3})
    nvidia.set("lost", "")

    take_until(monitor, lambda samples: 1 in gpus_of(samples))


def test_each_kind_of_trouble_is_said_once_and_counted_at_the_end(
    nvidia: StandIns, start: StartMonitor, said: list[str]
) -> None:
    nvidia.set("lost", 0)
    monitor = start(UUIDS[:2])
    eventually(lambda: monitor.take() and len(nvidia.calls("nvidia-smi -")) > 8)
    monitor.close()

    assert len(said) < 12, said
    assert sum("Unable to determine" in line for line in said) == 2  # once said, once counted
    assert any("times in all: nvidia-smi said: Unable to determine" in line for line in said)
    assert any(line.startswith("no samples of GPU-stand-in-0 since") for line in said)


def test_samples_that_nvidia_smi_holds_back_in_the_pipe_are_noticed(
    nvidia: StandIns, start: StartMonitor, said: list[str]
) -> None:
    nvidia.set("burst", 20)

    take_until(start(UUIDS[:1], 50), lambda samples: len(samples) >= 20)

    assert "20 samples of one GPU came at once" in said[0]
    assert "the rows of 1.0 s bear one time stamp" in said[0]


class VirtualTime:
    """A clock that stands still unless it is told to go."""

    now = 1000.0

    def monotonic(self) -> float:
        """Tell the time."""
        return self.now


def test_the_pauses_before_a_restart_grow_while_it_is_of_use_for_moments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualTime()
    monkeypatch.setattr(stream, "time", clock)
    program = stream.Stream(["echo", "a sample"], patience_s=5.0)

    def pause(lived: float) -> float:
        assert program.output is not None
        eventually(lambda: program.take(is_readable=True)[0] == ["a sample"])
        program.be_of_use()
        clock.now += lived
        eventually(lambda: program.take(is_readable=True)[1] is not None)
        ended = clock.now
        while program.output is None:
            program.take(is_readable=False)
            clock.now += 0.05
        return clock.now - ended

    pauses = [pause(0.0) for _ in range(9)]
    assert pauses[0] < 0.1
    assert pauses[1:] == sorted(pauses[1:])
    assert sum(pauses) > 20
    assert pause(60.0) < 0.1
    program.close()
