import os
import re
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from kaas import cgroup, machine


def percent(facts: dict[str, str]) -> float:
    match = re.fullmatch(r"([\d.]+) % \(neither of this run nor idle\)", facts["CPU time of others"])
    assert match is not None
    return float(match[1])


class CpuTimes(NamedTuple):
    """As psutil's."""

    user: float
    idle: float
    steal: float


class Times:
    """The machine's CPU times and those of a run's processes, which the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user = self.idle = self.steal = self.ours = 0.0
        monkeypatch.setattr(psutil, "cpu_times", lambda: CpuTimes(self.user, self.idle, self.steal))
        monkeypatch.setattr(machine, "cpu_seconds", lambda process: self.ours)
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])


def test_what_was_neither_ours_nor_idle_is_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    times.ours = times.user = 50.0  # before
    use = machine.CpuUse(os.getpid())
    times.user, times.idle, times.steal, times.ours = 50 + 60, 30, 10, 50 + 45

    assert percent(use.facts()) == 25.0  # 15 s of other processes and 10 s of another guest, of 100 s


def test_waits_for_a_quota_are_told_and_those_before_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "throttled", lambda: (100, 200))
    use = machine.CpuUse(os.getpid())
    assert "CPU quota" not in use.facts()
    monkeypatch.setattr(cgroup, "throttled", lambda: (451, 575))

    assert use.facts()["CPU quota"] == "the processes were made to wait in 351 of 375 periods"


def test_the_clock_of_the_cpu_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    assert machine.describe()["CPU governor"] == machine.describe()["CPU turbo"] == "unknown"
    for cpu, governor in enumerate(("powersave", "performance", "powersave")):
        (tmp_path / f"cpu{cpu}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "cpufreq" / "scaling_governor").write_text(f"{governor}\n")
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpufreq" / "boost").write_text("1\n")

    facts = machine.describe()

    assert facts["CPU governor"] == "performance, powersave"
    assert facts["CPU turbo"] == "on"
    assert re.match(r"\d+\.\d\d, ", facts["CPU load before the run"])
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate" / "no_turbo").write_text("1\n")
    assert machine.describe()["CPU turbo"] == "off"


def test_a_machine_without_gpus_is_described_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.describe()["GPUs"] == "none found"
