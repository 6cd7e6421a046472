"""A calibration: a model's parameters as TOML, each with its unit, how sure it is and where it comes from.

    about = "what it was found from"

    [parameters]
    kernel = { value = 0.8045, unit = "s", plus_minus = 0.002, from = "served by booted GPUs ..." }

A parameter without `plus_minus` is assumed. One that is left out has the model's default, which leaves out what it is
about. Those of the published data come with the project.
"""

import math
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from kaas.errors import ResultsError, UsageError
from kaas.simulation.fits import Fits
from kaas.simulation.model import MEANINGS, UNITS, Model

_SHIPPED = Path(__file__).with_name("calibrations")
_DIGITS = 4
_KEYS = {"value", "unit", "plus_minus", "from"}


class Calibration(NamedTuple):
    """A model, its name, and what it was found from in words."""

    name: str
    model: Model
    about: str


def names() -> list[str]:
    """List the calibrations that come with the project."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load(name: str) -> Calibration:
    """Load one that comes with the project, by its name, or one of a file.

    Raises:
        UsageError: there is none, or it is none.
    """
    path = _SHIPPED / f"{name}.toml" if name in names() else Path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(names())
        raise UsageError(f"no calibration {name} ({error.strerror}): give a TOML file, or one of {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no calibration: {error}") from None
    parameters = content.get("parameters")
    if not isinstance(parameters, dict):
        raise UsageError(f"{path} is no calibration: it has no [parameters]")
    try:
        values: dict[str, Any] = {name: _value(name, told) for name, told in parameters.items()}
        return Calibration(path.stem, Model(**values), str(content.get("about", "")))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _value(name: str, told: Any) -> float | tuple[float, ...]:
    if name not in UNITS:
        raise UsageError(f"there is no parameter {name}: give some of {', '.join(UNITS)}")
    if not isinstance(told, dict) or "value" not in told or not told.keys() <= _KEYS:
        raise UsageError(f'{name} must be {{ value = ..., unit = "{UNITS[name]}", plus_minus = ..., from = "..." }}')
    if told.get("unit") != UNITS[name]:
        raise UsageError(f"the unit of {name} is {UNITS[name]}, not {told.get('unit')}")
    value, wants_several = told["value"], isinstance(getattr(Model, name, ()), tuple)
    several = value if isinstance(value, list) else [value]
    if wants_several != isinstance(value, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in several
    ):
        raise UsageError(f"{name} must be {'a list of numbers' if wants_several else 'a number'}")
    return tuple(map(float, several)) if wants_several else float(value)


def encode(fits: Fits, about: str) -> str:
    """Write what was found as a calibration."""
    lines = [f"about = {_quoted(about)}", "", "[parameters]"]
    for name, fit in fits.items():
        told = [f"value = {_number(fit.value)}", f'unit = "{UNITS[name]}"']
        if not _is_assumed(fit.plus_minus):
            told.append(f"plus_minus = {_number(fit.plus_minus)}")
        lines += [f"# {MEANINGS[name]}", f"{name} = {{ {', '.join(told)}, from = {_quoted(fit.source)} }}"]
    return "\n".join(lines) + "\n"


def write(fits: Fits, about: str, path: Path) -> None:
    """Write what was found to a file that is not there yet.

    Raises:
        ResultsError: it is there, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(encode(fits, about))
    except FileExistsError:
        raise ResultsError(f"{path} is there already: move it away, or give another --output") from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def _is_assumed(plus_minus: float | tuple[float, ...]) -> bool:
    return not isinstance(plus_minus, tuple) and math.isnan(plus_minus)


def _number(value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_number, value))}]"
    return repr(round(float(value), _DIGITS))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else " " for one in escaped) + '"'
