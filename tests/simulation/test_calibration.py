"""Calibrations are TOML with units; what is none is refused in one line that says what to do."""

from pathlib import Path

import pytest

from kaas.errors import ResultsError, UsageError
from kaas.simulation import calibration
from kaas.simulation.fits import ASSUMED, Fit, Fits
from kaas.simulation.model import UNITS

FITS: Fits = {
    "setup_alone": Fit(0.5, 0.01, 'with a "quote" and a \\'),
    "setup_clients": Fit((1.0, 2.0), ASSUMED, "so many"),
    "setup_seconds": Fit((0.5, 0.75), (0.01, 0.02), "two"),
    "kernel": Fit(0.8, 0.002, "one"),
    "leaves_after": Fit(60.0, ASSUMED, "assumed: why"),
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    calibration.write(FITS, "a run\nof mine", tmp_path / "mine.toml")
    found = calibration.load(str(tmp_path / "mine.toml"))
    assert (found.name, found.about) == ("mine", "a run of mine")
    assert {name: getattr(found.model, name) for name in FITS} == {name: fit.value for name, fit in FITS.items()}
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    assert 'kernel = { value = 0.8, unit = "s", plus_minus = 0.002, from = "one" }' in text
    assert 'leaves_after = { value = 60.0, unit = "s", from = "assumed: why" }' in text


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(ResultsError, match="is there already: move it away"):
        calibration.write(FITS, "", tmp_path / "mine.toml")
    with pytest.raises(ResultsError, match="No such file"):
        calibration.write(FITS, "", tmp_path / "nowhere" / "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == "mine"


@pytest.mark.parametrize("name", calibration.names())
def test_those_that_come_with_the_project_know_every_parameter(name: str) -> None:
    model = calibration.load(name).model
    assert model.kernel == pytest.approx(0.8, abs=0.02)
    assert model.values().keys() == UNITS.keys()


GOOD = """\
[parameters]
setup_alone = { value = 0.5, unit = "s" }
setup_clients = { value = [1], unit = "1" }
setup_seconds = { value = [0.5], unit = "s" }
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no toml", "is no calibration"),
        ("about = 1", "it has no \\[parameters\\]"),
        (GOOD + 'speed = { value = 1, unit = "s" }', "there is no parameter speed"),
        (GOOD + "kernel = 0.8", "kernel must be { value"),
        (GOOD + 'kernel = { value = 0.8, unit = "ms" }', "the unit of kernel is s, not ms"),
        (GOOD + 'kernel = { value = 0.8, unit = "s", error = 1 }', "kernel must be { value"),
        (GOOD + 'kernel = { value = "0.8", unit = "s" }', "kernel must be a number"),
        (GOOD + 'kernel = { value = [0.8], unit = "s" }', "kernel must be a number"),
        (GOOD + 'kernel = { value = true, unit = "s" }', "kernel must be a number"),
        (GOOD + 'kernel = { value = nan, unit = "s" }', "kernel = nan cannot be"),
        (GOOD.replace("[1]", "1"), "setup_clients must be a list of numbers"),
        ("[parameters]", "must begin with 1"),
        ("\xff", "is no calibration"),
    ],
)
def test_what_is_no_calibration_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=said) as caught:
        calibration.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_calibration_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no calibration nothing .*published, published-1, published-2"):
        calibration.load("nothing")
