"""The scripts with ENGINE=ray: what is refused, and a whole run over simulated nodes."""

import pytest
from project import Project
from ray_nodes import needs_ray

from kaas import description


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


def test_on_gpus_of_several_machines_the_script_is_not_there_yet(gpu_project: Project) -> None:
    code, said = gpu_project.run(ENGINE="ray")

    assert code == 2, said
    assert "ENGINE=ray is for ./autoscale-cpu.sh" in said
    assert not list(gpu_project.folder.glob("results-*"))


@pytest.mark.slow
@needs_ray
def test_the_experiment_over_two_simulated_nodes_uses_the_gpus_of_both(project: Project) -> None:
    code, said = project.run(
        ENGINE="ray", RAY_NODES=2, INTERVAL=1, MAX_MPL=6, N=200, AVAILABLE_GPUS=4, READY_TIMEOUT=300, PORT=0
    )

    assert code == 0, said
    assert {row.status for row in project.rows()} == {"ok"}
    booted = [(event["gpu"], event["node"]) for event in project.events() if event["event"] == "booted"]
    assert booted == [("0", "simulated-1"), ("1", "simulated-2")]
    facts = description.read(next(project.results.glob("*-1.md")))
    assert facts["Server engine"] == "ray"
    assert facts["Server nodes"] == "simulated-1: GPUs 0, 2; simulated-2: GPUs 1, 3"
    assert {sample["gpu"] for sample in project.utilization()} >= {"0", "1", "2", "3"}
