"""The model's parameters: what cannot be is refused, and a setup's time lies between those that were measured."""

from typing import Any

import pytest

from kaas.errors import UsageError
from kaas.simulation.model import MEANINGS, UNITS, Model

TABLE: dict[str, Any] = {
    "setup_alone": 0.5,
    "setup_clients": (1.0, 2.0, 4.0, 8.0),
    "setup_seconds": (0.5, 0.6, 0.8, 1.6),
}


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8), (5, 1.0), (6, 1.2), (8, 1.6), (16, 3.2), (80, 16.0)],
)
def test_a_setup_lies_between_those_measured_and_grows_in_proportion_beyond(clients: int, seconds: float) -> None:
    assert Model(**TABLE).setup(clients) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel": -1.0}, "kernel = -1.0 cannot be"),
        ({"rest": float("nan")}, "rest = nan cannot be"),
        ({"boot": float("inf")}, "boot = inf cannot be"),
        ({"kernel": 0.0}, "kernel must be above 0"),
        ({"setup_clients": (2.0, 1.0, 4.0, 8.0)}, "setup_clients must rise"),
        ({"setup_seconds": (0.5,)}, "a value for each of them"),
        ({"kernel_crowd": (1.0,)}, "kernel_crowd must rise"),
        ({"kernel_crowd": (2.0,), "kernel_seconds": (1.0,)}, "kernel_crowd must begin with 1"),
        ({"setup_seconds": (0.0, 0.6, 0.8, 1.6)}, "be above 0"),
        ({"setup_clients": (), "setup_seconds": ()}, "must begin with 1"),
        ({"host_noise_from": 8.0, "host_noise_full": 8.0}, "above host_noise_from"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Model(**TABLE | changes)


def test_every_parameter_says_its_unit_and_what_it_means() -> None:
    assert set(UNITS.values()) == {"s", "1"}
    assert all(MEANINGS[name] for name in UNITS)
