"""nvidia-smi is asked without what is none of its business, and answers whatever it says besides."""

from pathlib import Path

import pytest
from project import StandIns
from support import eventually

from kaas import machine
from kaas.monitor.nvidia_smi import NvidiaSmi


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
    monitor = NvidiaSmi(100, (), print)
    try:
        assert monitor._process.wait(30) == 0
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

    monitor = NvidiaSmi(100, (), said.append)
    try:
        samples = eventually(monitor.take, what="there are samples")
    finally:
        monitor.close()

    assert {sample.uuid for sample in samples} <= {"GPU-stand-in-0", "GPU-stand-in-1"}
    description = machine.describe()["GPUs"]
    assert description == "0: Stand-in V100, 570.00; 1: Stand-in V100, 570.00"
