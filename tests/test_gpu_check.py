"""`scripts/test-gpu`, over stand-ins of NVIDIA's driver and programs, and what `scripts/gpu_results.py` makes of it."""

import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from project import Project, StandIns
from stand_in_driver import Driver, one_card
from support import eventually

from kaas import ROOT

STEPS = ["tests", "kernels", "experiment", "cold-start", "naive", "samples"]
NO_DRIVER: dict[str, Any] = {"NUMBA_DISABLE_CUDA": "1", "SIZES": "64", "N": "100"}

needs_timeout = pytest.mark.skipif(shutil.which("timeout") is None, reason="no `timeout` here: it is for Linux")


@pytest.fixture
def gpu(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "nvidia", gpus=1)


@pytest.fixture
def check(tmp_path: Path, gpu: StandIns) -> Iterator[Project]:
    """A copy of the project on a machine with one GPU that has no driver's library."""
    project = Project(tmp_path / "project", "scripts/test-gpu", "results-gpu-check", without=())
    project.marked.environment |= gpu.environment
    try:
        yield project
        project.marked.assert_nothing_left()
    finally:
        project.marked.kill()


@pytest.fixture(scope="module")
def gpu_results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_results", ROOT / "scripts" / "gpu_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return found


def codes(figures: dict[str, Any]) -> dict[str, int]:
    return {step["name"]: step["code"] for step in figures["steps"]}


@needs_timeout
@pytest.mark.timeout(900)
@one_card
def test_the_check_measures_all_that_it_promises_and_changes_no_setting(
    check: Project, gpu: StandIns, driver: Driver, tmp_path: Path
) -> None:
    check.marked.environment |= driver.variables | gpu.environment | {"KAAS_PYTHON": str(driver.environment.python)}
    out = tmp_path / "out"
    settings: dict[str, Any] = {"N": 200, "SIZES": "64 130", "REVISION": "a revision", "PATIENCE": 9, "PORT": 0}
    code, said = check.draw_the_report().run("scripts/test-gpu", "--quick", str(out), **settings)

    assert code == 0, said
    figures = figures_in(out)
    assert codes(figures) == dict.fromkeys(STEPS, 0)
    assert {test["result"] for test in figures["tests"]} == {"passed"}
    assert figures["revision"] == "a revision"
    kernels = figures["kernels"]["results"]
    assert [(row["n"], row["kernel"]) for row in kernels] == [
        (n, name) for n in (64, 130) for name in ("paper", "fast")
    ]
    assert all(row["right"] and row["gflops"] > 0 and row["pinned_ms"] > 0 for row in kernels)
    experiment = figures["experiment"]
    assert experiment["numbers"]["ok"] > 0
    assert [boot["gpu"] for boot in experiment["boots"]] == [0]
    phases = {row[0] for row in figures["cold-start"]["tables"][0]["rows"]}
    assert phases == {"fork", "import", "context", "compile", "first_launch"}
    assert {row[0] for row in figures["naive"]["tables"][0]["rows"]} == {16, 50}
    measured = {result["name"] for result in figures["samples"]["results"]}
    assert measured >= {"delay of a sample through a pipe", "delay of a sample through a pseudo-terminal"}
    assert any("energy counter: not measured" in note for note in figures["samples"]["notes"])

    page = (out / "gpu-results.md").read_text()
    assert "a revision" in page
    assert page.count("### ") == len(STEPS)
    for picture in ("autoscaling-combined.png", "naive-vs-kaas.png"):
        assert f"({picture})" in page
        assert (out / picture).stat().st_size > 10_000
    assert len(list(out.iterdir())) <= 8, "a tool that brings back few files must bring all"
    assert not [call for call in gpu.calls() if {"-c", "-pm", "-r", "-mig"} & set(call.split())]
    assert gpu.modes() == ["Default"]


@needs_timeout
def test_steps_that_fail_hinder_nothing_and_are_told_at_the_end(check: Project) -> None:
    stand_ins = ("gpu_kernels", "cold_start", "naive_vs_kaas")
    for name in stand_ins:
        (check.folder / "benchmarks" / f"{name}.py").write_text("raise SystemExit(5)\n")
    code, said = check.run("scripts/test-gpu", "--quick", **NO_DRIVER)

    assert code == 1
    figures = figures_in(check.results)
    failed = codes(figures)
    assert list(failed) == STEPS
    assert 0 not in failed.values(), "without a driver nothing can have been measured"
    assert list(failed.values()).count(5) == len(stand_ins)
    assert said.splitlines()[-1] == "test-gpu: failed:" + ";".join(f" {step} ({code})" for step, code in failed.items())
    assert "**code 1**" in (check.results / "gpu-results.md").read_text()
    assert {"log.txt", "results.tar.gz"} <= {path.name for path in check.results.iterdir()}


@needs_timeout
def test_a_check_has_its_folder_for_itself_and_when_cut_off_keeps_what_was_measured_and_leaves_nothing(
    check: Project,
) -> None:
    row: dict[str, Any] = {
        "n": 64,
        "kernel": "paper",
        "gpu_ms": 1.0,
        "gflops": 2.0,
        "share_of_cublas": None,
        "pageable_ms": 3.0,
    }
    found: dict[str, Any] = {
        "rounds": 5,
        "cublas": None,
        "prepare_seconds": {},
        "results": [row | {"pinned_ms": 4.0, "right": True}],
    }
    (check.folder / "benchmarks" / "gpu_kernels.py").write_text(
        f"import pathlib, sys, time\npathlib.Path(sys.argv[-1]).write_text({json.dumps(found)!r})\n"
        "print('measured')\ntime.sleep(600)\n"
    )
    process = check.start("scripts/test-gpu", "--quick", **NO_DRIVER)
    log = check.results / "log.txt"
    eventually(lambda: log.exists() and log.read_text().endswith("measured\n"))
    code, said = check.run("scripts/test-gpu", "--quick", **NO_DRIVER)
    assert code == 2
    who = f"process {process.pid} on {os.uname().nodename}, since "
    assert said.startswith(f"test-gpu: another check is writing to {check.results} ({who}")
    assert len(said.splitlines()) == 1
    process.send_signal(signal.SIGTERM)
    process.communicate()

    assert process.returncode == 128 + signal.SIGTERM
    figures = figures_in(check.results)
    assert list(codes(figures)) == ["tests"]
    assert not (check.results / ".lock").exists()
    assert figures["kernels"]["results"] == found["results"]
    assert "| 64 | paper | 1 | 2 | - | 3 | 4 | right |" in (check.results / "gpu-results.md").read_text()


def test_the_page_in_docs_is_what_is_made_of_the_figures_beside_it(gpu_results: ModuleType) -> None:
    _, marker, made = (ROOT / "docs" / "gpu-results.md").read_text().partition(gpu_results.MADE_BELOW)
    assert marker
    assert made == f"\n{gpu_results.page(gpu_results.published())}"


def test_figures_are_published_under_a_name_of_their_own(
    gpu_results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, docs = tmp_path / "found", tmp_path / "docs"
    folder.mkdir()
    docs.mkdir()
    machine = dict.fromkeys(("Python", "CPU", "Memory", "OS", "Git revision"), "known")
    found = {"date": "2026-01-02", "revision": "", "cards": ["NVIDIA T, 600.1"], "machine": machine, "steps": []}
    figures = found | {"packages": {"numba": "1"}, "tests": [{"test": "test_x.py::test_y", "result": "failed"}]}
    (folder / "figures.json").write_text(json.dumps(figures))
    (folder / "autoscaling-combined.png").write_text("a picture")
    (docs / "gpu-results.md").write_text(f"By hand.\n{gpu_results.MADE_BELOW}\nwhat is older\n")
    monkeypatch.setattr(gpu_results, "DOCS", docs)

    assert gpu_results.main(["publish", str(folder), "t"]) == 0

    page = (docs / "gpu-results.md").read_text()
    assert page.startswith("By hand.\n")
    assert "what is older" not in page
    for said in ("## On NVIDIA T, 2026-01-02", "numba 1", "*Not measured", "- test_x.py::test_y: **failed**"):
        assert said in page
    assert {path.name for path in docs.iterdir()} == {"gpu-results.md", "gpu-t.json", "gpu-t-autoscaling-combined.png"}
