"""The simulation's command line: it writes the files of a run, and what cannot be is said in one line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, eventually

from kaas import ROOT, description, results
from kaas.analysis import figures
from kaas.analysis.run import not_measured
from kaas.analysis.runs import find_runs
from kaas.ramp import Ramp
from kaas.simulation import calibration, ways
from kaas.simulation.setting import Setting

SMALL = ("--max-parallel", "6", "--interval", "3", "-g", "3", "-m", "2")
ALONE = ("--max-parallel", "1", "--interval", "3", "-g", "1")


def simulate(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "simulate.py"), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    done = simulate(folder, *SMALL, "--repeats", "2", "--seed", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "as published  as this harness does" in done.stdout
    assert "Simulated, not measured: results-simulated/ and results-simulated-harness/" in done.stdout
    return folder


def test_a_simulation_writes_the_files_of_a_run(simulated: Path) -> None:
    kinds = (".csv", ".md", "-gpu-monitoring.csv", "-server.log", "-serverlogs.csv")
    for folder in ("simulated", "simulated-harness"):
        names = {f"{folder}-{number}{kind}" for number in (1, 2) for kind in kinds}
        assert {path.name for path in (simulated / f"results-{folder}").iterdir()} == names


def test_its_files_are_read_as_those_of_any_run_and_nothing_is_found_wrong_with_them(simulated: Path) -> None:
    for run in find_runs(simulated / "results-simulated"):
        assert run.notes == ()
        assert [check for check in run.checks if check.found] == []
        assert run.is_whole
        assert run.utilization_is_covered
        assert run.requests["cold_start"].sum() == (run.events["event"] == "booted").sum() > 1
        assert run.monitoring["utilization_pct"].max() == 100


def test_every_file_says_that_it_is_simulated(simulated: Path) -> None:
    folder = simulated / "results-simulated-harness"
    task = "simulated-harness-1"
    told = description.read(folder / f"{task}.md")
    assert told["Not measured"] == "simulated"
    assert (told["Way"], told["Seed"], told["Calibration"]) == ("as this harness does", "5", "published")
    assert description.read_told(folder / f"{task}.md").machine == "SIMULATED (calibration published)"
    assert (folder / f"{task}-server.log").read_text().startswith("SIMULATED (calibration published): no server")
    with (folder / f"{task}-gpu-monitoring.csv").open(newline="") as file:
        assert {row["bus_id"] for row in csv.DictReader(file)} == {"simulated:0", "simulated:1", "simulated:2"}
    # And the rows are of a year in which nobody measured any.
    assert {results.read_rows(folder / f"{task}.csv")[0].timestamp // 1000} == {946_684}


def test_figures_of_what_is_simulated_say_so(simulated: Path) -> None:
    run, other = find_runs(simulated / "results-simulated")
    for figure in (figures.combined(run), figures.by_gpus(run)):
        assert figure.get_suptitle() == "SIMULATED, not measured"
    other.parameters.pop("Not measured")  # type: ignore[attr-defined]
    assert figures.compared([run], [other], ("one", "other")).get_suptitle() == "in part SIMULATED, not measured"
    assert figures.combined(other).get_suptitle() == ""
    assert not_measured([[other], other]) == ""


def test_a_seed_gives_the_same_files_again_and_another_others(simulated: Path, tmp_path: Path) -> None:
    setting = Setting(gpus=3, workers_per_gpu=2, shape=Ramp(1, 6, 1, 3.0))
    ways.run(
        calibration.load("published"), setting, ways.PUBLISHED, range(5, 6), parent=tmp_path, experiment="simulated"
    )
    for path in (tmp_path / "results-simulated").iterdir():
        assert path.read_bytes() == (simulated / "results-simulated" / path.name).read_bytes()
    first, second = (results.read_rows(simulated / f"results-simulated/simulated-{number}.csv") for number in (1, 2))
    assert first[0].timestamp < second[0].timestamp
    assert [row.outer_time_ms for row in first] != [row.outer_time_ms for row in second]


def test_an_earlier_run_is_moved_aside_and_results_are_made_where_the_scripts_make_them(tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert simulate(tmp_path, *ALONE, RESULTS=str(there)).returncode == 0
    before = (there / "results-simulated" / "simulated-1.csv").read_bytes()
    done = simulate(tmp_path, *ALONE, "--seed", "2", RESULTS="there")
    assert (done.returncode, done.stderr) == (0, "")
    (aside,) = there.glob("results-simulated.*")
    assert f"The earlier run in there/results-simulated is now in {aside.relative_to(tmp_path)}" in done.stdout
    assert (aside / "simulated-1.csv").read_bytes() == before
    assert (there / "results-simulated" / "simulated-1.csv").read_bytes() != before
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize("environment", ["locks", "no locks"])
def test_of_two_simulations_at_once_the_second_is_told_who_runs_and_moves_nothing_away(
    tmp_path: Path, environment: str, request: pytest.FixtureRequest
) -> None:
    settings = request.getfixturevalue("without_locks") if environment == "no locks" else {}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "simulate.py"), "--repeats", "1000"],
        cwd=tmp_path,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
    ) as first:
        try:
            eventually((tmp_path / "results-simulated" / "simulated-1.csv").exists)
            second = simulate(tmp_path, *SMALL, **settings)
            other = simulate(tmp_path, *ALONE, "--experiment-name", "other", **settings)
        finally:
            first.kill()
    assert (second.returncode, second.stdout) == (2, "")
    who = f"process {first.pid} on {os.uname().nodename}, since "
    assert second.stderr.startswith(f"simulate.py: another run is writing to {tmp_path}/results-simulated ({who}")
    assert len(second.stderr.splitlines()) == 1
    assert other.returncode == 0
    assert not list(tmp_path.glob("results-simulated.*"))

    after = simulate(tmp_path, *ALONE, **settings)  # what was killed keeps nobody from its folder
    assert (after.returncode, after.stderr) == (0, "")
    assert [path.name for path in tmp_path.glob("results-simulated.*")] != []
    assert not list(tmp_path.glob(".*.lock"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--min-parallel", "9", "--max-parallel", "3"), "goes down, not up"),
        (("calibrate", "."), "holds no run: name a results folder"),
        (("--shape", "bursts:x"), "--shape is 'bursts:x': 'x' is not a number of bursts above 0"),
        (("validate", "."), "holds no run: name a results folder"),
        (("--calibration", "none", "emulate"), "no calibration none"),
        (("emulate", "--time-scale", "0"), "is not a number of seconds above 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = simulate(tmp_path, *arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_shape_is_noted_and_read_and_no_model_is_fitted_to_it(tmp_path: Path) -> None:
    done = simulate(tmp_path, *SMALL, "--shape", "poisson:9")
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = find_runs(tmp_path / "results-simulated-harness")
    assert (run.shape, run.is_open_loop, run.is_whole) == ("poisson:9", True, True)
    assert run.requests["lag_ms"].max() > 1000
    assert (run.requests["arrived"] == run.requests["timestamp"]).all()
    assert [check for check in run.checks if check.found] == []
    done = simulate(tmp_path, "calibrate", "results-simulated-harness")
    assert done.returncode == 1
    assert "is of the shape poisson:9: a model is fitted to clients that grow in steps" in done.stderr


def test_policies_side_by_side_are_a_table_and_a_figure(tmp_path: Path) -> None:
    done = simulate(tmp_path, *SMALL, "policies", "--seeds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all of them looked at together (Holm's\ncorrection, p < 0.05; from 11 seeds on)" in done.stdout
    assert "*" not in done.stdout.partition("Means over 2 simulated runs")[0], "two seeds tell nothing"
    assert {path.name for path in tmp_path.iterdir()} == {"policies.csv", "policies.pdf", "policies.png"}
    done = simulate(tmp_path, "policies")
    assert (done.returncode, done.stdout) == (2, "")
    assert "policies.csv is there already" in done.stderr


def test_a_results_folder_calibrates_the_next_simulation(tmp_path: Path) -> None:
    assert simulate(tmp_path, "--max-parallel", "16", "--interval", "6").returncode == 0
    done = simulate(tmp_path, "calibrate", "results-simulated-harness", "--output", "mine.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "assumed, since the run does not tell them" in done.stdout
    done = simulate(tmp_path, *SMALL, "--calibration", "mine.toml", "--experiment-name", "next")
    assert done.returncode == 0
    assert "Calibration: mine" in (tmp_path / "results-next" / "next-1.md").read_text()
