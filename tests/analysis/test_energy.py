import pandas as pd
import pytest

from kaas.analysis import energy
from kaas.analysis.runs import Run

NAN = float("nan")
Cell = float | None


def run_of(*rows: tuple[float, int, Cell, Cell], duration_s: float = 10.0, served: int = 4, refused: int = 1) -> Run:
    """Make a run from rows of elapsed, gpu, power_w and energy_j."""
    status = ["ok"] * served + ["rejected"] * refused
    requests = pd.DataFrame({"elapsed": 0.0, "outer_time_ms": duration_s * 1000, "status": status})
    requests[["cold_start", "waited_for_boot"]] = False
    monitoring = pd.DataFrame(rows, columns=["elapsed", "gpu", "power_w", "energy_j"])
    monitoring = monitoring.astype({"elapsed": "float64", "gpu": "int64", "power_w": "float64", "energy_j": "float64"})
    events = pd.DataFrame({"elapsed": pd.Series(dtype="float64"), "event": "", "gpu": 0})
    return Run("task-1", {}, requests, events, monitoring.sort_values("elapsed", kind="stable"))


def rows_of(run: Run) -> list[list[object]]:
    """Give the rows of the table, less the index and what each method finds."""
    return [list(row)[:6] for row in energy.energy(run).itertuples(index=False)]


def test_constant_power_is_power_times_time() -> None:
    run = run_of(*((at, 0, 50, None) for at in range(11)))

    assert energy.energy(run).index.tolist() == [0]
    assert energy.energy(run).columns.tolist() == list(energy.LABELS)
    assert rows_of(run) == [[500.0, "power integral", 50.0, 50.0, 10.0, ""]]


def test_power_that_rises_evenly_is_exact_however_it_is_sampled() -> None:
    # 10 W a second: 10 * 10^2 / 2 = 500 J.
    run = run_of(*((at, 0, 10 * at, None) for at in (0, 1, 1.5, 4, 5, 8, 10)))

    assert rows_of(run) == [[pytest.approx(500), "power integral", pytest.approx(50), 100.0, 10.0, ""]]


def test_a_gap_is_not_bridged_but_noted() -> None:
    # Every 0.5 s but from 2 s to 8 s, with 100 W before and 300 W after: 2 s * 100 W + 2 s * 300 W.
    before, after = [at / 2 for at in range(5)], [8 + at / 2 for at in range(5)]
    run = run_of(*((at, 0, 100, None) for at in before), *((at, 0, 300, None) for at in after))

    assert rows_of(run) == [[800.0, "power integral", 200.0, 300.0, 4.0, "1 gap, 6.0 s"]]
    assert energy.cumulative(run)[[0, 2, 8, 10]].tolist() == [0.0, 200.0, 200.0, 800.0]


def test_a_late_sample_is_no_gap() -> None:
    run = run_of(*((at, 0, 100, None) for at in (0, 1, 2, 7, 8, 9, 10)))

    assert rows_of(run) == [[1000.0, "power integral", 100.0, 100.0, 10.0, ""]]


def test_only_samples_of_the_run_count() -> None:
    run = run_of(*((at, 0, 50 if 0 <= at <= 10 else 900, 7 * at + 100) for at in range(-5, 16)))

    assert rows_of(run) == [[70.0, "counter", 7.0, 50.0, 10.0, ""]]


def test_a_counter_is_believed_more_than_power_and_bridges_gaps() -> None:
    run = run_of((0, 0, 100, 5000), (1, 0, 100, 5090), (2, 0, 110, 5180), (10, 0, 100, 5900))

    assert rows_of(run) == [[900.0, "counter", 90.0, 110.0, 10.0, ""]]


def test_a_counter_that_begins_anew_loses_that_step_only() -> None:
    # 30 J, then the driver is loaded anew, then 40 J: the 4 s between are not known.
    run = run_of((0, 0, None, 900), (3, 0, None, 930), (7, 0, None, 10), (10, 0, None, 50))

    assert rows_of(run) == [[70.0, "counter", 70 / 6, pytest.approx(NAN, nan_ok=True), 6.0, "1 counter jump, 4.0 s"]]
    assert energy.cumulative(run).to_dict() == {0.0: 0.0, 3.0: 30.0, 7.0: 30.0, 10.0: 70.0}


@pytest.mark.parametrize("failed", [4294967.295, 1e11, 0])
def test_a_counter_of_which_one_reading_failed_loses_its_two_steps_only(failed: float) -> None:
    counter = {at: 1_000_000 + 90 * at for at in range(11)} | {4: failed}
    run = run_of(*((at, 0, None, joules) for at, joules in counter.items()))

    assert rows_of(run)[0][:2] == [720.0, "counter"]
    assert rows_of(run)[0][5] == "2 counter jumps, 2.0 s"


def test_a_counter_that_steps_late_is_believed() -> None:
    # 700 W, read every 0.1 s by nvidia-smi's pace, and counted in steps of half a second.
    run = run_of(*((at / 10, 0, None, 350 * (at // 5)) for at in range(101)))

    assert rows_of(run)[0][:2] == [7000.0, "counter"]
    assert rows_of(run)[0][5] == ""


def test_where_both_are_there_both_are_told() -> None:
    run = run_of(*((at, gpu, 100, 1000 + 90 * at if gpu else None) for at in range(11) for gpu in range(2)))

    by_gpu = energy.energy(run)

    assert by_gpu["by_power"].tolist() == [1000.0, 1000.0]
    assert by_gpu["by_counter"].tolist() == pytest.approx([NAN, 900.0], nan_ok=True)
    assert by_gpu["joules"].tolist() == [1000.0, 900.0]
    numbers = energy.numbers(run)
    assert numbers["energy by counter [J]"] == 900.0
    assert numbers["energy by power integral [J]"] == 2000.0


def test_empty_cells_are_no_samples() -> None:
    run = run_of((0, 0, 100, 10), (1, 0, None, None), (2, 0, 200, None), (3, 0, None, 70), (4, 0, None, None))

    assert rows_of(run) == [[60.0, "counter", 20.0, 200.0, 3.0, ""]]


def test_a_counter_that_stands_still_does_not_count() -> None:
    run = run_of(*((at, 0, 50, 0) for at in range(11)))

    assert rows_of(run) == [[500.0, "power integral", 50.0, 50.0, 10.0, ""]]


def test_each_gpu_has_the_method_that_fits_it() -> None:
    run = run_of(
        *((at, 0, 100, 1000 + 90 * at) for at in range(11)),
        *((at + 0.001, 1, 20, None) for at in range(10)),
        *((at, 2, None, None) for at in range(11)),
        (5, 3, 70, 123),  # one sample covers no time
    )

    nan = pytest.approx(NAN, nan_ok=True)
    assert rows_of(run) == [
        [900.0, "counter", 90.0, 100.0, 10.0, ""],
        [pytest.approx(180), "power integral", pytest.approx(20), 20.0, pytest.approx(9), ""],
        [nan, "-", nan, nan, nan, ""],
        [nan, "-", nan, 70.0, nan, ""],
    ]
    assert energy.methods(run) == "counter (1), power integral (1), unknown (2)"
    assert energy.cumulative(run).iloc[-1] == pytest.approx(1080)


def test_energy_per_request_is_that_of_all_gpus_for_each_that_was_served() -> None:
    run = run_of(*((at, gpu, 30, None) for at in range(11) for gpu in range(2)), served=4, refused=3)

    assert energy.per_request(run) == 150.0
    assert energy.numbers(run) == pytest.approx(
        {
            "energy [J]": 600.0,
            "energy per served request [J]": 150.0,
            "energy method": "power integral",
            "energy by counter [J]": NAN,
            "energy by power integral [J]": 600.0,
        },
        nan_ok=True,
    )


def test_nothing_served_has_no_energy_per_request() -> None:
    run = run_of((0, 0, 30, None), (1, 0, 30, None), served=0)

    assert energy.per_request(run) == pytest.approx(NAN, nan_ok=True)
    assert energy.numbers(run)["energy [J]"] == 30.0


@pytest.mark.parametrize("rows", [[], [(at, 0, None, None) for at in range(11)], [(-3, 0, 50, 1), (-2, 0, 50, 70)]])
def test_a_run_without_power_and_energy_has_no_such_rows(rows: list[tuple[float, int, Cell, Cell]]) -> None:
    run = run_of(*rows)

    assert not energy.logged(run)
    assert energy.numbers(run) == {}
    assert energy.cumulative(run).empty
    assert energy.per_request(run) == pytest.approx(NAN, nan_ok=True)
    assert energy.energy(run)["method"].tolist() == (["-"] if rows and rows[0][0] >= 0 else [])


def test_a_single_sample_of_power_is_logged_but_gives_no_energy() -> None:
    run = run_of((5, 0, 70, None))

    assert energy.logged(run)
    assert energy.numbers(run) == pytest.approx(
        {
            "energy [J]": NAN,
            "energy per served request [J]": NAN,
            "energy method": "-",
            "energy by counter [J]": NAN,
            "energy by power integral [J]": NAN,
        },
        nan_ok=True,
    )
