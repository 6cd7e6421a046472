from pathlib import Path

import pytest
from made_runs import PUBLISHED, T0, booted, needs_published, request, write_run

from kaas.analysis import booted as boots_of
from kaas.analysis import mechanism, replay, runs
from kaas.analysis.runs import Run
from kaas.analysis.setting import Setting
from kaas.events import Event
from kaas.row import Row


def made(folder: Path, rows: list[Row], happened: list[Event] | None = None) -> Run:
    write_run(folder, "task-1", rows, happened or [])
    (run,) = runs.find_runs(folder)
    return run


def sent(at: float, setup_s: float, kernel_s: float, rest_s: float, copy: int, **more: str) -> Row:
    row = request(at, 1000 * (setup_s + kernel_s + rest_s), copy=copy, **more)  # type: ignore[arg-type]
    return row._replace(setup_time=1000 * setup_s, inner_time_ms=1000 * kernel_s)


def test_a_request_has_a_place_from_its_setup_until_a_fifth_of_the_rest_after_its_kernel(tmp_path: Path) -> None:
    run = made(tmp_path, [sent(0, 0.5, 2, 1, copy=0), sent(1, 0.25, 1, 1, copy=1)])

    placed = replay.replay(run, gpus=1, workers_per_gpu=2).placed

    assert placed["arrival"].tolist() == [0.5, 1.25]
    assert placed["release"].tolist() == pytest.approx([2.7, 2.45])
    assert placed["taken"].tolist() == [0, 1]
    assert placed["worker"].tolist() == [0, 1]


def test_a_gpu_is_booted_when_every_worker_of_the_booted_ones_is_taken(tmp_path: Path) -> None:
    # The first place is free again at 2.2 s: one that comes at 2.1 s boots the second GPU, one at 2.3 s does not.
    for late, number in ((2.1, 2), (2.3, 1)):
        run = made(tmp_path / str(late), [sent(0, 0, 2, 1, copy=0), sent(late, 0, 2, 1, copy=1)])
        boots = replay.replay(run, gpus=2, workers_per_gpu=1).boots

        assert boots["gpu"].tolist() == list(range(number))
        assert boots["elapsed"].tolist() == pytest.approx([0.0, late][:number])
        assert boots["request"].tolist() == [0, 1][:number]


def test_a_refused_request_takes_no_place_and_sees_how_many_are_taken(tmp_path: Path) -> None:
    rows = [sent(0, 0, 2, 0, copy=0), sent(1, 0, 0, 0.01, copy=1, status="rejected"), sent(1.5, 0, 2, 0, copy=1)]

    placed = replay.replay(made(tmp_path, rows), gpus=2, workers_per_gpu=1).placed

    assert placed["worker"].isna().tolist() == [False, True, False]
    assert placed["taken"].tolist() == [0, 1, 1]


def test_a_task_runner_that_the_log_says_was_stopped_is_booted_again(tmp_path: Path) -> None:
    rows = [sent(0, 0, 1, 0, copy=0), sent(90, 0, 1, 0, copy=0)]
    stopped = [booted(0, 0, 1), Event("stopped", T0 + 61, 0, 1), booted(90, 0, 1)]

    boots = replay.replay(made(tmp_path, rows, stopped), gpus=2, workers_per_gpu=1).boots

    assert boots.to_numpy().tolist() == [[0.0, 0, 0], [90.0, 0, 1]]


def test_the_request_of_a_client_that_fell_silent_holds_its_place_for_ever(tmp_path: Path) -> None:
    # Client 1 had its only reply at 2 s, and would have sent its next one after a setup of half a second.
    others = [sent(2 * turn, 0.5, 1, 0.5, copy=0) for turn in range(6)]
    run = made(tmp_path, [*others, sent(0, 0.5, 1, 0.5, copy=1)])

    silent = replay.silent(run)
    held, free = (replay.replay(run, 1, 2, lost_places=lost).placed["taken"].max() for lost in (True, False))

    assert silent.to_numpy().tolist() == [[1, 2.0, 2.5]]
    assert (held, free) == (1, 1)
    assert replay.replay(run, 1, 2).unanswered["worker"].notna().all()
    assert replay.replay(run, 3, 1).boots["elapsed"].tolist() == [0.5, 0.5]


def test_a_client_that_never_had_a_reply_is_known_by_those_after_it(tmp_path: Path) -> None:
    rows = [sent(at, 0.5, 1, 0.5, copy=copy) for copy in (0, 2) for at in (10.0 * copy, 10.0 * copy + 6)]

    silent = replay.silent(made(tmp_path, rows), margin_s=20.0)

    assert silent.to_numpy().tolist() == [[1, 10.0, 10.5]]


def test_a_boot_is_when_its_cold_start_came_to_the_server(tmp_path: Path) -> None:
    requests = [*_cold(0, 0.7), sent(35, 0.7, 1, 1, copy=0)]
    run = made(tmp_path, requests, [booted(0, 0), booted(30, 1)])

    assert boots_of.first(run).tolist() == [0.7, 30.0]  # of the second no cold start is known
    assert not boots_of.bears_begins(run)
    assert boots_of.bears_begins(made(tmp_path / "a", [*_cold(0, 0.7)], [booted(0, 0)]))
    assert not boots_of.bears_begins(made(tmp_path / "b", [*_cold(0, 0.7)], [booted(0.705, 0)]))


def _cold(at: float, setup_s: float) -> list[Row]:
    return [sent(at, setup_s, 1, 1, copy=0)._replace(cold_start=True)]


@needs_published
def test_the_replay_gives_all_sixteen_published_boots() -> None:
    for run in runs.find_runs(PUBLISHED):
        found = mechanism.boots(Setting(run)).astype("float64")

        assert found["off [s]"].abs().max() < 0.02
        # Neither without the lost places nor with another time of release.
        assert found["if no place were lost [s]"].isna().any()
        assert max(found["booted [s]"] - found["if held for all of the rest [s]"]) > 10


@needs_published
@pytest.mark.parametrize("held", [0.18, 0.2, 0.22])
def test_the_one_parameter_of_the_replay_need_not_be_exact(held: float) -> None:
    for run in runs.find_runs(PUBLISHED):
        boots = replay.replay(run, 8, 4, held=held).boots

        assert (boots["elapsed"].to_numpy() - boots_of.first(run).to_numpy()) == pytest.approx([0.0] * 8, abs=0.2)


@needs_published
def test_as_many_requests_go_to_workers_that_had_left_as_clients_fall_silent() -> None:
    found = [mechanism.lost_places(Setting(run)).iloc[0].to_dict() for run in runs.find_runs(PUBLISHED)]

    assert [(one["fell silent"], one["sent to a worker that had left"]) for one in found] == [(6, 6), (5, 5)]


@needs_published
def test_the_published_log_of_the_repeat_with_refusals_is_none_of_the_servers() -> None:
    one, two = runs.find_runs(PUBLISHED)

    assert (boots_of.bears_begins(one), boots_of.bears_begins(two)) == (False, True)
    logs = mechanism.logs(Setting(one)), mechanism.logs(Setting(two))
    assert logs[0]["less begin and setup [s]"].between(0.0039, 0.0091).all()
    assert logs[1]["less begin and setup [s]"].between(-2.4, -0.65).all()
    assert logs[1]["less the cold start's begin [s]"].abs().max() < 0.0002


@needs_published
def test_three_clients_fill_a_published_gpu_and_thirty_its_host() -> None:
    found = runs.find_runs(PUBLISHED)

    on_one = mechanism.kernels(Setting(found[0]))
    utilization = on_one["utilization [%]"]
    assert utilization[3] > 95 > utilization[2]
    assert on_one["shortest from end to end [s]"].iloc[0] == pytest.approx(0.774, abs=0.001)
    rates = mechanism.setups(found)["setups [1/s]"]
    assert rates.loc[14:27].between(7.8, 8.7).all()
    assert rates.loc[1] == pytest.approx(1.5, abs=0.05)
    where = mechanism.where_clients_are(found)
    assert where.loc["33 to 36":, "at the server"].between(18, 20).all()
    assert where["in setup"].is_monotonic_increasing


def test_virtual_gpus_and_runs_without_a_log_have_no_tables_of_this_kind(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 10)], [booted(0, 0)], [(0, 0, 50.0)])
    write_run(tmp_path, "task-2", [request(0, 10)])

    assert mechanism.all_tables(runs.find_runs(tmp_path)) == []
    assert mechanism.write(runs.find_runs(tmp_path), tmp_path) == []
