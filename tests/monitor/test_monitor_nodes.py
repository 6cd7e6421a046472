"""The monitor over the nodes of a real Ray, simulated ones: rows of each, a node that is lost, and one that joins."""

import csv
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import StandIns
from ray_nodes import BOOT_TIMEOUT, StartCluster, needs_ray
from support import Marked, Server, StartServer, eventually

from kaas import ROOT

pytestmark = [pytest.mark.slow, needs_ray]

StartMonitor = Callable[..., "Monitor"]


class Monitor:
    """gpu-monitor.py as a real process."""

    def __init__(self, folder: Path, server: Server, *arguments: str) -> None:
        self.file, self._said = folder / "monitoring.csv", folder / "monitor-said"
        self.marked = Marked()
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "gpu-monitor.py", self.file, "--server", server.address, *arguments],
                env=self.marked.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def rows(self) -> list[dict[str, str]]:
        """Read the rows so far."""
        if not self.file.exists():
            assert self.process.poll() is None, self.said()
            return []
        with self.file.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["node"] is not None]

    def nodes(self) -> set[tuple[str, str]]:
        """Tell of which GPUs on which nodes there are rows."""
        return {(row["gpu"], row["node"]) for row in self.rows()}

    def said(self) -> str:
        """Read what it has said so far."""
        return self._said.read_text()

    def stop(self) -> str:
        """End it in order; return what it has said."""
        self.process.terminate()
        assert self.process.wait() == 0, self.said()
        self.marked.assert_nothing_left()
        return self.said()


@pytest.fixture
def start_monitor(tmp_path: Path) -> Iterator[StartMonitor]:
    made: list[Monitor] = []

    def start(server: Server, *arguments: str) -> Monitor:
        made.append(Monitor(tmp_path, server, "--engine", "ray", *arguments))
        return made[-1]

    yield start
    for one in made:
        one.marked.kill()
        one.process.wait()


def test_the_gpus_of_each_node_are_sampled_there_and_stamped_by_the_clock_here(
    start_server: StartServer, start_cluster: StartCluster, start_monitor: StartMonitor, tmp_path: Path
) -> None:
    stand_ins = StandIns(tmp_path / "nvidia", gpus=2)
    cluster = start_cluster(2, 2, **stand_ins.environment)
    server = start_server("echo", "--engine", "ray", "--ray-address", cluster.address, *BOOT_TIMEOUT)
    before = time.time()
    monitor = start_monitor(server, "--source", "nvidia-smi", "--interval-ms", "50")
    eventually(lambda: len(monitor.rows()) >= 40)
    after, told, rows = time.time(), monitor.stop(), monitor.rows()

    assert {(row["gpu"], row["uuid"], row["node"], row["utilization_pct"]) for row in rows} == {
        ("0", "GPU-stand-in-0", "simulated-1", "40.0"),
        ("1", "GPU-stand-in-1", "simulated-2", "41.0"),
    }
    assert all(before < float(row["timestamp"]) < after for row in rows[:40])
    for node in ("simulated-1", "simulated-2"):
        stamps = [float(row["timestamp"]) for row in rows if row["node"] == node]
        assert stamps == sorted(stamps)
        assert re.search(rf"gpu-monitor.py: node {node}: its clock is known to \d+\.\d+ ms", told)


def test_the_rows_of_a_lost_node_end_with_a_note_and_the_others_go_on_and_one_that_joins_is_found(
    start_server: StartServer, start_cluster: StartCluster, start_monitor: StartMonitor
) -> None:
    cluster = start_cluster(2, 2)
    server = start_server("echo", "--engine", "ray", "--ray-address", cluster.address, *BOOT_TIMEOUT)
    monitor = start_monitor(server, "--source", "cpu", "--interval-ms", "50")
    eventually(lambda: monitor.nodes() == {("0", "simulated-1"), ("1", "simulated-2")})

    cluster.raylet("simulated-2").kill()
    eventually(lambda: "node simulated-2 is lost, and its rows end at " in monitor.said())
    number = len(monitor.rows())
    eventually(lambda: len(monitor.rows()) > number + 10)
    assert {row["node"] for row in monitor.rows()[number + 2 :]} == {"simulated-1"}

    cluster.add(3)
    eventually(lambda: ("2", "simulated-3") in monitor.nodes())
    told = monitor.stop()
    assert told.count("is lost") == 1
    assert "Traceback" not in told


def test_what_it_lacks_is_one_line(start_server: StartServer, start_monitor: StartMonitor) -> None:
    monitor = start_monitor(start_server("echo"))
    assert monitor.process.wait() == 2
    assert monitor.said() == (
        "gpu-monitor.py: the server is not one with --engine ray: give no --engine, or a --ray-address\n"
    )
    assert not monitor.file.exists()
