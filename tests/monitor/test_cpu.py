import subprocess
import sys
from collections.abc import Collection
from typing import Any

import pytest
from support import LIMIT

from kaas.errors import ConnectionFailed, UsageError
from kaas.monitor.cpu import CpuMonitor, _cpu_seconds

T0 = 1_700_000_000.0


class World:
    """A server, its workers' CPU time and a clock, all of which the test sets."""

    def __init__(self, gpus: int = 1, workers_per_gpu: int = 2, cores: float = 64) -> None:
        self.now = T0
        self.server_is_there = True
        self.used: dict[int, float] = {}  # of each live process, seconds of CPU time
        self.workers: list[dict[str, Any]] = []
        self._gpus = gpus
        self._workers_per_gpu = workers_per_gpu
        self.workers_are_here = True
        self.monitor = CpuMonitor(self._status, self._cpu_seconds, lambda: self.now, cores)

    def add_worker(self, pid: int | None, gpu: int = 0, used: float = 0.0) -> None:
        self.workers.append({"worker": len(self.workers), "gpu": gpu, "pid": pid, "state": "idle"})
        if pid is not None:
            self.used[pid] = used

    def remove_worker(self, pid: int) -> None:
        self.workers = [worker for worker in self.workers if worker["pid"] != pid]
        del self.used[pid]

    def pass_seconds(self, seconds: float, **used_by: float) -> None:
        self.now += seconds
        for name, used in used_by.items():
            self.used[int(name.removeprefix("pid"))] += used

    def utilizations(self) -> list[float | None]:
        return [sample.utilization_pct for sample in self.monitor.take()]

    def _cpu_seconds(self, pids: Collection[int]) -> dict[int, float]:
        assert all(type(pid) is int for pid in pids)  # psutil takes None for this very process
        return {pid: self.used[pid] for pid in pids if pid in self.used}

    def _status(self) -> dict[str, Any]:
        if not self.server_is_there:
            raise ConnectionFailed("nobody listens")
        return {
            "gpus": self._gpus,
            "workers_per_gpu": self._workers_per_gpu,
            "workers": self.workers,
            "by_gpu": [{"gpu": gpu, "node": f"node-{gpu}"} for gpu in range(self._gpus)],
            "engine": {"here": self.workers_are_here},
        }


def test_the_samples_name_the_node_of_each_gpu() -> None:
    assert [sample.node for sample in World(gpus=2).monitor.take()] == ["node-0", "node-1"]


def test_workers_of_other_machines_are_not_looked_for_among_the_processes_of_this_one() -> None:
    world = World()
    world.workers_are_here = False
    with pytest.raises(UsageError, match="workers on other machines"):
        world.monitor.take()


def test_the_first_sample_has_every_gpu_and_no_utilization() -> None:
    world = World(gpus=3)
    world.add_worker(10, gpu=1, used=5.0)
    samples = world.monitor.take()
    assert [(sample.gpu, sample.bus_id, sample.utilization_pct) for sample in samples] == [
        (0, "virtual:0", None),
        (1, "virtual:1", None),
        (2, "virtual:2", None),
    ]
    assert {sample.timestamp for sample in samples} == {T0}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.0, 0.0, 0.0),  # both workers idle
        (1.0, 0.0, 25.0),  # one of two busy for half of the 2 s
        (2.0, 0.0, 50.0),  # one of two busy all the time
        (2.0, 2.0, 100.0),  # both busy all the time
        (0.1234, 0.0, 3.1),  # rounded to a tenth of a percent
    ],
)
def test_utilization_is_the_workers_cpu_time_of_the_cores_they_can_use(
    first: float, second: float, expected: float
) -> None:
    world = World()
    world.add_worker(10, used=100.0)
    world.add_worker(11, used=200.0)
    world.monitor.take()
    world.pass_seconds(2.0, pid10=first, pid11=second)
    assert world.utilizations() == [expected]


def test_each_gpu_has_its_own_workers_time() -> None:
    world = World(gpus=3)
    world.add_worker(10, gpu=0)
    world.add_worker(11, gpu=2)
    world.monitor.take()
    world.pass_seconds(1.0, pid10=0.5, pid11=1.0)
    assert world.utilizations() == [25.0, 0.0, 50.0]


def test_only_the_time_since_the_last_sample_counts() -> None:
    world = World()
    world.add_worker(10)
    world.monitor.take()
    world.pass_seconds(1.0, pid10=1.0)
    assert world.utilizations() == [50.0]
    world.pass_seconds(1.0)
    assert world.utilizations() == [0.0]


def test_all_the_time_of_a_worker_that_has_appeared_is_of_this_interval() -> None:
    world = World()
    world.monitor.take()
    world.add_worker(10)
    world.pass_seconds(1.0, pid10=0.5)
    assert world.utilizations() == [25.0]


def test_a_worker_that_boots_and_has_no_pid_yet_counts_for_nothing() -> None:
    world = World()
    world.add_worker(None)
    world.add_worker(None)
    world.monitor.take()
    world.pass_seconds(1.0)
    assert world.utilizations() == [0.0]


def test_a_worker_that_the_server_no_longer_names_counts_for_nothing() -> None:
    world = World()
    world.add_worker(10)
    world.add_worker(11)
    world.monitor.take()
    world.pass_seconds(1.0, pid10=1.0, pid11=1.0)
    world.remove_worker(10)
    assert world.utilizations() == [50.0]


def test_a_process_that_is_gone_while_the_server_still_names_it_counts_for_nothing() -> None:
    world = World()
    world.add_worker(10)
    world.add_worker(11)
    world.monitor.take()
    world.pass_seconds(1.0, pid11=1.0)
    del world.used[10]
    assert world.utilizations() == [50.0]


def test_a_pid_that_another_process_has_now_makes_no_negative_utilization() -> None:
    world = World()
    world.add_worker(10, used=50.0)
    world.monitor.take()
    world.used[10] = 0.1
    world.pass_seconds(1.0)
    assert world.utilizations() == [0.0]


def test_while_the_server_is_gone_there_are_no_samples_and_when_it_is_back_they_begin_anew() -> None:
    world = World()
    world.add_worker(10)
    world.monitor.take()
    world.server_is_there = False
    assert world.monitor.take() == []
    world.pass_seconds(60.0, pid10=60.0)
    assert world.monitor.take() == []
    world.server_is_there = True
    assert world.utilizations() == [None]
    world.pass_seconds(1.0, pid10=1.0)
    assert world.utilizations() == [50.0]


def test_a_server_that_is_not_there_yet_makes_no_samples() -> None:
    world = World()
    world.server_is_there = False
    assert world.monitor.take() == []


def test_utilization_is_never_over_a_hundred_percent() -> None:
    # CPU time is counted in steps of 10 ms, so that a short interval can seem to hold more of it than there is.
    world = World(workers_per_gpu=1)
    world.add_worker(10)
    world.monitor.take()
    world.pass_seconds(0.1, pid10=0.11)
    assert world.utilizations() == [100.0]


def test_with_fewer_cores_than_workers_the_cores_are_the_hundred_percent() -> None:
    world = World(workers_per_gpu=4, cores=2)
    for pid in (10, 11, 12, 13):
        world.add_worker(pid)
    world.monitor.take()
    world.pass_seconds(1.0, pid10=0.25, pid11=0.25, pid12=0.25, pid13=0.25)
    assert world.utilizations() == [50.0]


def test_a_quota_of_less_than_the_workers_is_the_hundred_percent() -> None:
    world = World(workers_per_gpu=4, cores=0.25)
    world.add_worker(10)
    world.monitor.take()
    world.pass_seconds(2.0, pid10=0.5)
    assert world.utilizations() == [100.0]


def test_what_a_worker_loses_to_another_process_takes_nothing_from_the_others_of_its_gpu() -> None:
    world = World()
    world.add_worker(10)
    world.add_worker(11, used=5.0)
    world.monitor.take()
    world.pass_seconds(1.0, pid10=0.5, pid11=-3.0)
    assert world.utilizations() == [25.0]


@pytest.mark.parametrize("waits", [True, False], ids=["while it runs", "when it has ended"])
def test_the_time_of_a_program_that_a_worker_started_is_the_workers(waits: bool) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"
    worker = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('ended', flush=True); input()"
    )
    command = [sys.executable, "-c", worker]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "burnt\n"
        if not waits:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ended\n"
        used = _cpu_seconds([process.pid])
        process.communicate("\n\n", timeout=LIMIT)
    assert used[process.pid] > 0.29
    assert _cpu_seconds([process.pid]) == {}


@pytest.mark.parametrize("passed", [0.0, -1.0])
def test_two_samples_at_one_time_or_with_the_clock_set_back_have_no_utilization(passed: float) -> None:
    world = World()
    world.add_worker(10)
    world.monitor.take()
    world.pass_seconds(passed, pid10=1.0)
    assert world.utilizations() == [None]
