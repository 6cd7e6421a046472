"""Verdicts turn where a run is wrong, and stay where it is right, the published and simulated ones."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import wrong_runs
from made_runs import PUBLISHED, needs_published

from kaas.analysis import claims, runs
from kaas.analysis.claims import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS
from kaas.analysis.runs import Run
from kaas.simulation import calibration, ways
from kaas.simulation.calibration import Calibration
from kaas.simulation.setting import Setting

GROW, COLD, BOUNDED, PROPORTIONAL, ALL_USED, NEEDED, WORKS, SERIAL = range(8)


@cache
def published() -> list[Run]:
    return runs.find_runs(PUBLISHED)


@cache
def spoiled(spoil: Callable[[Run], Run]) -> dict[str, list[str]]:
    return verdicts([spoil(run) for run in published()])


def verdicts(found: list[Run]) -> dict[str, list[str]]:
    """Give the verdicts on each claim: of all repeats first, then of each, by their task."""
    frame = claims.check(found)
    tasks = frame.index.get_level_values("task").unique()
    return {task: frame["verdict"].xs(task, level="task").tolist() for task in tasks}


@needs_published
@pytest.mark.parametrize(
    ("spoil", "claim", "verdict"),
    [
        pytest.param(lambda run: wrong_runs.utilization(run, 100.0), WORKS, DOES_NOT_HOLD, id="utilization 100"),
        pytest.param(lambda run: wrong_runs.utilization(run, 0.0), WORKS, DOES_NOT_HOLD, id="utilization 0"),
        (wrong_runs.one_gpu_late, NEEDED, DOES_NOT_HOLD),
        (wrong_runs.boots_as_if_kernels_were_shared, NEEDED, DOES_NOT_HOLD),
        (wrong_runs.boots_at_random, NEEDED, DOES_NOT_HOLD),
        (wrong_runs.boots_twice_as_early, GROW, DOES_NOT_HOLD),
        (wrong_runs.half_refused_after_the_last_boot, ALL_USED, DOES_NOT_HOLD),
        (wrong_runs.half_of_the_clients_dead, PROPORTIONAL, CANNOT_BE_TOLD),
        (wrong_runs.half_of_the_clients_dead, NEEDED, DOES_NOT_HOLD),
        (wrong_runs.half_of_the_clients_never_there, GROW, CANNOT_BE_TOLD),
        (wrong_runs.gpus_of_the_log_shuffled, NEEDED, DOES_NOT_HOLD),
        (wrong_runs.gpus_of_the_monitoring_shuffled, WORKS, DOES_NOT_HOLD),
        (wrong_runs.one_in_a_hundred_ten_times_as_long, BOUNDED, DOES_NOT_HOLD),
        (wrong_runs.ten_ms_more_for_each_client, BOUNDED, DOES_NOT_HOLD),
        (wrong_runs.concurrency_shuffled, PROPORTIONAL, DOES_NOT_HOLD),
    ],
)
def test_what_is_wrong_with_the_published_runs_turns_a_verdict(
    spoil: Callable[[Run], Run], claim: int, verdict: str
) -> None:
    wrong = spoiled(spoil)

    # Of both repeats together, and of each.
    assert [each[claim] for each in wrong.values()] == [verdict] * 3


@needs_published
def test_the_published_runs_are_right() -> None:
    right = verdicts(published())

    assert list(right) == ["autoscaling-cuda-matmul-10000, 2 repeats", *(run.task for run in published())]
    assert list(right.values()) == [[HOLDS] * 8] * 3


@pytest.mark.parametrize("kernels_shared", [False, True])
def test_kernels_that_share_a_gpu_are_told_from_those_that_run_one_after_the_other(
    tmp_path: Path, kernels_shared: bool
) -> None:
    model = replace(calibration.load("published").model, kernels_shared=float(kernels_shared))
    made_up = Calibration("made up", model, "")
    ways.run(made_up, Setting(), ways.HARNESS, range(1, 3), parent=tmp_path, experiment="simulated")

    found = verdicts(runs.find_runs(tmp_path / "results-simulated"))

    assert [each[:SERIAL] for each in found.values()] == [[HOLDS] * SERIAL] * 3
    assert [each[SERIAL] for each in found.values()] == [DOES_NOT_HOLD if kernels_shared else HOLDS] * 3
