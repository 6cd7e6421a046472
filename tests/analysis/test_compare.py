import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import PUBLISHED, booted, needs_published, request, write_run

from kaas.analysis import compare, runs, tables
from kaas.analysis.claims import CANNOT_BE_TOLD
from kaas.analysis.runs import Run
from kaas.errors import ResultsError
from kaas.results import Row

NAN = math.nan


def repeats(folder: Path, *times_ms: float, gpus: int = 1, parameters: Mapping[str, str] | None = None) -> list[Run]:
    """Write repeats of one cold request, and one each second that takes the given time; give them as read."""
    for place, time in enumerate(times_ms):
        rows = [request(0, 800, cold=True), request(1, time), request(2, time)]
        write_run(folder, f"task-{place + 1}", rows, [booted(gpu, gpu) for gpu in range(gpus)], parameters=parameters)
    return runs.find_runs(folder)


def row(own: list[Run], other: list[Run], number: str) -> list[object]:
    return compare.compare(own, other).T[number].tolist()


MEDIAN = "warm completion time, p50 [ms]"


def test_a_number_is_put_beside_the_others_with_range_difference_and_spread(tmp_path: Path) -> None:
    own, other = repeats(tmp_path / "own", 100, 140), repeats(tmp_path / "other", 200, 210, 190)

    frame = compare.compare(own, other)

    assert frame.columns.tolist() == [
        *(f"{side} {what}" for side in ("own", "other") for what in ("mean", "min", "max", "repeats")),
        *("difference", "difference [%]", "spread", "beyond the spread"),
    ]
    assert frame.index.name == "number"
    assert row(own, other, MEDIAN) == [120, 100, 140, 2, 200, 190, 210, 3, -80, -40, 40, "yes"]
    assert row(own, other, "requests") == [3, 3, 3, 2, 3, 3, 3, 3, 0, 0, 0, "no"]


def test_a_difference_as_large_as_the_spread_is_not_beyond_it(tmp_path: Path) -> None:
    own = repeats(tmp_path / "own", 100, 120)

    assert row(own, repeats(tmp_path / "at", 120, 140), MEDIAN)[-4:] == [-20, pytest.approx(-100 / 6.5), 20, "no"]
    assert row(own, repeats(tmp_path / "above", 121, 141), MEDIAN)[-2:] == [20, "yes"]


def test_one_side_with_repeats_is_enough_to_tell(tmp_path: Path) -> None:
    one, two = repeats(tmp_path / "one", 100), repeats(tmp_path / "two", 150, 180)

    assert row(one, two, MEDIAN)[-2:] == [30, "yes"]
    assert row(two, one, MEDIAN)[-4:] == [65, 65, 30, "yes"]
    assert row(one, one, MEDIAN)[-4:] == [0, 0, pytest.approx(NAN, nan_ok=True), CANNOT_BE_TOLD]


def test_a_gpu_that_only_one_side_booted_has_no_difference(tmp_path: Path) -> None:
    own, other = repeats(tmp_path / "own", 100, 120), repeats(tmp_path / "other", 100, 120, gpus=2)

    assert row(own, other, "GPU 0 first booted [s]") == [
        0,
        0,
        0,
        2,
        0,
        0,
        0,
        2,
        0,
        pytest.approx(NAN, nan_ok=True),
        0,
        "no",
    ]
    only_other = [NAN, NAN, NAN, 0, 1, 1, 1, 2, NAN, NAN, 0]
    *numbers, verdict = row(own, other, "GPU 1 first booted [s]")
    assert numbers == pytest.approx(only_other, nan_ok=True)
    assert verdict == CANNOT_BE_TOLD
    assert row(other, own, "GPU 1 first booted [s]")[3:8:4] == [2, 0]


def test_a_kind_of_failure_that_one_side_has_happened_0_times_on_the_other(tmp_path: Path) -> None:
    def failing(task: str) -> list[Row]:
        return [request(0, 5, "timeout"), request(1, 5), *([request(2, 5, "timeout")] if task == "task-2" else [])]

    for task in ("task-1", "task-2"):
        write_run(tmp_path / "own", task, failing(task))
    own, other = runs.find_runs(tmp_path / "own"), repeats(tmp_path / "other", 5)

    assert row(own, other, "failed: timeout")[:9] == [1.5, 1, 2, 2, 0, 0, 0, 1, 1.5]
    assert row(own, other, "failed: timeout")[-1] == "yes"
    assert row(other, own, "failed: timeout")[8:] == [-1.5, -100, 1, "yes"]


def test_several_experiments_on_one_side_are_not_mixed(tmp_path: Path) -> None:
    one = repeats(tmp_path, 100)
    write_run(tmp_path, "another-1", [request(0, 1)])

    with pytest.raises(ResultsError, match="several experiments"):
        compare.compare(runs.find_runs(tmp_path), one)


def test_parameters_that_differ_are_named_and_those_that_tell_repeats_apart_are_not(tmp_path: Path) -> None:
    own = repeats(
        tmp_path / "own", 1, 1, parameters={"Client": "c", "Input": "10", "Task name": "a", "Requests ok": "3"}
    )
    other = repeats(tmp_path / "other", 1, parameters={"Client": "c", "Input": "20", "Task name": "b", "Interval": "5"})

    frame = compare.parameters(own, other)

    assert frame.index.name == "parameter"
    assert frame.T.to_dict("list") == {"Input": ["10", "20"], "Interval": ["", "5"]}
    assert compare.parameters(own, own).empty


def test_repeats_that_were_not_run_alike_show_all_their_values(tmp_path: Path) -> None:
    for place, interval in enumerate(("2", "5", "2")):
        write_run(tmp_path / "own", f"task-{place}", [request(0, 1)], parameters={"Interval": interval})
    other = repeats(tmp_path / "other", 1, parameters={"Interval": "2"})

    frame = compare.parameters(runs.find_runs(tmp_path / "own"), other)

    assert frame.T["Interval"].tolist() == ["2; 5", "2"]


@pytest.mark.parametrize(
    ("own", "other", "part"), [(1, 2, 0.45), (2, 1, 0.45), (1, 3, 0.24), (2, 2, 0.22), (1, 5, 0.09), (3, 3, 0.05)]
)
def test_how_often_chance_alone_says_yes_is_known(own: int, other: int, part: float) -> None:
    assert compare.by_chance(own, other) == pytest.approx(part, abs=0.01)
    assert compare.by_chance(own, other) == compare.by_chance(other, own)


def test_chance_is_that_of_the_rule_by_which_two_experiments_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(3)
    monkeypatch.setattr(
        tables,
        "numbers",
        lambda found: pd.DataFrame(drawn.normal(500, 50, size=(len(found), 5000))).rename(columns=str),
    )
    own, other = repeats(tmp_path / "own", 100, 100), repeats(tmp_path / "other", 100)

    verdicts = compare.compare(own, other)["beyond the spread"]

    assert (verdicts == "yes").mean() == pytest.approx(compare.by_chance(2, 1), abs=0.02)


def test_the_caption_says_how_often_chance_says_yes(tmp_path: Path) -> None:
    one, two = repeats(tmp_path / "one", 100), repeats(tmp_path / "two", 150, 180)

    assert "With 2 and 1 repeats, chance alone makes 45 % of the lines say yes." in compare.how_to_read(two, one)
    assert "As each side has one repeat, this cannot be told." in compare.how_to_read(one, one)


def test_both_tables_are_written(tmp_path: Path) -> None:
    own = repeats(tmp_path / "own", 100, parameters={"Input": "10"})
    other = repeats(tmp_path / "other", 200, 250, parameters={"Input": "20"})

    compared, different = compare.write(own, other, tmp_path / "out")

    assert (compared.name, different.name) == ("table-compared.csv", "table-parameters.csv")
    frame = pd.read_csv(compared, index_col="number").T
    assert frame[MEDIAN][["own mean", "other mean", "beyond the spread"]].tolist() == [100, 225, "yes"]
    assert different.read_text() == "parameter,own,other\nInput,10,20\n"


@needs_published
def test_the_published_repeats_do_not_differ_from_themselves() -> None:
    found = runs.find_runs(PUBLISHED)

    frame = compare.compare(found, found[:1])

    known = frame["difference"].notna()
    assert set(frame["beyond the spread"][known]) == {"no"}
    assert frame.T["requests"].tolist()[:9] == [2768.5, 2767, 2770, 2, 2770, 2770, 2770, 1, -1.5]
    assert compare.parameters(found, found).empty
