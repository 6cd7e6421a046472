"""What is derived from a run's frames, by exact values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_runs import log_power, request, write_run
from hypothesis import given
from hypothesis import strategies as st

from kaas.analysis import breakdown, runs, series
from kaas.analysis.runs import Run

NAN = float("nan")
SAME = {"nan_ok": True}


def make_run(
    requests: Sequence[Mapping[str, object]] = ({},), events: Sequence[tuple[float, str, int, int | None, str]] = ()
) -> Run:
    """Make a run of requests (what is not given is that of one served in 100 ms) and events (elapsed, name, GPU...)."""
    usual = {
        "elapsed": 0.0,
        "outer_time_ms": 100.0,
        "inner_time_ms": 40.0,
        "setup_time": 10.0,
        "cold_start": False,
        "waited_for_boot": False,
        "copy": 0,
        "concurrency": 1,
        "status": "ok",
        "gpu": pd.NA,
        "worker": pd.NA,
        "queued_ms": NAN,
        "kernel_ms": NAN,
        "arrived": NAN,
        "lag_ms": 0.0,
    }
    frame = pd.DataFrame([usual | dict(request) for request in requests]).astype({"gpu": "Int64", "worker": "Int64"})
    frame = frame.assign(sent=frame["elapsed"] + frame["lag_ms"] / 1000)
    frame = frame.assign(counted=frame["sent"])
    happened = pd.DataFrame(
        [(at, name, gpu, worker, detail, 4) for at, name, gpu, worker, detail in events],
        columns=["elapsed", "event", "gpu", "worker", "detail", "num_workers"],
    ).astype({"elapsed": "float64", "gpu": "int64", "num_workers": "int64", "worker": "Int64", "detail": "str"})
    monitoring = pd.DataFrame(columns=["elapsed", "gpu", "utilization_pct", "power_w", "energy_j"], dtype="float64")
    return Run("task-1", {}, frame, happened, monitoring)


def test_in_flight_counts_from_the_setup_to_the_reply_and_never_a_refused_one() -> None:
    run = make_run(
        [
            {"elapsed": 1.0, "setup_time": 500.0, "outer_time_ms": 2000.0},
            {"elapsed": 2.0, "setup_time": 0.0, "outer_time_ms": 3000.0},
            {"elapsed": 2.5, "status": "rejected"},
        ]
    )

    assert series.in_flight(run).to_dict() == {0: 0, 1.5: 1, 2: 2, 3: 1, 5: 0}


def test_the_mean_utilization_is_that_of_each_gpus_samples_during_the_run() -> None:
    samples = [(-1.0, 0, 99.0), (0.0, 0, 10.0), (1.0, 0, 20.0), (2.0, 0, 60.0), (0.5, 1, NAN), (1.5, 1, 50.0)]
    monitoring = pd.DataFrame([*samples, (9.0, 1, 99.0)], columns=["elapsed", "gpu", "utilization_pct"])
    run = replace(make_run([{"outer_time_ms": 2000.0}]), monitoring=monitoring)

    assert series.mean_utilization(run) == (30 + 50) / 2
    assert np.isnan(series.mean_utilization(make_run()))


def test_workers_are_those_of_the_booted_task_runners() -> None:
    happened = [(1.0, "booted", 0, None, ""), (2.0, "booted", 1, None, ""), (2.5, "ready", 1, 4, "")]
    run = make_run(events=[*happened, (9.0, "stopped", 0, None, "idle")])

    assert series.workers(run).to_dict() == {0: 0, 1: 4, 2: 8, 9: 4}
    assert series.task_runners(run).to_dict() == {0: 0, 1: 1, 2: 2, 9: 1}
    assert series.workers(make_run()).empty


def test_the_rolling_completion_time_is_the_median_of_warm_requests() -> None:
    times = [100.0, 300.0, 200.0, 900.0]
    warm = [{"elapsed": at, "outer_time_ms": time} for at, time in zip((0.0, 1.0, 1.5, 5.0), times, strict=True)]
    run = make_run([*warm, {"elapsed": 1.2, "outer_time_ms": 5000.0, "cold_start": True}])

    assert series.completion(run, 2.0).to_dict() == {0: 100, 1: 200, 1.5: 200, 5: 900}
    assert series.completion(make_run([{"status": "failed"}]), 2.0).empty


@pytest.mark.parametrize(
    ("duration", "width", "number", "last"),
    [
        (486.0, 10.0, 49, 486.0),  # the last 6 s are a bin of their own
        (484.0, 10.0, 48, 484.0),  # 4 s are too few for one
        (16.0, 0.5, 32, 16.0),
        (0.03, 0.0005, 60, 0.03),
        (0.0, 1.0, 1, 1.0),
    ],
)
def test_bins_are_of_a_round_width_and_end_with_the_run(
    duration: float, width: float, number: int, last: float
) -> None:
    bins = series.edges(duration)

    assert len(bins) - 1 == number
    assert np.diff(bins)[:-1] == pytest.approx(width)
    assert (bins[0], bins[-1]) == (0.0, last)


@given(st.floats(1e-6, 1e9))
def test_rounding_up_is_near_and_of_one_digit(value: float) -> None:
    rounded = series.round_up(value)

    assert value <= rounded * (1 + 1e-8)
    assert rounded < 2.6 * value
    assert f"{rounded:e}".startswith(("1.000000", "2.000000", "5.000000"))


def test_means_and_peaks_of_steps_are_those_of_each_bin() -> None:
    steps = pd.Series([1, 3, 0], index=[0.0, 2.0, 5.0])
    bins = np.array([0.0, 4.0, 6.0, 8.0])

    # 1 for 2 s and 3 for 2 s; 3 for 1 s and 0 for 1 s; 0.
    assert series.means_of_steps(steps, bins).tolist() == [2, 1.5, 0]
    assert series.peaks_of_steps(steps, bins).tolist() == [3, 3, 0]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), min_size=1), st.integers(1, 20))
def test_means_of_steps_add_up_to_the_mean_of_the_whole(points: list[tuple[int, int]], number: int) -> None:
    steps = pd.Series(dict(sorted(points)))
    bins = np.linspace(0, 120, number + 1)

    means, (whole,) = series.means_of_steps(steps, bins), series.means_of_steps(steps, np.array([0.0, 120.0]))

    assert means.mean() == pytest.approx(whole)
    assert (means <= series.peaks_of_steps(steps, bins) + 1e-9).all()


def test_throughput_is_of_served_requests_when_their_reply_came() -> None:
    run = make_run(
        [
            {"elapsed": 0.0, "outer_time_ms": 2500.0},
            {"elapsed": 0.5, "outer_time_ms": 500.0},
            {"elapsed": 2.0, "outer_time_ms": 2000.0, "concurrency": 4},
            {"elapsed": 3.0, "status": "rejected", "concurrency": 4},
        ]
    )

    frame = series.throughput(run, np.array([0.0, 2.0, 4.0]))

    assert frame.to_dict("list") == {
        "served": [1, 2],
        "per_s": [0.5, 1],
        "clients": [1, 4],
        "per_client": [0.5, 0.25],
    }
    assert frame.index.tolist() == [0, 2]


def test_energy_per_request_is_nan_where_none_was_served(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"))
    (run,) = runs.find_runs(tmp_path)

    # 140 W for 5 s and 4 served; nothing served; 140 W for 5 s and 1 served.
    bins = np.array([0.0, 5.0, 15.0, 20.0])
    assert series.energy_per_request(run, bins) == pytest.approx([175, NAN, 700], **SAME)
    assert series.energy_per_request(make_run(), bins) == pytest.approx([NAN] * 3, **SAME)


def test_energy_per_request_is_not_known_in_a_gap_nor_where_no_sample_was_taken(tmp_path: Path) -> None:
    rows = [request(at, 100) for at in range(31)]
    log_power(write_run(tmp_path, "task-1", rows), missing=range(8, 14))
    (run,) = runs.find_runs(tmp_path)

    # 140 W; a gap from 7 s to 14 s; 140 W again; the last sample is at 24 s.
    each = series.energy_per_request(run, np.array([0.0, 5.0, 10.0, 15.0, 20.0, 26.0, 31.0]))

    assert each == pytest.approx([140, NAN, NAN, 140, NAN, NAN], **SAME)


def test_a_grid_takes_the_last_value_unless_it_is_too_old() -> None:
    values = pd.Series([1.0, 2.0], index=[1.0, 3.0])
    grid = np.array([0.0, 1.0, 2.0, 3.0, 9.0])

    assert series.at(values, grid) == pytest.approx([NAN, 1, 1, 2, 2], **SAME)
    assert series.at(values, grid, longest_s=5.0) == pytest.approx([NAN, 1, 1, 2, NAN], **SAME)
    assert np.isnan(series.at(values.iloc[:0], grid)).all()


def test_repeats_of_different_length_are_spread_over_those_that_still_run() -> None:
    found = [make_run([{"elapsed": seconds, "outer_time_ms": 0.0}]) for seconds in (2.0, 2.0, 9.0)]
    heights = dict(zip(map(id, found), (10.0, 20.0, 60.0), strict=True))

    frame = series.spread(found, np.array([0.0, 5.0, 10.0]), lambda run, grid: np.full(len(grid), heights[id(run)]))

    assert frame["median"].to_numpy() == pytest.approx([20, 60, NAN], **SAME)
    assert frame["low"].to_numpy() == pytest.approx([10, 60, NAN], **SAME)
    assert frame["high"].to_numpy() == pytest.approx([60, 60, NAN], **SAME)


def test_the_parts_of_the_completion_time_add_up_to_its_mean() -> None:
    run = make_run(
        [
            {"concurrency": 1, "queued_ms": 5.0, "kernel_ms": 50.0},
            {"concurrency": 1, "queued_ms": 15.0, "kernel_ms": 70.0, "outer_time_ms": 200.0},
            {"concurrency": 2, "queued_ms": 0.0, "kernel_ms": 80.0},
            {"concurrency": 2, "status": "kernel_error", "outer_time_ms": 9999.0},
        ]
    )

    frame = breakdown.completion(run)

    assert frame.to_dict("index") == {
        1: {"setup": 10, "queue": 10, "kernel": 60, "rest": 70, "median": 150, "requests": 2},
        2: {"setup": 10, "queue": 0, "kernel": 80, "rest": 10, "median": 100, "requests": 1},
    }
    assert breakdown.completion(run, width=10).index.tolist() == [0]


def test_where_only_the_kernel_was_measured_the_queue_is_not_known() -> None:
    run = make_run()

    assert not breakdown.knows_queue(run)
    (parts,) = breakdown.completion(run)[list(breakdown.PARTS)].to_numpy()
    assert parts == pytest.approx([10, NAN, 40, 50], **SAME)


def test_the_phases_of_a_boot_are_those_of_its_slowest_worker() -> None:
    run = make_run(
        events=[
            (1.0, "booted", 0, None, ""),
            (1.5, "ready", 0, 0, "fork 0.100 s, import 0.300 s"),
            (2.0, "ready", 0, 1, "fork 0.200 s, import 0.500 s, first call 0.250 s"),
            (5.0, "lost", 0, 1, "killed"),
            (6.0, "ready", 0, 1, "fork 0.001 s, import 0.002 s"),
            (7.0, "booted", 1, None, ""),
            (8.0, "stopped", 0, None, "idle"),
            (9.0, "ready", 1, 4, ""),
            (9.5, "booted", 0, None, ""),
            (9.75, "ready", 0, 0, "fork 0.250 s"),
        ]
    )

    frame = breakdown.boots(run)

    assert list(frame.columns) == ["gpu", "elapsed", "worker", "fork", "import", "first call", "rest"]
    assert frame.to_numpy(dtype="float64") == pytest.approx(
        np.array(
            [
                [0, 1.0, 1, 0.2, 0.5, 0.25, 0.05],
                [1, 7.0, 4, 0.0, 0.0, 0.0, 2.0],  # without phases, all of it is the rest
                [0, 9.5, 0, 0.25, 0.0, 0.0, 0.0],
            ]
        )
    )
    assert breakdown.boots(make_run()).empty
    assert breakdown.boots(make_run(events=[(1.0, "ready", 0, 0, "fork 1 s")])).empty


def test_a_boot_without_any_phase_is_one_rest() -> None:
    run = make_run(events=[(1.0, "booted", 0, None, ""), (1.5, "ready", 0, 0, "")])

    assert breakdown.boots(run).to_dict("list") == {"gpu": [0], "elapsed": [1.0], "worker": [0], "rest": [0.5]}


def test_cold_starts_are_held_against_warm_requests_with_as_many_clients() -> None:
    requests: list[dict[str, object]] = [
        {"cold_start": True, "outer_time_ms": 900.0},
        {"outer_time_ms": 100.0},
        {"outer_time_ms": 300.0},
        {"elapsed": 5.0, "cold_start": True, "outer_time_ms": 800.0, "concurrency": 2},
    ]
    boots = [(0.5, "booted", 3, None, ""), (5.5, "booted", 7, None, "")]

    frame = breakdown.cold_starts(make_run(requests, events=boots))

    assert frame["gpu"].tolist() == [3, 7]
    assert frame["booted"].tolist() == [0.5, 5.5]
    assert frame["cold_ms"].tolist() == [900, 800]
    assert frame["warm_ms"].to_numpy() == pytest.approx([200, NAN], **SAME)
    # With another number of boots, nothing says whose they are.
    assert breakdown.cold_starts(make_run(requests, events=boots[:1]))[["gpu", "booted"]].isna().all(axis=None)


def test_served_requests_are_counted_by_worker() -> None:
    places = [(0, 0), (0, 1), (0, 0), (1, 4)]
    served = [{"gpu": gpu, "worker": worker} for gpu, worker in places]
    run = make_run([*served, {"gpu": 1, "worker": 4, "status": "timeout"}, {"status": "rejected"}])

    assert breakdown.by_worker(run).to_dict() == {(0, 0): 2, (0, 1): 1, (1, 4): 1}
    assert breakdown.by_worker(make_run()).empty
