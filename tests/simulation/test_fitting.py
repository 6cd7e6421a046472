"""A model that is fitted to a run which was simulated is the one by which it was; one fitted to little is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaas import ROOT
from kaas.errors import ResultsError
from kaas.ramp import Ramp
from kaas.simulation import calibration, fitting, observed
from kaas.simulation.experiment import simulate
from kaas.simulation.fits import Fits
from kaas.simulation.fitting_gpus import fit_held
from kaas.simulation.model import UNITS, Model
from kaas.simulation.observed import Observed
from kaas.simulation.setting import Setting

TRUE = calibration.load("published").model
RAMP = Ramp(1, 30, 1, 5.0)
PUBLISHED = ROOT.parent / "shared" / "paper-results"


def run(model: Model, seed: int = 3) -> Observed:
    made = simulate(model, replace(Setting(), shape=RAMP, observed=False), seed)
    return observed.of_rows(made.rows, interval=RAMP.interval, name="made")


@pytest.fixture(scope="module")
def found() -> Fits:
    return fitting.fit([run(replace(TRUE, leaves_after=20.0))], 8, 4)


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("setup_alone", 0.02),
        ("kernel", 0.02),
        ("upload", 0.08),
        ("download", 0.08),
        ("rest", 0.05),
        ("rest_per_client", 0.35),
        ("rest_spread", 0.2),
        ("boot_first", 0.1),
        ("setup_spread", 0.6),
        ("last_begins", 0.2),
    ],
)
def test_what_a_run_was_made_by_is_found_in_it(found: Fits, name: str, off: float) -> None:
    assert found[name].value == pytest.approx(getattr(TRUE, name), rel=off)


def test_the_setups_table_is_found_again(found: Fits) -> None:
    values: dict[str, Any] = {name: one.value for name, one in found.items()}
    fitted = Model(**values)
    for clients in range(1, 16):
        assert fitted.setup(clients) == pytest.approx(TRUE.setup(clients), rel=0.06)


def test_for_how_long_a_place_is_held_is_found_by_which_requests_were_cold(found: Fits) -> None:
    made = run(replace(TRUE, rest_held=0.9))
    usual = np.full(len(made), TRUE.rest) + TRUE.rest_per_client * made.others
    held = [found["rest_held"].value, fit_held([made], usual, 8, 4).value]
    assert held == pytest.approx([0.2, 0.9], abs=0.25)


def test_every_parameter_is_found_or_assumed_and_says_where_it_comes_from(found: Fits) -> None:
    assert found.keys() == UNITS.keys()
    for name, one in found.items():
        assumed = not isinstance(one.plus_minus, tuple) and np.isnan(one.plus_minus)
        assert one.source
        assert not assumed or name == "setup_clients" or one.source.startswith("assumed"), name


def test_workers_leave_if_clients_fell_silent(found: Fits) -> None:
    assert found["leaves_after"].value == 60.0
    assert "clients fell silent" in found["leaves_after"].source
    assert run(replace(TRUE, leaves_after=0.0)).silent() == []


def test_too_few_requests_are_refused() -> None:
    whole = run(TRUE)
    few = whole.part(np.arange(len(whole)) < 150)
    with pytest.raises(ResultsError, match=r"made: .* warm requests are too few"):
        fitting.fit([few], 8, 4)


def test_a_run_without_a_client_alone_is_refused() -> None:
    whole = run(TRUE)
    with pytest.raises(ResultsError, match="begin the ramp with 1 client"):
        fitting.fit([replace(whole, company=whole.company + 3)], 8, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chosen"), [("published-1", (0,)), ("published-2", (1,)), ("published", (0, 1))])
def test_the_calibrations_that_come_with_the_project_are_those_of_the_published_data(
    name: str, chosen: tuple[int, ...]
) -> None:
    try:
        runs = observed.read(PUBLISHED)
    except ResultsError as error:
        pytest.skip(f"the published results are not here: {error}")
    content = Path(calibration.__file__).with_name("calibrations").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    of = ", ".join(runs[number].name for number in chosen)
    assert content == calibration.encode(fitting.fit([runs[number] for number in chosen], 8, 4), f"fitted to {of}")
