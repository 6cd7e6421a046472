"""Policies side by side: the same load for each, and only what is not by chance is called a difference."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kaas.comparisons import ALPHA
from kaas.errors import ResultsError
from kaas.ramp import Ramp
from kaas.simulation import calibration, policies
from kaas.simulation.policies import MEASURES, Compared
from kaas.simulation.setting import Setting

SMALL = Setting(gpus=3, workers_per_gpu=2, shape=Ramp(1, 10, 1, 4.0))


@pytest.fixture(scope="module")
def found() -> dict[str, Compared]:
    seeds = range(1, 1 + policies.SEEDS_AT_LEAST)
    compared = policies.compare(calibration.load("published").model, SMALL, seeds)
    return {one.name: one for one in compared}


def of(found: dict[str, Compared], policy: str, measure: str) -> float:
    return float(found[policy].values[:, MEASURES.index(measure)].mean())


def test_each_policy_does_what_it_is_for(found: dict[str, Compared]) -> None:
    assert list(found) == ["paper", "paper, queue", "packing", "packing, queue", "ahead", "ahead, queue"]
    assert of(found, "paper", "refused") > 5
    assert of(found, "paper, queue", "refused") == of(found, "ahead, queue", "refused") == 0
    assert of(found, "ahead", "cold starts") == 1 < of(found, "paper", "cold starts") == 3
    assert of(found, "ahead", "GPU-seconds booted") > of(found, "paper", "GPU-seconds booted")
    assert of(found, "packing", "served") < of(found, "paper", "served")


def test_what_a_policy_changes_is_told_from_chance(found: dict[str, Compared]) -> None:
    p = {name: dict(zip(MEASURES, one.p_all.tolist(), strict=True)) for name, one in found.items()}
    assert p["paper"]["refused"] == 1.0
    assert p["paper, queue"]["refused"] < ALPHA
    assert p["packing"]["refused"] > ALPHA


def test_what_looks_like_a_difference_by_itself_may_be_none_among_many(found: dict[str, Compared]) -> None:
    p, p_all = (np.array([getattr(one, name) for one in found.values()]) for name in ("p", "p_all"))
    assert (p_all >= p).all()
    least = 2 / 2**policies.SEEDS_AT_LEAST
    assert p.min() == pytest.approx(least)
    assert p_all[p == p.min()] == pytest.approx(45 * least), "of 5 policies beside the first, and 9 measures"
    assert 45 * least < ALPHA < 45 * 2 * least
    assert ((p < ALPHA) & (p_all >= ALPHA)).any()


def test_a_difference_is_real_if_hardly_any_draw_of_signs_makes_one_as_large() -> None:
    assert policies._p(np.full(8, 2.0)) == pytest.approx(2 / 2**8)
    assert policies._p(np.array([1.0, -1.0, 1.0, -1.0])) == 1.0
    assert policies._p(np.full(3, 2.0)) == 0.25  # three seeds tell nothing
    assert policies._p(np.full(40, 2.0)) == pytest.approx(1 / (2**14 + 1))  # drawn, and never 0
    assert policies._p(np.random.default_rng(1).normal(size=40)) > 0.01


def test_an_interval_holds_the_mean_and_is_narrower_with_more_seeds() -> None:
    few, many = np.arange(5.0), np.tile(np.arange(5.0), 20)
    assert policies.interval(few)[0] < policies.interval(many)[0] < 2.0 < policies.interval(many)[1]
    assert policies.interval(np.full(4, 3.0)) == (3.0, 3.0)


def test_the_comparison_is_a_table_and_a_file(found: dict[str, Compared], tmp_path: Path) -> None:
    text = policies.table(list(found.values()))
    for block in text.split("\n\n"):
        assert [line.split("  ")[0] for line in block.splitlines()] == ["", *MEASURES]
        assert max(map(len, block.splitlines())) <= 80
    assert re.findall(r"\b(?:paper|packing|ahead)(?:, queue)?", text) == list(found)
    assert "0 +- 0*" in text
    policies.write(list(found.values()), tmp_path / "policies.csv")
    lines = (tmp_path / "policies.csv").read_text().splitlines()
    assert lines[0] == 'policy,measure,simulated seeds,mean,low,high,p,"p, all lines",differs'
    assert len(lines) == 1 + len(found) * len(MEASURES)
    with pytest.raises(ResultsError, match="is there already"):
        policies.write([], tmp_path / "policies.csv")


def test_a_run_in_which_nothing_ends_is_refused() -> None:
    model = replace(calibration.load("published").model, kernel=1000.0)
    with pytest.raises(ResultsError, match="holds no request"):
        policies.compare(model, replace(SMALL, gpus=1, shape=Ramp(1, 1, 1, 5.0)), range(1, 3))
