"""nvidia-smi is asked without what is none of its business."""

from pathlib import Path

import pytest

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
