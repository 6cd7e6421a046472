"""The scripts with ENGINE=ray: what is refused, and a whole run over simulated nodes."""

import contextlib
import os
import platform
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from project import PLAIN, Project, StandIns
from ray_nodes import StartCluster, needs_ray
from support import eventually

from kaas import description

SHORT: dict[str, Any] = PLAIN | {
    "AVAILABLE_GPUS": 2,
    "MAX_MPL_PER_GPU": 1,
    "MAX_MPL": 2,
    "INTERVAL": 1,
    "OUTER_REPEATS": 1,
    "READY_TIMEOUT": 300,
}


class Had:
    """What a run has, and only that, as it was seen: Ray's own processes, and what its segments' names begin with."""

    def __init__(self) -> None:
        self.ray: dict[psutil.Process, str] = {}  # by its name
        self.runs: set[str] = set()

    def look(self, project: Project) -> None:
        for line in project.marked.left():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(line.partition(":")[0]))
                if (name := process.name()) in {"raylet", "gcs_server"}:
                    self.ray[process] = name
                self.runs.update(filter(None, [process.environ().get("KAAS_RUN")]))


@needs_ray
def test_more_nodes_than_gpus_are_refused_in_the_words_of_the_settings(project: Project) -> None:
    code, said = project.run(ENGINE="ray", RAY_NODES=3, AVAILABLE_GPUS=2)

    assert code == 2, said
    assert said == "autoscale-cpu.sh: RAY_NODES 3 are more than the GPUs (AVAILABLE_GPUS 2)\n"


def test_an_address_of_some_ray_in_the_environment_does_nothing_to_a_local_run(project: Project) -> None:
    code, said = project.run(
        RAY_ADDRESS="10.0.0.1:6379", FN="plain", CLIENT="plain-client", N="x", MAX_MPL=1, INTERVAL=0.5
    )

    assert code == 0, said
    assert {event["node"] for event in project.events()} == {""}


@pytest.mark.slow
@needs_ray
def test_the_experiment_over_two_simulated_nodes_uses_the_gpus_of_both(project: Project) -> None:
    process = project.start(
        ENGINE="ray", RAY_NODES=2, INTERVAL=1, MAX_MPL=6, N=200, AVAILABLE_GPUS=4, READY_TIMEOUT=300, PORT=0
    )
    had, said = Had(), None
    while said is None:
        had.look(project)
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(timeout=0.5)

    assert process.returncode == 0, said
    assert Counter(had.ray.values()) == {"raylet": 2, "gcs_server": 1}
    assert not [process for process in had.ray if process.is_running()], "no node is left, and no head"
    assert len(had.runs) >= 2, "each node's clients have segments of their own"
    assert not [path for run in had.runs for path in Path("/dev/shm").glob(f"kaas_{run}*")]
    assert {row.status for row in project.rows()} == {"ok"}
    booted = [(event["gpu"], event["node"]) for event in project.events() if event["event"] == "booted"]
    assert booted == [("0", "simulated-1"), ("1", "simulated-2")]
    facts = description.read(next(project.results.glob("*-1.md")))
    assert facts["Server engine"] == "ray"
    assert facts["Server nodes"] == "simulated-1: GPUs 0, 2; simulated-2: GPUs 1, 3"
    assert {(sample["gpu"], sample["node"]) for sample in project.utilization()} == {
        (str(gpu), f"simulated-{1 + gpu % 2}") for gpu in range(4)
    }
    assert len({row.copy for row in project.rows()}) == 6
    for node in ("simulated-1", "simulated-2"):
        assert f"{node}: its clock is known to " in facts["Load nodes"]
        assert f"node {node}: its clock is known to " in facts["Monitor report"]


@pytest.mark.slow
@needs_ray
def test_on_gpus_a_ray_of_the_scripts_own_shares_them_among_its_nodes_under_the_scripts_guard(
    gpu_project: Project, tmp_path: Path
) -> None:
    nvidia = StandIns(tmp_path / "nvidia", gpus=2)
    gpu_project.marked.environment.update(nvidia.environment)

    code, said = gpu_project.run(ENGINE="ray", RAY_NODES=2, **SHORT)

    assert code == 0, said
    assert {row.status for row in gpu_project.rows()} == {"ok"}
    samples = gpu_project.utilization()
    assert {(sample["gpu"], sample["uuid"], sample["node"]) for sample in samples} == {
        ("0", "GPU-stand-in-0", "simulated-1"),
        ("1", "GPU-stand-in-1", "simulated-2"),
    }
    assert (
        "MPS: on: 2 of 2 workers are clients of MPS server 4711" in next(gpu_project.results.glob("*.md")).read_text()
    )
    assert nvidia.modes() == ["Default", "Default"]
    assert not nvidia.folders_left()


@pytest.mark.slow
@needs_ray
def test_of_a_ray_that_runs_each_node_is_asked_and_one_with_a_problem_is_named(
    gpu_project: Project, start_cluster: StartCluster, tmp_path: Path
) -> None:
    nvidia = StandIns(tmp_path / "nvidia", gpus=2)
    cluster = start_cluster(2, 2, **nvidia.environment)
    ray = {"ENGINE": "ray", "RAY_ADDRESS": cluster.address, "MPS": "off"}

    code, said = gpu_project.run("autoscale.sh", "--check", **SHORT | ray | {"AVAILABLE_GPUS": 8})

    assert code == 0, said
    lines = [line for line in said.splitlines() if " node simulated-" in line]
    assert [line.split(":")[0].split() for line in lines] == [["ok", "node", f"simulated-{n}"] for n in (1, 2)]
    for line in lines:
        assert "1 GPUs, 1 to be used (Stand-in V100), driver 570.00" in line
        assert "the clients' matrices in shared memory" not in line, "these clients have none"
        assert "results: needs" in line
        assert f"Python {platform.python_version()}" in line
    assert "Only 2 of 8 GPUs are there: the experiment uses 2" in said

    nvidia.set("modes", 1, "Prohibited")
    code, said = gpu_project.run("autoscale.sh", "--check", **SHORT | ray)

    assert code == 2, said
    (line,) = (line for line in said.splitlines() if "PROBLEM" in line)
    assert line.startswith("  PROBLEM  node simulated-2: GPU 1: its compute mode PROHIBITED lets nobody compute")
    assert not list(gpu_project.folder.glob("results-*"))


@pytest.mark.slow
@needs_ray
def test_over_a_ray_that_runs_mps_is_held_by_the_nodes_agent_and_all_is_put_back(
    gpu_project: Project, start_cluster: StartCluster, tmp_path: Path
) -> None:
    nvidia = StandIns(tmp_path / "nvidia", gpus=2)
    nvidia.set("modes", 1, "Exclusive_Process")
    cluster = start_cluster(1, 2, **nvidia.environment)
    ray = {"ENGINE": "ray", "RAY_ADDRESS": cluster.address}

    code, said = gpu_project.run(**SHORT | ray | {"INTERVAL": 4})  # in which the second worker is ready, too

    assert code == 0, said
    assert {row.status for row in gpu_project.rows()} == {"ok"}
    description = next(gpu_project.results.glob("*.md")).read_text()
    assert "MPS: on: node 127.0.0.1: 2 of 2 workers are clients of MPS server 4711" in description
    assert nvidia.calls("nvidia-cuda-mps-control quit")
    assert nvidia.modes() == ["Default", "Exclusive_Process"]
    assert not nvidia.folders_left()

    process = gpu_project.start(**SHORT | ray | {"INTERVAL": 600, "EXPERIMENT": "killed"})
    rows = gpu_project.folder / "results-killed"
    eventually(lambda: any(path.stat().st_size > 1000 for path in rows.glob("*-1.csv")))
    assert nvidia.modes() == ["Exclusive_Process", "Exclusive_Process"]
    (server,) = (line for line in gpu_project.marked.left() if "gpu-server-scaling.py" in line)
    os.kill(int(server.partition(":")[0]), signal.SIGKILL)
    process.kill()
    process.communicate()
    eventually(lambda: nvidia.modes() == ["Default", "Exclusive_Process"], what="the GPUs are put back")
    eventually(lambda: not nvidia.folders_left())

    code, said = gpu_project.run("autoscale.sh", "--restore", **SHORT | ray)
    assert (code, said) == (0, "node 127.0.0.1: Nothing to put back\n")
