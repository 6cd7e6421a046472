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
    crowd, seconds = (1.0, 2.0, 6.0), (0.1, 0.1, 0.3)  # two cores
    model = Model(
        setup_alone=0.001,
        setup_clients=(1.0,),
        setup_seconds=(0.001,),
        kernel=0.1,
        kernel_spread=0.002,
        kernel_crowd=crowd,
        kernel_seconds=seconds,
    )
    rows = simulate(model, replace(SETTING, shape=Ramp(1, 6, 1, 20.0)), 1).rows
    inner = {clients: [row.inner_time_ms for row in rows if row.concurrency == clients] for clients in (1, 4, 6)}
    means = {clients: sum(each) / len(each) for clients, each in inner.items()}
    assert means == {one: pytest.approx(at, rel=0.03) for one, at in ((1, 100.0), (4, 200.0), (6, 300.0))}
    found = fitting.fit([replace(observed.of_rows(rows, interval=20.0), virtual=True)], 4, 4)
    assert found["kernel"].value == pytest.approx(0.1, rel=0.02)
    known = dict(zip(found["kernel_crowd"].value, found["kernel_seconds"].value, strict=True))  # type: ignore[arg-type]
    assert known == {one: pytest.approx(Model.kernel_among(model, one), rel=0.05) for one in range(1, 7)}
