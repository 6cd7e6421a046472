import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_tables import PUBLISHED, booted, needs_published, request, write_run

from kaas.analysis import compare, runs
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


@needs_published
def test_the_published_repeats_do_not_differ_from_themselves() -> None:
    found = runs.find_runs(PUBLISHED)

    frame = compare.compare(found, found[:1])

    known = frame["difference"].notna()
    assert set(frame["beyond the spread"][known]) == {"no"}
    assert frame.T["requests"].tolist()[:9] == [2768.5, 2767, 2770, 2, 2770, 2770, 2770, 1, -1.5]
    assert compare.parameters(found, found).empty
