"""What a request costs to simulate, and what it takes, depends on its host and not on the size of the cluster."""

import numpy as np
import pytest

from kaas.ramp import Ramp
from kaas.row import Row
from kaas.simulation import calibration, experiment, ways
from kaas.simulation.loop import VirtualLoop
from kaas.simulation.setting import Setting


def run(gpus: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, list[Row]]:
    """Give the events for each request, and the requests, of ten clients for each GPU."""
    loops: list[VirtualLoop] = []

    class Counted(VirtualLoop):
        def __init__(self) -> None:
            super().__init__()
            loops.append(self)

    monkeypatch.setattr(experiment, "VirtualLoop", Counted)
    model = ways.HARNESS.model(calibration.load("published").model)
    setting = ways.HARNESS.setting(Setting(gpus=gpus, shape=Ramp(10 * gpus, 10 * gpus, 1, 12.0), observed=False))
    rows = experiment.simulate(model, setting, 1).rows
    return next(loops[0]._numbers) / len(rows), rows


def test_a_request_costs_and_takes_as_much_in_a_large_cluster_as_in_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (few, small), (many, large) = run(8, monkeypatch), run(64, monkeypatch)
    assert many == pytest.approx(few, rel=0.15)
    assert len(large) == pytest.approx(8 * len(small), rel=0.1)
    setups = [np.median([row.setup_time for row in rows]) for rows in (small, large)]
    assert setups[1] == pytest.approx(setups[0], rel=0.1)
