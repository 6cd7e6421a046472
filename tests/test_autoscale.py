"""autoscale.sh against stand-ins of NVIDIA's programs: whatever happens, the GPUs are left as they were found."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import PLAIN, Project, StandIns, free_port
from stand_in_driver import Card, Driver, one_card
from support import eventually

SHORT: dict[str, Any] = PLAIN | {
    "AVAILABLE_GPUS": 2,
    "MAX_MPL_PER_GPU": 1,
    "MAX_MPL": 2,
    "INTERVAL": 1,
    "OUTER_REPEATS": 1,
}
LONG = SHORT | {"INTERVAL": 600}
AS_FOUND = ["Default", "Exclusive_Process"]


@pytest.fixture
def nvidia(gpu_project: Project, tmp_path: Path) -> Iterator[StandIns]:
    """Put stand-ins of two GPUs on the script's PATH, one of them in exclusive mode before anything runs."""
    stand_ins = StandIns(tmp_path / "nvidia", gpus=2)
    stand_ins.set("modes", 1, AS_FOUND[1])
    gpu_project.marked.environment.update(stand_ins.environment)
    yield stand_ins
    for folder in stand_ins.folders_left():  # of a test that failed
        gpu_project.marked.kill()
        shutil.rmtree(folder)


def nothing_is_left(project: Project, nvidia: StandIns) -> bool:
    return (
        nvidia.modes() == AS_FOUND
        and not (nvidia.machine / "kaas-gpus.json").exists()
        and not nvidia.folders_left()
        and not project.marked.left()
    )


def test_a_run_is_under_mps_leaves_the_gpus_as_they_were_and_draws_what_nvidia_smi_tells_of_each(
    gpu_project: Project, nvidia: StandIns
) -> None:
    code, said = gpu_project.draw_the_report("power").run(**SHORT)

    assert code == 0, said
    assert {row.status for row in gpu_project.rows()} == {"ok"}
    assert nothing_is_left(gpu_project, nvidia)
    assert nvidia.calls("nvidia-cuda-mps-control -d")
    assert nvidia.calls("nvidia-cuda-mps-control quit")
    exclusive = [call for call in nvidia.calls("nvidia-smi -i") if call.endswith("-c EXCLUSIVE_PROCESS")]
    assert len(exclusive) == 1, "set on the GPU that was found otherwise"
    description = next(gpu_project.results.glob("*.md")).read_text()
    assert "MPS: on: 2 of 2 workers are clients of MPS server 4711" in description
    samples = gpu_project.utilization()
    assert {(sample["gpu"], sample["uuid"], sample["bus_id"]) for sample in samples} == {
        ("0", "GPU-stand-in-0", "00000000:15:00.0"),
        ("1", "GPU-stand-in-1", "00000000:16:00.0"),
    }
    assert {(s["gpu"], s["utilization_pct"], s["power_w"]) for s in samples} == {
        ("0", "40.0", "100.5"),
        ("1", "41.0", "101.5"),
    }
    assert all(float(sample["energy_j"]) > 0 for sample in samples)
    assert (gpu_project.results / "autoscaling-power.png").stat().st_size > 10_000


def test_a_daemon_that_was_running_is_used_and_left_running(gpu_project: Project, nvidia: StandIns) -> None:
    nvidia.pipe.mkdir()
    assert nvidia.control("-d") == 0
    try:
        code, said = gpu_project.run(**SHORT)

        assert code == 0, said
        assert "was running and is left running" in said
        assert "2 of 2 workers" in said
        assert nvidia.control("get_server_list") == 0
        assert not nvidia.calls("nvidia-cuda-mps-control quit")
        assert nothing_is_left(gpu_project, nvidia)
    finally:
        nvidia.control("quit")


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (("refuse-mode", "1"), "GPU GPU-stand-in-1 cannot be set"),
        pytest.param(("no-daemon", ""), "did not start: Failed to start", marks=pytest.mark.slow),
    ],
    ids=["the second GPU cannot be set", "the daemon does not start"],
)
def test_a_start_that_fails_halfway_is_undone(
    gpu_project: Project, nvidia: StandIns, state: tuple[str, str], complaint: str
) -> None:
    nvidia.set("modes", 1, "Default")
    nvidia.set(*state)

    code, said = gpu_project.run(**SHORT)

    assert code == 1, said
    assert complaint in said
    assert nvidia.modes() == ["Default", "Default"]
    assert not gpu_project.marked.left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_ramp_puts_everything_back(
    gpu_project: Project, nvidia: StandIns, number: signal.Signals
) -> None:
    process = gpu_project.start(**LONG)
    eventually(gpu_project.has_rows)
    assert nvidia.modes() == ["Exclusive_Process", "Exclusive_Process"]

    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)

    said, _ = process.communicate()
    assert process.returncode == 128 + number, said
    assert nothing_is_left(gpu_project, nvidia)
    assert {row.status for row in gpu_project.rows()} == {"ok"}


def test_after_a_kill_of_the_script_everything_is_put_back_by_itself(gpu_project: Project, nvidia: StandIns) -> None:
    process = gpu_project.start(**LONG)
    eventually(gpu_project.has_rows)

    process.kill()

    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    eventually(lambda: nothing_is_left(gpu_project, nvidia))


@pytest.mark.parametrize("how", ["--restore", pytest.param("the next start", marks=pytest.mark.slow)])
def test_after_a_kill_of_script_and_guard_the_gpus_can_be_put_back(
    gpu_project: Project, nvidia: StandIns, how: str
) -> None:
    process = gpu_project.start(**LONG)
    eventually(gpu_project.has_rows)
    (guard,) = (line for line in gpu_project.marked.left() if "gpu_guard.py" in line)
    os.kill(int(guard.partition(":")[0]), signal.SIGKILL)
    process.kill()
    process.communicate()  # which returns when all that the script started has ended, but for the daemon
    assert nvidia.modes() == ["Exclusive_Process", "Exclusive_Process"]

    code, said = gpu_project.run("autoscale.sh", "--restore") if how == "--restore" else gpu_project.run(**SHORT)

    assert code == 0, said
    assert "as an earlier run, which was killed, had found them" in said
    assert nothing_is_left(gpu_project, nvidia)


def test_with_nothing_to_put_back_restore_says_so(gpu_project: Project, nvidia: StandIns) -> None:
    assert gpu_project.run("autoscale.sh", "--restore") == (0, "Nothing to put back\n")


@pytest.mark.parametrize(
    "text", ["", "\x00garbage", '{"modes": {"GPU-stand-in-0": "DEFAULT"}, "daemon": "/tmp/../etc"}']
)
def test_a_damaged_record_is_not_acted_on_and_not_removed(gpu_project: Project, nvidia: StandIns, text: str) -> None:
    record = nvidia.machine / "kaas-gpus.json"
    record.write_text(text)

    code, said = gpu_project.run("autoscale.sh", "--restore")

    assert code == 1
    assert "is damaged" in said
    assert record.read_text() == text
    record.unlink()


def test_a_gpu_that_somebody_else_computes_on_is_left_alone(gpu_project: Project, nvidia: StandIns) -> None:
    nvidia.set("apps", "GPU-stand-in-1, 4242, python")

    code, said = gpu_project.run(**SHORT)

    assert code == 2
    assert "in use by others: GPU-stand-in-1, 4242, python" in said
    assert nothing_is_left(gpu_project, nvidia)


@pytest.mark.slow
def test_an_nvidia_smi_that_hangs_is_started_again_and_the_gap_is_noted(gpu_project: Project, nvidia: StandIns) -> None:
    nvidia.set("hang", "once")

    code, said = gpu_project.run(MPS="off", **SHORT | {"INTERVAL": 4})

    assert code == 0, said
    assert gpu_project.utilization()
    assert "no samples from" in next(gpu_project.results.glob("*.md")).read_text()


def test_what_cannot_be_put_back_is_said_and_remembered(gpu_project: Project, nvidia: StandIns) -> None:
    process = gpu_project.start(**LONG)
    eventually(gpu_project.has_rows)
    nvidia.set("refuse-mode", "0")
    process.terminate()
    said, _ = process.communicate()
    assert "--restore tries again" in said
    nvidia.set("refuse-mode", "")

    assert gpu_project.run("autoscale.sh", "--restore")[0] == 0
    assert nothing_is_left(gpu_project, nvidia)


def test_without_mps_no_setting_is_touched_and_the_description_says_so(gpu_project: Project, nvidia: StandIns) -> None:
    code, said = gpu_project.run(MPS="off", **SHORT)

    assert code == 0, said
    assert not [call for call in nvidia.calls("nvidia-smi") if " -c " in call]
    assert not nvidia.calls("nvidia-cuda-mps-control")
    assert "MPS: off: no setting of any GPU was changed" in next(gpu_project.results.glob("*.md")).read_text()


def test_an_nvidia_smi_that_dies_is_started_again_and_the_gap_is_noted(gpu_project: Project, nvidia: StandIns) -> None:
    nvidia.set("die-after", "3")

    code, said = gpu_project.run(MPS="off", **SHORT)

    assert code == 0, said
    assert len(gpu_project.utilization()) > 2 * 3
    description = next(gpu_project.results.glob("*.md")).read_text()
    assert "nvidia-smi ended with exit code 9" in description
    assert "no samples from" in description


@one_card
def test_the_papers_kernel_runs_to_its_figures_under_mps_over_a_stand_in_of_the_driver(
    gpu_project: Project, nvidia: StandIns, libcuda: Path, compiled_kernels: Path, card: Card
) -> None:
    driver = Driver(libcuda, nvidia.state, compiled_kernels, card.environment, card.capability)
    gpu_project.draw_the_report().check_numba()
    gpu_project.marked.environment.update(driver.variables)
    gpu_project.marked.environment |= nvidia.environment | {"KAAS_PYTHON": str(card.environment.python)}

    code, said = gpu_project.run(
        **SHORT
        | {
            "FN": "cuda-matmul-fn",
            "CLIENT": "cuda-matmul-client",
            "N": 100,
            "MAX_MPL_PER_GPU": 2,
            "MAX_MPL": 4,
            "INTERVAL": 2,
        }
    )

    assert code == 0, said
    rows = gpu_project.rows()
    assert {row.status for row in rows} == {"ok"}
    assert {row.gpu for row in rows} == {0, 1}
    ready = [event["detail"] for event in gpu_project.events() if event["event"] == "ready"]
    assert len(ready) == 4
    assert all(phase in ready[0] for phase in ("fork", "import", "context", "compile", "first_launch"))
    assert "MPS: on: 4 of 4 workers are clients of MPS server" in next(gpu_project.results.glob("*.md")).read_text()
    assert (gpu_project.results / "autoscaling-combined.png").stat().st_size > 10_000
    assert nothing_is_left(gpu_project, nvidia)
    assert driver.bytes_taken() == {}


def test_the_check_says_what_was_found_and_changes_nothing(gpu_project: Project, nvidia: StandIns) -> None:
    code, said = gpu_project.check_numba().run("autoscale.sh", "--dry-run", **SHORT | {"AVAILABLE_GPUS": 8})

    assert code == 0, said
    assert "gpu-monitor.py results-autoscaling/autoscaling-plain-x-1-gpu-monitoring.csv --source nvidia-smi" in said
    assert "only 2 are there: fewer are used" in said
    assert "numba.cuda is ready to compile" in said
    assert "(a stand-in)" not in said
    assert "PROBLEM" not in said
    assert nvidia.modes() == AS_FOUND
    assert not [call for call in nvidia.calls() if " -c " in call or " -d" in call.replace("-d COMPUTE", "")]
    assert not gpu_project.results.exists()


def test_fewer_gpus_than_asked_for_and_only_those_that_a_batch_system_gives_are_used(
    gpu_project: Project, nvidia: StandIns
) -> None:
    code, said = gpu_project.run(**SHORT | {"CUDA_VISIBLE_DEVICES": 1, "MAX_MPL": 1})

    assert code == 0, said
    assert "Only 1 of 2 GPUs are there" in said
    assert {sample["uuid"] for sample in gpu_project.utilization()} == {"GPU-stand-in-1"}
    assert not [call for call in nvidia.calls("nvidia-smi -i GPU-stand-in-0") if " -c " in call]


def test_no_gpu_is_used_where_a_batch_system_gives_none(gpu_project: Project, nvidia: StandIns) -> None:
    code, said = gpu_project.run(**SHORT | {"CUDA_VISIBLE_DEVICES": ""})

    assert code == 2, said
    assert "CUDA_VISIBLE_DEVICES is '' and gives no GPU" in said
    assert not gpu_project.results.exists()
    assert nothing_is_left(gpu_project, nvidia)


def test_the_check_names_every_problem_in_one_pass(gpu_project: Project, nvidia: StandIns) -> None:
    code, said = gpu_project.run(
        "autoscale.sh",
        "--check",
        **SHORT | {"MAX_MPL_PER_GPU": 49, "CLIENT": "cuda-matmul-client", "N": 200_000, "PORT": 99_999, "MAX_MPL": 48},
    )

    assert code == 2
    for complaint in ("MPS admits 48", "in shared memory", "GPU 0: 49 workers need", "port 99999"):
        assert complaint in said
    assert "Traceback" not in said


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has NVIDIA tools")
@pytest.mark.parametrize("arguments", [(), ("--check",)], ids=["a run", "--check"])
def test_without_nvidia_tools_it_is_one_screen_of_problems(gpu_project: Project, arguments: tuple[str, ...]) -> None:
    before = sorted(gpu_project.folder.iterdir())

    code, said = gpu_project.run("autoscale.sh", *arguments)

    assert code == 2
    assert "no NVIDIA GPU" in said
    assert "nvidia-cuda-mps-control is not on PATH" in said
    assert len(said.splitlines()) < 24
    assert sorted(gpu_project.folder.iterdir()) == before


def test_two_runs_do_not_share_the_gpus(gpu_project: Project, nvidia: StandIns) -> None:
    process = gpu_project.start(**LONG)
    eventually(gpu_project.has_rows)

    code, said = gpu_project.run(**SHORT | {"PORT": free_port(), "EXPERIMENT": "other"})

    assert code == 1, said
    assert "another run is using the GPUs" in said
    process.terminate()
    process.communicate()
    assert nothing_is_left(gpu_project, nvidia)
