"""For tests over Ray: whether it is here, what a server over simulated nodes runs, and a Ray that is no server's."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from support import LIMIT, Marked, Server, read_until

from kaas import ROOT
from kaas.events import Event

needs_ray = pytest.mark.ray
BOOT_TIMEOUT = ("--boot-timeout", str(LIMIT))

CLUSTER = """
import sys
sys.path.insert(0, sys.argv[4])  # and not in the environment, which the nodes have, too
from kaas.cluster.local_ray import LocalRay
folder, name = sys.argv[1], "simulated-{}"
ray = LocalRay(folder)
ray.start(int(sys.argv[2]), [str(gpu) for gpu in range(int(sys.argv[3]))])
cluster = ray._cluster
nodes = [cluster.head_node, *cluster.worker_nodes]
print(cluster.address, flush=True)
for line in sys.stdin:
    what, number = line.split()
    if what == "add":
        cluster.add_node(node_name=name.format(number), num_cpus=0, num_gpus=1, object_store_memory=80 * 1024 * 1024,
                         node_ip_address="127.0.0.1", include_dashboard=False,
                         runtime_env_dir_name="runtime_resources_" + number)
    print("done", flush=True)
ray.stop()
"""


def raylets(server: Server) -> dict[str, psutil.Process]:
    """Find the processes that are the nodes of a server's Ray, by the nodes' names."""
    found = {}
    for line in server.marked.left():
        process = psutil.Process(int(line.partition(":")[0]))
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet":
                (name,) = (word for word in process.cmdline() if word.startswith("--node-name="))
                found[name.partition("=")[2]] = process
    return found


def processes(server: Server, word: str) -> list[psutil.Process]:
    """Find the processes of a server, and of its Ray, whose command line has that word in it."""
    lines = [line for line in server.marked.left() if word in line.partition(":")[2]]
    return [psutil.Process(int(line.partition(":")[0])) for line in lines]


def events_of(server: Server, kind: str) -> list[Event]:
    """Give the events of a kind, in order."""
    return [event for event in server.events() if event.event == kind]


class Cluster:
    """A Ray of some simulated nodes, which is no server's.

    Args:
        folder: of all its files; its name is short, since its sockets' names must be.
    """

    def __init__(self, folder: Path, nodes: int, gpus: int, marked: Marked) -> None:
        self.marked = marked
        (folder / "ray").mkdir(parents=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(folder), str(nodes), str(gpus), str(ROOT)],
            env=marked.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = ""

    def wait_until_there(self) -> None:
        """Wait until it says where it is."""
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "it has started"

    def add(self, number: int) -> None:
        """Have a node join: simulated-NUMBER, with one GPU."""
        assert self.process.stdin is not None
        print("add", number, file=self.process.stdin, flush=True)
        read_until(self.process, "done\n")

    def raylet(self, name: str) -> psutil.Process:
        """Find the process that is a node, which has all others there as its children."""
        (found,) = (
            child
            for child in psutil.Process(self.process.pid).children()
            if child.name() == "raylet" and f"--node-name={name}" in child.cmdline()
        )
        return found

    def has(self, word: str) -> bool:
        """Tell whether a process of a node has that word in its command line."""
        return any(word in line for line in self.marked.left())

    def end(self) -> None:
        """End it in order."""
        self.process.communicate(timeout=LIMIT)


class StartCluster(Protocol):
    """The fixture `start_cluster`: start a Ray that is no server's, with so many nodes, and GPUs in all."""

    def __call__(self, nodes: int, gpus: int, **environment: str) -> Cluster: ...
