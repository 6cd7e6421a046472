"""A rehearsal of the paper's run: real script, server, workers and clients, emulated GPUs; and how it is marked."""

import json
import os
import signal
from typing import Any

import pytest
from project import Project
from support import eventually

from kaas import description
from kaas.analysis import figures
from kaas.analysis.run import not_measured
from kaas.analysis.runs import find_runs

SHORT: dict[str, Any] = {"EXPERIMENT": "autoscaling", "AVAILABLE_GPUS": 2, "MAX_MPL_PER_GPU": 2}
"""Where the fixture looks; and little of it."""
SMALL = SHORT | {"TIME_SCALE": 40, "MAX_MPL": 4, "INTERVAL": 0.5}
LONG = SHORT | {"INTERVAL": 600}
OPTION = "--rehearse-paper"


def test_a_rehearsal_is_a_run_with_all_times_scaled_and_every_file_says_that_it_was_not_measured(
    project: Project,
) -> None:
    code, said = project.run("autoscale-cpu.sh", OPTION, **SMALL)

    assert code == 0, said
    assert "GPUs: emulated, so that nothing of this run is a measurement" in said
    rows, (task,) = project.rows(), (path.stem for path in project.results.glob("*-1.md"))
    assert {row.status for row in rows} == {"ok"}
    assert {row.gpu for row in rows} == {0, 1}
    assert not_measured(find_runs(project.results)) == "EMULATED, not measured", "which every figure has for its title"
    # The kernel alone takes 0.8 / 40 s.
    assert min(row.inner_time_ms for row in rows) >= 19.0
    assert min(row.setup_time for row in rows) >= 10.0
    assert max(float(sample["utilization_pct"]) for sample in project.utilization()) == 100.0

    assert "emulated" in task
    told = description.read(project.results / f"{task}.md")
    assert (told["Not measured"], told["Time scale"], told["Calibration"]) == ("emulated", "40", "published")
    assert (told["Backoff"], told["Server idle timeout [s]"]) == ("0.0025", "1.5")
    machine = description.read_told(project.results / f"{task}.md").machine
    assert machine.startswith("EMULATED (calibration published, time scale 40) on ")
    year_2000 = range(946_684_800, 978_307_200)
    assert int(rows[0].timestamp) in year_2000
    for events in (project.events(), project.utilization()):
        assert {int(float(event["timestamp"])) in year_2000 for event in events} == {True}
    assert {"emulated" in event["detail"] for event in project.events() if event["event"] == "ready"} == {True}
    assert {sample["bus_id"] for sample in project.utilization()} == {"emulated:0", "emulated:1"}
    assert "EMULATED (calibration published, time scale 40)" in (project.results / f"{task}-server.log").read_text()


@pytest.mark.slow
def test_the_report_of_a_rehearsal_says_so_on_every_figure_and_in_its_numbers(project: Project) -> None:
    code, said = project.draw_the_report("combined").run("autoscale-cpu.sh", OPTION, **SMALL)

    assert code == 0, said
    told = json.loads((project.results / "summary.json").read_text())["repeats"][0]
    assert told["parameters"]["Not measured"] == "emulated"
    assert (project.results / "autoscaling-combined.png").stat().st_size > 10_000
    (run,) = find_runs(project.results)
    assert figures.combined(run).get_suptitle() == "EMULATED, not measured"


def test_without_anything_else_it_is_the_papers_setting(project: Project) -> None:
    code, said = project.run("autoscale-cpu.sh", OPTION, "--dry-run", TIME_SCALE=10, PORT=0)

    assert code == 0, said
    assert "48 steps x 1 s, about 64 s" in said
    assert "simulate.py --num-gpus 8 --calibration published emulate --time-scale 10 " in said
    assert "gpu-server-scaling.py cuda-matmul-emulated --port 0 --num-gpus 8 --max-req-per-gpu 4 " in said
    assert " --idle-timeout 6 " in said
    assert "results-rehearsal/rehearsal-cuda-matmul-emulated-50-1-gpu-monitoring.csv --source emulated" in said
    assert "--client=cuda-matmul-emulated-client --input=50 --experiment-name=rehearsal" in said
    assert "--max-parallel 48" in said
    assert not list(project.folder.glob("results-*"))


@pytest.mark.parametrize(
    ("script", "settings", "complaint"),
    [
        ("autoscale-cpu.sh", {"TIME_SCALE": "fast"}, "TIME_SCALE is 'fast': give a number above 0"),
        ("autoscale-cpu.sh", {"TIME_SCALE": "0.0"}, "TIME_SCALE is '0.0': give a number above 0"),
        (
            "autoscale-cpu.sh",
            {"CALIBRATION": "mine"},
            "no calibration mine (No such file or directory): give a TOML file",
        ),
        ("autoscale-cpu.sh", {"TIME_SCALE": 10, "SHAPE": "poisson:8"}, "SHAPE=poisson:8 is in real seconds"),
        ("autoscale-cpu.sh", {"ENGINE": "ray"}, "--rehearse-paper goes with ENGINE=local"),
        ("autoscale.sh", {}, "there is no option --rehearse-paper"),
    ],
)
def test_what_cannot_be_rehearsed_is_said_in_one_line(
    project: Project, script: str, settings: dict[str, Any], complaint: str
) -> None:
    code, said = project.run(script, OPTION, "--check", **settings)

    assert code == 2
    assert complaint in said.splitlines()[-1]
    assert not list(project.folder.glob("results-*"))


@pytest.mark.slow
def test_a_rehearsal_without_its_emulator_ends_and_says_why(project: Project) -> None:
    process = project.start("autoscale-cpu.sh", OPTION, **LONG)
    eventually(project.has_rows)
    (emulator,) = (line for line in project.marked.left() if " emulate " in line)

    os.kill(int(emulator.partition(":")[0]), signal.SIGTERM)

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode != 0
    assert "the emulator (KAAS_EMULATOR) has ended" in said
    assert any("has ended" in row.error for row in project.rows())
