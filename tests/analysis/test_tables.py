import hashlib
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from made_runs import PUBLISHED, T0, booted, needs_published, request, write_run

from kaas.analysis import runs, tables
from kaas.analysis.runs import Run
from kaas.errors import ResultsError
from kaas.events import Event

NAN = math.nan


def ready(at: float, gpu: int, worker: int) -> Event:
    return Event("ready", T0 + at, gpu, worker=worker)


ROWS = (
    request(0, 1000, cold=True),
    request(1, 200),
    request(2, 400, concurrency=2),
    request(2, 600, concurrency=2, waited=True),
    request(3, 300, concurrency=2),
    request(4, 100, "rejected", concurrency=2),
    request(4.5, 800, "timeout", concurrency=2),
    request(5, 500, concurrency=2),
)
NUMBERS = {
    "requests": 8,
    "ok": 6,
    "refused": 1,
    "failed": 1,
    "failed: timeout": 1,
    "cold starts": 1,
    "waited for a boot besides": 1,
    "duration [s]": 5.5,
    # Of 200, 300, 400 and 500 ms.
    "warm completion time, p50 [ms]": 350.0,
    "warm completion time, p95 [ms]": NAN,
    "warm completion time, p99 [ms]": NAN,
    "cold completion time, p50 [ms]": 1000.0,
    "cold completion time, p95 [ms]": NAN,
    "cold completion time, p99 [ms]": NAN,
    "throughput [1/s]": 6 / 5.5,
    # Served at 2.4, 2.6 and 3.3 s, of the time from 2 s to 5 s.
    "throughput in the last step [1/s]": 1.0,
    "energy [J]": NAN,
    "energy per served request [J]": NAN,
    "energy method": "-",
    "monitoring's clock ahead of UTC [h]": NAN,
    "energy by counter [J]": NAN,
    "energy by power integral [J]": NAN,
}


def two_repeats(folder: Path) -> list[Run]:
    write_run(folder, "task-1", ROWS, [booted(0.25, 0)])
    write_run(folder, "task-2", [request(0, 700, cold=True), request(1, 900)], [booted(0.75, 0), booted(1.5, 1)])
    return runs.find_runs(folder)


def test_a_repeat_is_a_row_of_numbers_each_with_its_unit(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ROWS)

    frame = tables.per_repeat(runs.find_runs(tmp_path))

    assert frame.index.tolist() == ["task-1"]
    assert frame.columns.tolist() == list(NUMBERS)
    assert frame.loc["task-1"].to_dict() == pytest.approx(NUMBERS, nan_ok=True)
    counts = frame.columns[:7]
    assert {str(kind) for kind in frame.dtypes[counts]} == {"Int64"}


def test_energy_is_given_with_its_method_where_it_was_logged(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ROWS, watts=[(at, gpu, 60) for at in range(6) for gpu in (0, 1)])
    write_run(tmp_path, "task-2", ROWS)

    frame = tables.per_repeat(runs.find_runs(tmp_path))

    assert frame["energy [J]"].tolist() == pytest.approx([600.0, NAN], nan_ok=True)
    assert frame["energy per served request [J]"].tolist() == pytest.approx([100.0, NAN], nan_ok=True)
    assert frame["energy method"].tolist() == ["power integral", "-"]


def test_a_kind_of_failure_is_named_for_all_repeats_and_0_where_there_was_none(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 5, "worker_lost"), request(1, 5, "timeout"), request(2, 5, "timeout")])
    write_run(tmp_path, "task-2", [request(0, 5)])

    frame = tables.per_repeat(runs.find_runs(tmp_path))

    assert frame.filter(like="failed").astype("int64").to_dict("list") == {
        "failed": [3, 0],
        "failed: timeout": [2, 0],
        "failed: worker_lost": [1, 0],
    }


def test_a_run_in_which_nothing_was_served_has_no_times_and_is_no_error(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 0, "rejected")])

    frame = tables.per_repeat(runs.find_runs(tmp_path))

    assert frame[["requests", "ok", "refused", "failed"]].to_numpy().tolist() == [[1, 0, 1, 0]]
    assert frame.filter(regex="completion time|throughput").isna().to_numpy().tolist() == [[True] * 8]


def test_a_cold_start_that_failed_has_no_time_and_one_that_waited_does_not_count_twice(tmp_path: Path) -> None:
    rows = [request(0, 900, cold=True, waited=True), request(1, 9000, "timeout", cold=True), request(2, 5, waited=True)]
    write_run(tmp_path, "task-1", rows)

    frame = tables.per_repeat(runs.find_runs(tmp_path))

    assert frame[["cold starts", "waited for a boot besides"]].to_numpy().tolist() == [[2, 1]]
    assert frame["cold completion time, p50 [ms]"].tolist() == [900.0]


@pytest.mark.parametrize(("requests", "p95", "p99"), [(19, NAN, NAN), (20, 19.05, NAN), (100, 95.05, 99.01)])
def test_a_percentile_takes_so_many_requests_that_one_lies_beyond_it(
    tmp_path: Path, requests: int, p95: float, p99: float
) -> None:
    for task in ("task-1", "task-2"):
        write_run(tmp_path, task, [request(at, 1 + at) for at in range(requests)])
    found = runs.find_runs(tmp_path)
    names = ["warm completion time, p95 [ms]", "warm completion time, p99 [ms]"]

    assert tables.per_repeat(found)[names].iloc[0].tolist() == pytest.approx([p95, p99], nan_ok=True)
    # Those of all repeats are twice as many.
    known = tables.pooled(found).loc[names, "all requests"].notna().tolist()
    assert known == [2 * requests >= 20, 2 * requests >= 100]


def test_boots_are_counted_from_the_first_request_for_each_gpu(tmp_path: Path) -> None:
    frame = tables.boots(two_repeats(tmp_path))

    assert frame.index.tolist() == [0, 1]
    assert frame.columns.map(", ".join).tolist() == ["first booted [s], task-1", "first booted [s], task-2"]
    assert frame.to_numpy().tolist() == [
        # The request that caused it came after 1 ms of setup.
        [0.001, 0.001],
        pytest.approx([NAN, 1.5], nan_ok=True),
    ]


def test_a_boot_lasts_until_the_last_of_its_workers_is_ready_for_the_first_time(tmp_path: Path) -> None:
    happened = [
        booted(1, 0),
        ready(1.25, 0, 0),
        ready(1.5, 0, 1),
        Event("lost", T0 + 2, 0, worker=1),
        ready(2.5, 0, 1),  # in its place
        booted(3, 1),
        ready(3.5, 1, 2),  # and its other worker never is
        Event("stopped", T0 + 4, 0, 2),
        booted(5, 0),
        ready(7, 0, 0),
        ready(7, 0, 1),
    ]
    write_run(tmp_path, "task-1", ROWS, happened)
    write_run(tmp_path, "task-2", ROWS, [booted(0.5, 0)])

    frame = tables.boots(runs.find_runs(tmp_path))

    assert frame["first booted [s]", "task-1"].tolist() == [0.001, 3.0]  # of the second, no cold start is known
    assert frame["boot took [s]"].columns.tolist() == ["task-1"]
    assert frame["boot took [s]", "task-1"].tolist() == pytest.approx([0.5, NAN], nan_ok=True)


def test_without_a_server_log_no_boot_is_known(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ROWS)

    frame = tables.boots(runs.find_runs(tmp_path))

    assert frame.empty
    assert frame.columns.map(", ".join).tolist() == ["first booted [s], task-1"]


def test_littles_law_counts_what_crosses_the_edges_of_the_last_step(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ROWS)

    row = tables.littles_law(runs.find_runs(tmp_path)).loc["task-1"]

    # From 2 s to 5 s 0.4, 0.6, 0.3, 0.1 s are in flight, and 0.5 of the 0.8 s of the request that ends outside.
    assert row.to_dict() == pytest.approx(
        {
            "begin [s]": 2.0,
            "end [s]": 5.0,
            "mean in flight": 1.9 / 3,
            "throughput [1/s]": 4 / 3,
            "mean completion time [ms]": 350.0,
            "throughput x time": 1.4 / 3,
            "ratio": 1.9 / 1.4,
        },
        rel=1e-6,
    )


def test_littles_law_holds_for_clients_that_never_pause(tmp_path: Path) -> None:
    # 0.5 s after the first, a second client; both ask once a second, for a second. 17 requests end in 9 s.
    rows = [request(at / 2, 1000, concurrency=1 if at == 0 else 2) for at in range(20)]
    write_run(tmp_path, "task-1", rows)

    row = tables.littles_law(runs.find_runs(tmp_path)).loc["task-1"]

    assert (row["mean in flight"], row["throughput x time"]) == (2.0, pytest.approx(17 / 9))
    assert row["ratio"] == pytest.approx(18 / 17)


def test_littles_law_is_not_known_where_no_step_has_a_length(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 500)])

    assert tables.littles_law(runs.find_runs(tmp_path)).isna().all(axis=None)


ADDED = ["sd", "repeats for 5 %"]


def test_repeats_are_pooled_to_a_mean_with_its_interval_and_percentiles_of_all_requests(tmp_path: Path) -> None:
    frame = tables.pooled(two_repeats(tmp_path))

    assert frame.columns.tolist() == ["repeats", "mean", "ci low", "ci high", "min", "max", "all requests", *ADDED]

    def interval(one: float, two: float) -> list[float]:
        """Give mean, limits and range of two values: Student's t with one degree of freedom is 12.7062."""
        mean, half = (one + two) / 2, 12.7062 * abs(one - two) / 2
        return [2, mean, mean - half, mean + half, min(one, two), max(one, two)]

    def row(number: str) -> list[float]:
        return [float(value) for value in frame.T[number].tolist()]

    assert row("requests")[:6] == pytest.approx(interval(2, 8), rel=1e-4)
    # Of 8 and 2 it is the root of 18; no number of repeats up to 1000 is enough.
    assert row("requests")[6:] == pytest.approx([NAN, 18**0.5, NAN], nan_ok=True)
    # Warm are 200, 300, 400 and 500 ms here and 900 ms there; cold are 1000 ms here and 700 ms there.
    assert row("warm completion time, p50 [ms]")[:7] == pytest.approx([*interval(350, 900), 400], rel=1e-4)
    assert row("cold completion time, p50 [ms]")[:7] == pytest.approx([*interval(1000, 700), 850], rel=1e-4)
    assert row("GPU 0 first booted [s]")[:6] == pytest.approx(interval(0.001, 0.001))
    once = [1, 1.5, NAN, NAN, 1.5, 1.5, NAN, NAN, NAN]
    assert row("GPU 1 first booted [s]") == pytest.approx(once, nan_ok=True)
    never = [0, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN]
    assert row("energy [J]") == pytest.approx(never, nan_ok=True)
    # The second repeat begins its last request at 1 s, and ends its first one before.
    assert frame.T["throughput in the last step [1/s]"].tolist()[:2] == [2, 1.0]


def test_only_repeats_of_one_experiment_are_pooled(tmp_path: Path) -> None:
    for task in ("big-1", "big-2", "small-1"):
        write_run(tmp_path, task, ROWS)
    found = runs.find_runs(tmp_path)

    with pytest.raises(ResultsError, match=r"several experiments cannot be pooled \(big, small\): take one at a time"):
        tables.pooled(found)
    paths = tables.write(found, tmp_path / "out")

    pooled = pd.read_csv(paths[1])
    assert pooled[pooled["number"] == "requests"][["experiment", "repeats", "mean"]].to_numpy().tolist() == [
        ["big", 2, 8.0],
        ["small", 1, 8.0],
    ]


def test_all_tables_are_written_and_none_is_taken_for_a_run(tmp_path: Path) -> None:
    found = two_repeats(tmp_path)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}

    paths = tables.write(found, tmp_path)
    again = tables.write(found, tmp_path)

    names = [*map("table-{}".format, ("repeats", "pooled", "boots", "littles-law", "claims", "within-repeats"))]
    assert paths == again == [*(tmp_path / f"{name}.csv" for name in names), tmp_path / "summary.json"]
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in before} == before
    assert set(tmp_path.iterdir()) == {*before, *paths}
    assert [run.task for run in runs.find_runs(tmp_path)] == ["task-1", "task-2"]
    repeats, boots = (pd.read_csv(path, index_col=0) for path in (paths[0], paths[2]))
    assert repeats.loc["task-1"].to_dict() == pytest.approx(NUMBERS, nan_ok=True)
    assert boots.columns.tolist() == ["gpu", "first booted [s]", "boot took [s]"]


def test_the_energy_of_each_gpu_is_written_of_the_runs_that_logged_it(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ROWS, watts=[(at, gpu, 60) for at in range(6) for gpu in (0, 1)])
    write_run(tmp_path, "task-2", ROWS)

    *_, path, _ = tables.write(runs.find_runs(tmp_path), tmp_path / "out")

    assert path.name == "table-energy.csv"
    frame = pd.read_csv(path)
    assert frame[["task", "gpu", "energy [J]"]].to_numpy().tolist() == [["task-1", 0, 300.0], ["task-1", 1, 300.0]]


def test_a_table_without_rows_is_no_empty_file(tmp_path: Path) -> None:
    write_run(tmp_path / "in", "task-1", ROWS)

    tables.write(runs.find_runs(tmp_path / "in"), tmp_path / "out")

    assert (tmp_path / "out" / "table-boots.csv").read_text() == "task,gpu,first booted [s],boot took [s]\n"


def test_boots_are_written_with_a_row_for_each_repeat_and_gpu_and_numbers_without_what_machines_add(
    tmp_path: Path,
) -> None:
    found = two_repeats(tmp_path)
    tables.write(found, tmp_path / "out")

    header, *rows = (line.split(",") for line in (tmp_path / "out" / "table-boots.csv").read_text().splitlines())
    assert header == ["task", "gpu", "first booted [s]", "boot took [s]"]
    wide = tables.boots(found)[tables.FIRST_BOOTED]
    assert [row[:2] for row in rows] == [[run.task, str(gpu)] for run in found for gpu in wide.index]
    for task, gpu, at, _ in rows:
        assert at == ("" if pd.isna(wide.loc[int(gpu), task]) else f"{wide.loc[int(gpu), task]:.10g}")
    numbers = [cell for file in (tmp_path / "out").glob("*.csv") for cell in re.findall(r"\d+\.\d+", file.read_text())]
    assert max(len(number.replace(".", "").lstrip("0")) for number in numbers) <= 10


def test_a_folder_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    found = two_repeats(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "table-boots.csv").mkdir(parents=True)

    with pytest.raises(ResultsError, match=r"file: File exists$"):
        tables.write(found, tmp_path / "file")
    with pytest.raises(ResultsError, match=r"table-boots\.csv: Is a directory$"):
        tables.write(found, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


@needs_published
def test_the_published_repeats_have_their_known_numbers() -> None:
    found = runs.find_runs(PUBLISHED)

    frame = tables.per_repeat(found)

    counts = ["requests", "ok", "refused", "failed", "cold starts"]
    assert frame[counts].to_numpy().tolist() == [[2770, 2770, 0, 0, 8], [2767, 2765, 2, 0, 8]]
    assert frame["waited for a boot besides"].isna().all(), "its files do not say"
    known = {
        "duration [s]": [485.983533, 485.959944],
        "warm completion time, p50 [ms]": [4145.76683, 4027.31628],
        "warm completion time, p95 [ms]": [5611.172707, 5551.273246],
        "warm completion time, p99 [ms]": [6061.257473, 6238.851588],
        "cold completion time, p50 [ms]": [3990.494440, 4212.988185],
        "throughput [1/s]": [2770 / 485.983533, 2765 / 485.959944],
        "throughput in the last step [1/s]": [8.014340, 8.152759],
    }
    assert frame["monitoring's clock ahead of UTC [h]"].tolist() == [-5.0, -5.0]
    assert frame[list(known)].to_dict("list") == {name: pytest.approx(each, rel=1e-7) for name, each in known.items()}
    assert tables.boots(found).round(3).to_numpy().T.tolist() == [
        [0.655, 40.636, 93.824, 150.782, 200.883, 254.700, 321.556, 466.882],
        [0.654, 41.879, 91.086, 145.055, 200.904, 253.498, 319.069, 392.582],
    ]
    assert tables.littles_law(found)["ratio"].round(4).tolist() == [0.9856, 1.0136]
    assert tables.pooled(found).loc["warm completion time, p50 [ms]", "all requests"] == pytest.approx(4068.92145)
