import pandas as pd
import pytest

from kaas.analysis import samples

NAN = float("nan")


def monitoring(*rows: tuple[float, int, float | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["elapsed", "gpu", "power_w"])
    return frame.astype({"elapsed": "float64", "gpu": "int64", "power_w": "float64"})


def means(frame: pd.DataFrame, window_s: float) -> dict[int, dict[float, float]]:
    rolled = samples.rolling_means(frame, "power_w", window_s)
    return {int(gpu): dict(zip(rolled.index.tolist(), rolled[gpu], strict=True)) for gpu in rolled.columns.to_numpy()}


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ([0, 0.1, 0.2, 9], 2.0),  # five intervals of 0.1 s are too short to be missed
        ([0, 1, 2, 3, 30], 5.0),  # five of 1 s are not
        ([0, 0, 0, 4], 2.0),  # samples that came in one burst
        ([7], 2.0),
    ],
)
def test_a_gap_is_far_longer_than_the_usual_interval_and_long_enough_to_see(times: list[float], gap: float) -> None:
    known = monitoring(*((time, 3, 1.0) for time in times))

    assert samples.gaps_from(known).to_dict() == pytest.approx({3: gap})


def test_gpus_that_are_sampled_rarely_and_one_after_the_other_have_no_holes() -> None:
    # Every 2 s, GPU 1 a moment after GPU 0: at GPU 0's samples, the last second holds none of GPU 1.
    frame = monitoring((0, 0, 100), (0.25, 1, 10), (2, 0, 120), (2.25, 1, 30), (4, 0, 140), (4.25, 1, 50))

    assert means(frame, 1.0) == {
        0: {0: 100, 0.25: 100, 2: 120, 2.25: 120, 4: 140, 4.25: 140},
        1: pytest.approx({0: NAN, 0.25: 10, 2: 10, 2.25: 30, 4: 30, 4.25: 50}, nan_ok=True),
    }


def test_a_gap_of_all_gpus_is_a_row_of_nan_and_of_one_gpu_its_own() -> None:
    # GPU 0 misses 10 s to 20 s, and GPU 1 also 3 s to 9 s; at intervals of 1 s, a gap begins after 5 s.
    times = [*range(11), *range(20, 26)]
    frame = monitoring(*((at, 0, 100) for at in times), *((at, 1, 50) for at in times if not 2 < at < 10))

    rolled = means(frame.sort_values("elapsed", kind="stable"), 1.0)

    assert [at for at, value in rolled[0].items() if pd.isna(value)] == [15]
    assert [at for at, value in rolled[1].items() if pd.isna(value)] == [7, 8, 9, 15]
    assert {value for value in rolled[0].values() if not pd.isna(value)} == {100}


def test_the_first_mean_after_a_gap_knows_nothing_of_before() -> None:
    frame = monitoring((0, 0, 100), (1, 0, 100), (2, 0, 100), (30, 0, 10), (31, 0, 20))

    assert means(frame, 5.0) == {0: pytest.approx({0: 100, 1: 100, 2: 100, 7: NAN, 30: 10, 31: 15}, nan_ok=True)}


def test_a_gpu_of_which_nothing_is_known_has_no_column_and_empty_cells_are_no_samples() -> None:
    frame = monitoring((0, 0, 100), (0, 1, None), (1, 0, None), (1, 1, None), (2, 0, 50))

    assert means(frame, 3.0) == {0: {0: 100, 2: 75}}
    assert samples.rolling_means(monitoring((0, 0, None)), "power_w", 1.0).empty
