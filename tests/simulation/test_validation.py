"""A run's first repeat predicts the others, and where it does not the error says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from kaas.errors import ResultsError
from kaas.ramp import Ramp
from kaas.simulation import calibration, fitting, observed, validation, ways
from kaas.simulation.calibration import Calibration
from kaas.simulation.experiment import simulate
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting

SETTING = Setting(gpus=4, workers_per_gpu=4, shape=Ramp(1, 16, 1, 6.0))
SEEDS = range(1, 6)


def write(folder: Path, model: Model, seed: int) -> Path:
    """Write a made-up run beside those that are there."""
    made = Calibration("made up", model, "")
    ways.run(made, SETTING, ways.HARNESS, range(seed, seed + 1), parent=folder / str(seed), experiment="x")
    (folder / "results-x").mkdir(exist_ok=True)
    for path in (folder / str(seed) / "results-x").iterdir():
        path.rename(folder / "results-x" / path.name.replace("x-1", f"x-{seed}"))
    return folder / "results-x"


def errors(said: str) -> dict[str, float]:
    """The last cell of each line of the table, where it is a number."""
    table = (line for line in said.splitlines() if line.endswith("%") and "  " in line)
    return {line.partition("  ")[0]: float(line.split()[-1].rstrip("%")) / 100 for line in table}


def test_the_next_repeat_of_the_same_is_predicted_and_that_of_another_is_not(tmp_path: Path) -> None:
    model = calibration.load("published").model
    write(tmp_path, model, 1)
    said = validation.validate(write(tmp_path, model, 2), SEEDS)
    assert said.splitlines()[0].split() == ["fitted", "to", "predicted", "measured", "error"]
    found = errors(said)
    assert {name for name, error in found.items() if abs(error) > 0.05} == set()
    assert set(found) >= {"GPU 1 booted at [s]", "requests", "served [1/s]", "completion time, p50 [s]"}
    assert "Fitted to x-1; measured: x-2; predicted: 5 simulated runs, not measured" in said

    (tmp_path / "results-x" / "x-2.csv").unlink()
    said = validation.validate(write(tmp_path, replace(model, kernel=1.3 * model.kernel), 3), SEEDS)
    found = errors(said)
    assert found["requests"] > 0.05
    assert found["completion time, p95 [s]"] < -0.05


def test_one_repeat_predicts_none(tmp_path: Path) -> None:
    folder = write(tmp_path, calibration.load("published").model, 1)
    with pytest.raises(ResultsError, match="has one repeat only: it takes two"):
        validation.validate(folder, SEEDS)


def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    write(tmp_path, calibration.load("published").model, 1)
    folder = write(tmp_path, calibration.load("published").model, 2)
    path = folder / "x-1.md"
    path.write_text(path.read_text().replace("Server number of GPUs: 4", "Server number of GPUs: many"))
    with pytest.raises(ResultsError, match="Server number of GPUs: many, which is no number"):
        validation.validate(folder, SEEDS)


def test_the_kernels_of_virtual_gpus_share_cores() -> None:
    model = Model(
        setup_alone=0.001,
        setup_clients=(1.0,),
        setup_seconds=(0.001,),
        kernel=0.1,
        kernel_spread=0.002,
        kernel_cores=2.0,
    )
    setting = replace(SETTING, shape=Ramp(1, 6, 1, 20.0))
    rows = simulate(model, setting, 1).rows
    # One has a core, six have two.
    inner = {clients: [row.inner_time_ms for row in rows if row.concurrency == clients] for clients in (1, 6)}
    assert sum(inner[1]) / len(inner[1]) == pytest.approx(100.0, rel=0.02)
    assert sum(inner[6]) / len(inner[6]) == pytest.approx(300.0, rel=0.05)
    found = fitting.fit([replace(observed.of_rows(rows, interval=20.0), virtual=True)], 4, 4)
    assert found["kernel"].value == pytest.approx(0.1, rel=0.02)
    assert found["kernel_cores"].value == pytest.approx(2.0, rel=0.03)
