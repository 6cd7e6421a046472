"""A node in a network of its own, which vanishes without a word: its network is cut, and nobody closes a connection."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import PLAIN, Project
from ray_nodes import BOOT_TIMEOUT, events_of, needs_ray
from support import Frames, Marked, Server, command, eventually, exists

from kaas import description

pytestmark = [pytest.mark.slow, needs_ray]

HERE, THERE = "10.213.7.1", "10.213.7.2"
PORT = 6379  # in a network of its own no other has it
NOBODY = "02:00:00:00:00:01"
FOUND_WITHIN = 10.0
"""Seconds in which a node must be found that has vanished without a word; what Ray does by itself takes a minute."""


class Network:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        name = f"kaas{os.getpid()}"
        self.here, self.there = f"{name}a", f"{name}b"
        self._cable = f"k{os.getpid()}"

    def make(self) -> None:
        for space in (self.here, self.there):
            ip("netns", "add", space)
        ip("link", "add", f"{self._cable}a", "netns", self.here, "type", "veth",
           "peer", "name", f"{self._cable}b", "netns", self.there)  # fmt: skip
        for space, device, address in ((self.here, "a", HERE), (self.there, "b", THERE)):
            ip("-n", space, "address", "add", f"{address}/24", "dev", f"{self._cable}{device}")
            ip("-n", space, "link", "set", f"{self._cable}{device}", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Have nothing arrive any more, and no system notice it: each has a wrong hardware address of the other."""
        for space, device, other in ((self.here, "a", THERE), (self.there, "b", HERE)):
            at = ("lladdr", NOBODY, "dev", f"{self._cable}{device}", "nud", "permanent")
            ip("-n", space, "neighbor", "replace", other, *at)

    def remove(self) -> None:
        for space in (self.here, self.there):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def within(space: str, *line: str) -> list[str]:
    return ["ip", "netns", "exec", space, *line]


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    try:
        made.make()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"needs network namespaces, which only root may make: {error}")
    yield made
    made.remove()


@pytest.fixture
def nodes(network: Network) -> Iterator[Marked]:
    """A Ray of two nodes with a GPU each, by `ray start`, one in each namespace."""
    folder = Path(tempfile.mkdtemp(prefix="kr.", dir="/tmp"))  # pytest's names are too long for sockets
    marked = Marked({"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)})
    start = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus", "0", "--num-gpus", "1", "--block"]
    more = ["--object-store-memory", str(80 * 1024 * 1024), "--disable-usage-stats"]
    head = ["--head", "--port", str(PORT), "--node-ip-address", HERE, "--include-dashboard", "false"]
    other = ["--address", f"{HERE}:{PORT}", "--node-ip-address", THERE]
    started = []
    try:
        for space, own in ((network.here, head), (network.there, other)):
            path = folder / f"said-{space}"
            with path.open("w") as said:
                line = within(space, *start, *more, *own)
                started.append(subprocess.Popen(line, env=marked.environment, stdout=said, stderr=subprocess.STDOUT))
            eventually(lambda: "Ray runtime started" in path.read_text())  # noqa: B023
        yield marked
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)  # it cannot tell the other, and would wait for 30 s
        marked.kill()
        for process in started:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_vanishes_without_a_word_is_found_and_ends_its_workers_by_itself(
    nodes: Marked, network: Network, tmp_path: Path, gate: Path
) -> None:
    line = command("wait", "--engine", "ray", "--ray-address", f"{HERE}:{PORT}", "-m", "1", "--idle-timeout", "0")
    server = Server(tmp_path, within(network.here, *line, *BOOT_TIMEOUT, "--kill-after", "1"), {})
    try:
        server.wait_until_listening()
        with in_network(network.here):
            frames = Frames(server.address)
            status = server.connection()
            assert status.status()["engine"]["nodes"] == {HERE: [0], THERE: [1]}
        with frames, status:
            for number in (1, 2):
                frames.invoke(gate, number)
            eventually(lambda: [one["state"] for one in status.status()["workers"]] == ["busy", "busy"])
            lost = status.status()["workers"][1]["pid"]
            network.cut()
            since = time.monotonic()
            reply = frames.reply(2)
            took = time.monotonic() - since
            assert took < FOUND_WITHIN
            assert (reply.status, reply.gpu) == ("worker_lost", 1)
            assert f"node {THERE} is lost" in reply.error
            eventually(lambda: not exists(lost), what="its worker, which nobody can reach, has ended")
            gate.touch()
            assert frames.reply(1).status == "ok"
        assert [(event.gpu, event.node) for event in events_of(server, "lost")] == [(1, THERE)]
    finally:
        server.end()


def test_a_whole_run_has_clients_and_samples_on_both_machines_at_their_own_addresses(
    nodes: Marked, network: Network, project: Project
) -> None:
    line = within(network.here, "bash", "autoscale-cpu.sh")
    code, said = project.run_line(
        line,
        **PLAIN,
        ENGINE="ray",
        RAY_ADDRESS=f"{HERE}:{PORT}",
        MAX_MPL=4,
        INTERVAL=1,
        READY_TIMEOUT=300,
        LINK_PORT=7100,
    )

    assert code == 0, said
    assert "Only 2 of 8 GPUs are there: the experiment uses 2" in said
    for node in (HERE, THERE):
        assert f"  ok       node {node}: " in said or f"  note     node {node}: " in said
    rows = project.rows()
    assert {row.status for row in rows} == {"ok"}
    assert {row.copy for row in rows} == set(range(4))
    assert {(sample["gpu"], sample["node"]) for sample in project.utilization()} == {("0", HERE), ("1", THERE)}
    facts = description.read(next(project.results.glob("*-1.md")))
    assert sorted(part.partition(":")[0] for part in facts["Load nodes"].split("; ")) == [HERE, THERE]


@contextlib.contextmanager
def in_network(space: str) -> Iterator[None]:
    """Have the connections that are made meanwhile be made in another network."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open() as before, Path(f"/run/netns/{space}").open() as other:
        assert libc.setns(other.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(before.fileno(), 0x40000000) == 0
