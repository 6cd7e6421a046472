"""Simulated runs: tiny ones computed by hand, what must be conserved in any, and that a seed tells all."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kaas.policy import Queue
from kaas.ramp import Ramp
from kaas.row import Row
from kaas.shapes import OpenLoop, Stepwise
from kaas.simulation import calibration
from kaas.simulation.experiment import Simulated, simulate
from kaas.simulation.model import Model
from kaas.simulation.setting import Setting

PLAIN = Model(
    setup_alone=1.0,
    setup_clients=(1.0, 2.0),
    setup_seconds=(1.0, 1.0 + 1e-9),
    upload=0.5,
    kernel=2.0,
    download=0.25,
    rest=1.0,
    rest_held=0.25,
    boot_first=3.0,
    boot=1.0,
)
"""No chance in it: 1 s setup, 0.5 upload, 2 kernel, 0.25 download, 0.25 until the place is free, 0.75 until the end."""
ONE_GPU = Setting(gpus=1, workers_per_gpu=4, shape=Ramp(1, 1, 1, 20.0))


def times(row: Row) -> tuple[float, ...]:
    """Begin, setup, inner and outer time in seconds."""
    return row.timestamp, row.setup_time / 1e3, row.inner_time_ms / 1e3, row.outer_time_ms / 1e3


def of_client(run: Simulated, number: int) -> list[Row]:
    return [row for row in run.rows if row.copy == number]


def test_one_client_alone_waits_for_the_boot_once_and_for_nobody_then() -> None:
    run = simulate(PLAIN, ONE_GPU, 1)
    assert [times(row) for row in run.rows] == [
        pytest.approx((0.0, 1.0, 2.75, 7.75)),
        pytest.approx((7.75, 1.0, 2.75, 4.75)),
        pytest.approx((12.5, 1.0, 2.75, 4.75)),
        pytest.approx((17.25, 1.0, 2.75, 4.75)),  # begun before the end, and finished
    ]
    assert [(row.cold_start, row.waited_for_boot, row.gpu, row.worker, row.queued_ms) for row in run.rows] == [
        (True, True, 0, 0, pytest.approx(3000.0)),
        *[(False, False, 0, 0, 0.0)] * 3,
    ]
    assert run.ended == pytest.approx(22.0)
    assert [event.event for event in run.events[:2]] == ["booted", "ready"]
    assert [event.timestamp for event in run.events[:2]] == pytest.approx([1.0, 4.0])


def test_kernels_of_one_gpu_run_one_after_the_other_and_transfers_do_not() -> None:
    run = simulate(PLAIN, replace(ONE_GPU, shape=Ramp(3, 3, 1, 1.0)), 1)
    # All are ready to compute at 4.5, when the workers were ready and have uploaded.
    assert [times(row)[2] for row in run.rows] == pytest.approx([2.75, 4.75, 6.75], abs=1e-6)
    assert [row.worker for row in run.rows] == [0, 1, 2]


def test_kernels_that_share_a_gpu_end_together() -> None:
    run = simulate(replace(PLAIN, kernels_shared=1.0), replace(ONE_GPU, shape=Ramp(3, 3, 1, 1.0)), 1)
    assert [times(row)[2] for row in run.rows] == pytest.approx([6.75] * 3, abs=1e-6)


def test_transfers_take_longer_for_each_request_in_flight() -> None:
    slow = replace(PLAIN, transfer_per_request=0.1, boot_first=0.0)
    run = simulate(slow, replace(ONE_GPU, shape=Ramp(2, 2, 1, 1.0)), 1)
    # Upload: 0.5 + 0.1 for the first, + 0.2 for the second; download: both are in flight when the first's kernel ends;
    # when the second's does, at 1.6 + 2 + 2 = 5.6 less 1 of setup, the first has left.
    assert [times(row)[2] for row in run.rows] == pytest.approx([0.6 + 2.0 + 0.45, 4.6 + 0.35], abs=1e-6)


def test_a_place_is_taken_until_the_worker_is_done_with_it_and_then_the_next_gpu_is_not_needed() -> None:
    # The first client's second request has its place from 8.75 to 11.75; the second client's first comes just before.
    setting = Setting(gpus=2, workers_per_gpu=1, shape=Ramp(1, 2, 1, 10.7))
    before = of_client(simulate(PLAIN, setting, 1), 1)[0]
    assert (before.gpu, before.cold_start) == (1, True)
    after = of_client(simulate(PLAIN, replace(setting, shape=Ramp(1, 2, 1, 10.8)), 1), 1)[0]
    assert (after.gpu, after.cold_start) == (0, False)


def test_who_finds_no_place_is_refused_and_comes_again_after_the_backoff() -> None:
    setting = Setting(gpus=1, workers_per_gpu=1, shape=Ramp(2, 2, 1, 5.0), backoff=0.5)
    refused = [row for row in simulate(PLAIN, setting, 1).rows if row.status == "rejected"]
    assert times(refused[0]) == pytest.approx((0.0, 1.0, 0.0, 2.0))  # setup and what is neither setup nor kernel
    assert times(refused[1])[0] == pytest.approx(2.5)
    assert (refused[0].gpu, refused[0].worker, refused[0].cold_start) == (None, None, False)


def test_a_worker_that_had_nothing_to_do_for_long_has_left_and_takes_a_client_and_its_place_with_it() -> None:
    setting = Setting(gpus=1, workers_per_gpu=2, shape=Ramp(1, 2, 1, 27.0))
    run = simulate(replace(PLAIN, leaves_after=20.0), setting, 1)
    # The second client comes at 28, when worker 0 is busy, to worker 1, unused since it was ready at 4.
    assert of_client(run, 1) == []
    assert run.unanswered == 1
    assert simulate(PLAIN, setting, 1).unanswered == 0


def test_a_task_runner_without_work_is_stopped_and_booted_again() -> None:
    idle = Setting(gpus=2, workers_per_gpu=1, shape=Ramp(2, 2, 1, 30.0), idle_timeout=2.0)
    slow = replace(PLAIN, rest=8.0)  # 6 s pass from the place's release to the next request
    happened = [event.event for event in simulate(slow, idle, 1).events]
    assert happened.count("booted") > 2
    assert happened.count("stopped") == happened.count("booted")


def test_who_may_wait_is_served_in_turn() -> None:
    setting = Setting(gpus=1, workers_per_gpu=1, shape=Ramp(3, 3, 1, 20.0), policy=lambda: Queue(10))
    rows = simulate(PLAIN, setting, 1).rows
    assert {row.status for row in rows} == {"ok"}
    # Each holds the place for 0.5 + 2 + 0.25 + 0.25 s.
    assert [row.queued_ms / 1e3 for row in rows[:3]] == pytest.approx([3.0, 6.0, 9.0], abs=1e-6)


# Other shapes


def test_clients_that_a_shape_takes_away_end_after_their_request_and_come_again() -> None:
    shape = Stepwise("trace:x", (0.0, 1.0, 12.0), (2, 1, 2), 20.0)
    run = simulate(PLAIN, replace(ONE_GPU, shape=shape), 1)
    # Both begin at 0 and wait for the boot; the second's kernel has to wait for the first's, until 8.5.
    assert [times(row)[0] for row in of_client(run, 1)] == pytest.approx([0.0, 12.0, 16.75], abs=1e-6)
    assert [row.concurrency for row in of_client(run, 1)] == [2, 2, 2]
    # The first begins before it, goes on alone from 7.75 on, and is not alone any more from 12.5 on.
    assert [row.concurrency for row in of_client(run, 0)] == [1, 1, 2, 2]


def test_an_idle_task_runner_is_stopped_while_few_clients_go_on() -> None:
    shape = Stepwise("updown", (0.0, 20.0, 40.0), (1, 2, 1), 60.0)
    setting = Setting(gpus=2, workers_per_gpu=1, shape=shape, idle_timeout=5.0)
    happened = [(event.event, event.gpu) for event in simulate(PLAIN, setting, 1).events if event.timestamp < 60.0]
    assert [one for one in happened if one[0] != "ready"] == [("booted", 0), ("booted", 1), ("stopped", 1)]


def open_loop(clients: int, *arrivals: float, duration: float = 20.0) -> OpenLoop:
    return OpenLoop("arrivals:x", (0.0,), (clients,), duration, arrivals)


def test_requests_arrive_when_they_do_and_count_from_there() -> None:
    run = simulate(PLAIN, replace(ONE_GPU, shape=open_loop(1, 0.0, 1.0, 19.0, 20.0)), 1)
    # The only client is in the first until 7.75, as in the closed loop, and in the second until 12.5; then it waits.
    assert [times(row) for row in run.rows] == [
        pytest.approx((0.0, 1.0, 2.75, 7.75)),
        pytest.approx((1.0, 1.0, 2.75, 6.75 + 4.75)),
        pytest.approx((19.0, 1.0, 2.75, 4.75)),
        pytest.approx((20.0, 1.0, 2.75, 3.75 + 4.75)),  # at the very end
    ]
    assert [(row.arrived, row.lag_ms / 1e3) for row in run.rows] == [
        (0.0, 0.0),
        (1.0, pytest.approx(6.75)),
        (19.0, 0.0),
        (20.0, pytest.approx(3.75)),
    ]
    assert run.ended == pytest.approx(28.5)
    # A client that is free at the end is there for what arrives just then, and leaves if nothing does.
    assert [row.status for row in simulate(PLAIN, replace(ONE_GPU, shape=open_loop(1, 20.0)), 1).rows] == ["ok"]
    assert simulate(PLAIN, replace(ONE_GPU, shape=open_loop(2, 0.0)), 1).ended == pytest.approx(20.0)


def test_what_no_client_could_send_is_a_failed_row_and_nothing_is_left_out() -> None:
    run = simulate(PLAIN, replace(ONE_GPU, shape=open_loop(1, *map(float, range(40)), duration=40.0)), 1)
    assert sorted(row.arrived for row in run.rows if row.arrived is not None) == list(map(float, range(40)))
    failed = [row for row in run.rows if row.status == "failed"]
    # A minute after the end no more is sent: 1 that takes 7.75 and then one each 4.75 s until 100.
    assert len(run.rows) - len(failed) == 1 + 20
    assert {row.error for row in failed} == {"no client was free to send it before the end"}
    assert all(row.timestamp + row.outer_time_ms / 1e3 == pytest.approx(100.0) for row in failed)
    assert run.unanswered == 0


# What holds in any run


@pytest.fixture(scope="module")
def short() -> Simulated:
    return simulate(calibration.load("published").model, replace(Setting(), shape=Ramp(1, 24, 1, 4.0)), 7)


def test_a_seed_tells_all_of_a_run(short: Simulated) -> None:
    def run(seed: int) -> Simulated:
        return simulate(calibration.load("published").model, replace(Setting(), shape=Ramp(1, 24, 1, 4.0)), seed)

    again = run(7)
    assert (again.rows, again.events, again.ended) == (short.rows, short.events, short.ended)
    assert run(8).rows != short.rows


def test_work_is_conserved(short: Simulated) -> None:
    assert short.gpus is not None
    for gpu, kernels in enumerate(short.gpus.kernels):
        begins, ends = np.array(sorted(kernels)).T if kernels else (np.empty(0), np.empty(0))
        assert len(kernels) == sum(row.gpu == gpu for row in short.rows)
        assert (begins[1:] >= ends[:-1] - 1e-9).all(), "two kernels at once"
        assert (ends - begins).sum() == pytest.approx(len(kernels) * 0.8045, rel=0.01)


def test_every_request_takes_what_its_parts_take(short: Simulated) -> None:
    for row in short.rows:
        _, setup, inner, outer = times(row)
        assert outer > setup + inner + row.queued_ms / 1e3 > 0


def test_a_client_has_one_request_at_a_time_and_asks_again_at_once(short: Simulated) -> None:
    for number in range(24):
        rows = of_client(short, number)
        ends = [row.timestamp + row.outer_time_ms / 1e3 for row in rows]
        assert [row.timestamp for row in rows[1:]] == pytest.approx(ends[:-1], abs=1e-6)


def test_littles_law_holds(short: Simulated) -> None:
    # Of all clients at any time: their number over time is the sum of the times of their requests.
    area = sum(row.outer_time_ms / 1e3 for row in short.rows)
    present = sum(
        max(row.timestamp + row.outer_time_ms / 1e3 for row in rows) - rows[0].timestamp
        for rows in (of_client(short, number) for number in range(24))
    )
    assert area == pytest.approx(present)


def test_no_worker_has_two_requests_at_once_and_no_gpu_more_than_it_has_workers(short: Simulated) -> None:
    spans: dict[Any, list[tuple[float, float]]] = {}
    for row in short.rows:
        come = row.timestamp + row.setup_time / 1e3 + row.queued_ms / 1e3
        spans.setdefault(row.worker, []).append((come, come + row.inner_time_ms / 1e3))
        assert row.worker is not None
        assert row.worker // 4 == row.gpu
    for taken in spans.values():
        taken.sort()
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(taken))


def test_as_many_boots_as_cold_starts(short: Simulated) -> None:
    booted = [event for event in short.events if event.event == "booted"]
    assert len(booted) == sum(row.cold_start for row in short.rows)
    assert [event.gpu for event in booted] == list(range(len(booted)))


def test_clients_of_several_hosts_do_not_hinder_each_other() -> None:
    crowded = replace(PLAIN, setup_seconds=(1.0, 4.0))
    setting = Setting(gpus=2, workers_per_gpu=1, shape=Ramp(2, 2, 1, 1.0))
    assert [row.setup_time for row in simulate(crowded, setting, 1).rows] == pytest.approx([4000.0] * 2)
    apart = replace(setting, gpus_per_host=1)
    assert [row.setup_time for row in simulate(crowded, apart, 1).rows] == pytest.approx([1000.0] * 2)
