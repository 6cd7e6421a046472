"""The preflight by itself, against stand-ins of NVIDIA's programs: which GPUs it counts, and what it finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import StandIns, free_port
from support import LIMIT, run_here

from kaas import ROOT

PREFLIGHT = ROOT / "scripts" / "preflight.py"
SETTINGS: dict[str, object] = {
    "AVAILABLE_GPUS": 2,
    "MAX_MPL_PER_GPU": 4,
    "MIN_MPL": 1,
    "MAX_MPL": 2,
    "STEP_SIZE": 1,
    "INTERVAL": 1,
    "OUTER_REPEATS": 1,
    "N": 100,
    "MPS": "on",
    "SUDO": "env",
    "CLIENT": "cuda-matmul-client",
    "KAAS_PYTHON": "no-python-yet",
}


class Preflight:
    """Runs the preflight for a machine with two GPUs."""

    def __init__(self, nvidia: StandIns) -> None:
        self.nvidia = nvidia
        self.settings: dict[str, object] = SETTINGS | {"PORT": free_port()}

    def run(self, *arguments: str, **settings: object) -> "subprocess.CompletedProcess[str]":
        given = {name: str(value) for name, value in (self.settings | settings).items()}
        clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment = clean | self.nvidia.environment | given
        return run_here(PREFLIGHT, str(ROOT / "autoscale.sh"), *arguments, environment=environment)

    def problems(self, **settings: object) -> str:
        return self._lines("PROBLEM", **settings)

    def notes(self, **settings: object) -> str:
        return self._lines("note", **settings)

    def _lines(self, kind: str, **settings: object) -> str:
        said = self.run(**settings).stdout.splitlines()
        return "\n".join(line for line in said if line.split()[0] == kind)


@pytest.fixture
def preflight(tmp_path: Path) -> Preflight:
    return Preflight(StandIns(tmp_path / "nvidia", gpus=2))


def test_a_machine_with_what_is_needed_has_no_problem(preflight: Preflight) -> None:
    assert preflight.problems() == ""


@pytest.mark.parametrize(
    ("environment", "listed"),
    [
        ({}, "GPU-stand-in-0,GPU-stand-in-1"),
        ({"AVAILABLE_GPUS": 1}, "GPU-stand-in-0"),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, "GPU-stand-in-1,GPU-stand-in-0"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-stand-in-1"}, "GPU-stand-in-1"),
        ({"CUDA_VISIBLE_DEVICES": "1,9,0"}, "GPU-stand-in-1"),
    ],
)
def test_the_gpus_to_be_used_are_listed_apart_from_the_report(
    preflight: Preflight, environment: dict[str, object], listed: str
) -> None:
    done = preflight.run("--list-gpus", **environment)

    assert (done.returncode, done.stdout) == (0, f"{listed}\n")
    assert done.stderr.startswith("Preflight")


def test_an_empty_list_of_gpus_means_none(preflight: Preflight) -> None:
    assert "CUDA_VISIBLE_DEVICES is '' and gives no GPU" in preflight.problems(CUDA_VISIBLE_DEVICES="")


def test_a_list_that_ends_early_is_said(preflight: Preflight) -> None:
    assert "CUDA_VISIBLE_DEVICES=1,9,0: 9 is no GPU here and ends it" in preflight.notes(CUDA_VISIBLE_DEVICES="1,9,0")


def test_a_warning_of_nvidia_smi_does_not_hide_the_gpus(preflight: Preflight) -> None:
    preflight.nvidia.set("warns", "WARNING: infoROM is corrupted at gpu 0000:16:00.0")

    assert preflight.problems() == ""


def test_all_of_all_gpus_is_asked_at_once(preflight: Preflight) -> None:
    preflight.run()

    asked = [call.split()[1].partition("=")[0] for call in preflight.nvidia.calls("nvidia-smi")]
    assert asked == ["--query-gpu", "--query-compute-apps"]


def test_who_computes_on_another_gpu_does_not_count(preflight: Preflight) -> None:
    preflight.nvidia.set("apps", "GPU-stand-in-1, 4242, python")

    assert preflight.problems(AVAILABLE_GPUS=1) == ""
    assert "in use by others: GPU-stand-in-1, 4242, python" in preflight.problems()


@pytest.mark.parametrize(
    ("mode", "settings", "complaint"),
    [
        ("Exclusive_Process", {}, "GPU 1: in its exclusive compute mode it takes one worker, not 4"),
        ("Exclusive_Process", {"MAX_MPL_PER_GPU": 1}, ""),
        ("Exclusive_Process", {"AVAILABLE_GPUS": 1}, ""),
        ("Prohibited", {"MAX_MPL_PER_GPU": 1}, "GPU 1: its compute mode PROHIBITED"),
    ],
)
def test_without_mps_the_compute_mode_must_let_every_worker_in(
    preflight: Preflight, mode: str, settings: dict[str, object], complaint: str
) -> None:
    preflight.nvidia.set("modes", 1, mode)

    found = preflight.problems(MPS="off", **settings)

    assert complaint in found
    assert bool(complaint) == bool(found)


def test_without_mps_of_ours_a_daemon_of_the_site_lets_workers_share_an_exclusive_gpu(preflight: Preflight) -> None:
    preflight.nvidia.set("modes", 1, "Exclusive_Process")
    preflight.nvidia.pipe.mkdir()
    assert preflight.nvidia.control("-d") == 0
    try:
        done = preflight.run(MPS="off")

        assert done.returncode == 0
        assert f"an MPS control daemon runs at {preflight.nvidia.pipe}" in done.stdout
    finally:
        preflight.nvidia.control("quit")


@pytest.mark.parametrize(
    ("state", "most"),
    [
        ({}, 48),
        ({"cuda": "CUDA Version : 13.1"}, 60),
        ({"cuda": "CUDA UMD Version : 13.3"}, 60),
        ({"cuda": "CUDA UMD Version : 13.0"}, 48),
        ({"capability": "6.1"}, 16),
    ],
)
def test_mps_admits_as_many_clients_as_card_and_driver_let_it(
    preflight: Preflight, state: dict[str, str], most: int
) -> None:
    for name, text in state.items():
        preflight.nvidia.set(name, text)

    assert "MPS admits" not in preflight.problems(MAX_MPL_PER_GPU=most)
    assert f"MPS admits {most}" in preflight.problems(MAX_MPL_PER_GPU=most + 1)


def test_parts_of_a_gpu_will_not_do(preflight: Preflight) -> None:
    preflight.nvidia.set("mig", 1)

    assert "MIG is on (GPU 1), but the experiment needs whole GPUs" in preflight.problems()
    assert "MIG is on (MIG-0f)" in preflight.problems(CUDA_VISIBLE_DEVICES="MIG-0f")
    assert preflight.problems(AVAILABLE_GPUS=1) == ""


@pytest.mark.parametrize(
    ("client", "counts"),
    [("cuda-matmul-client", True), ("./cuda-matmul-client.py", True), ("/elsewhere/reverse-client.py", False)],
)
def test_n_is_a_matrix_size_only_for_the_client_that_takes_it_for_one(
    preflight: Preflight, client: str, counts: bool
) -> None:
    assert ("lower N" in preflight.problems(CLIENT=client, N=2_000_000)) == counts
    assert ("N is 'hello'" in preflight.problems(CLIENT=client, N="hello")) == counts


def test_a_state_folder_that_will_not_do_is_a_problem_with_mps(preflight: Preflight, tmp_path: Path) -> None:
    missing = tmp_path / "missing"

    assert f"{missing} is no folder" in preflight.problems(KAAS_GPU_STATE=missing)
    assert preflight.problems(KAAS_GPU_STATE=missing, MPS="off") == ""


def test_it_needs_no_library(preflight: Preflight) -> None:
    # -S: without site-packages.
    done = subprocess.run(
        [sys.executable, "-S", str(PREFLIGHT), str(ROOT / "autoscale.sh")],
        env=os.environ
        | preflight.nvidia.environment
        | {name: str(value) for name, value in preflight.settings.items()},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_with_virtual_gpus_it_looks_at_time_disk_shared_memory_cores_and_port(preflight: Preflight) -> None:
    sizes: dict[str, object] = {"N": 1000, "MAX_MPL": 5, "INTERVAL": 10, "OUTER_REPEATS": 20}
    done = preflight.run("--virtual", **sizes | {"REPEAT_UNTIL": "p50 5%", "MPS": "", "KAAS_PYTHON": sys.executable})

    assert done.returncode == 0
    assert not preflight.nvidia.calls()
    for said in (
        "at most 5 workers busy at once",
        "results: needs 256 MiB",
        "the clients' matrix file: needs 8 MiB",
        "the clients' matrices in shared memory: needs 77 MiB",
        f"port {preflight.settings['PORT']} is free",
        "duration: at most 20 x 5 steps x 10 s, about 18 min",
    ):
        assert said in done.stdout
    assert "PROBLEM  the clients' matrices in shared memory" in preflight.run("--virtual", N=2_000_000).stdout


def test_of_another_shape_the_duration_and_the_most_clients_are_told(preflight: Preflight, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("0,3\n20,7\n50,0\n")
    said = preflight.run("--virtual", SHAPE=f"trace:{trace}", OUTER_REPEATS=2).stdout
    assert f"duration: 2 x 50 s of trace:{trace} with at most 7 clients, about 2 min" in said
    assert "at most 7 workers busy at once" in said
    said = preflight.run("--virtual", SHAPE="updown", MAX_MPL=4, INTERVAL=10).stdout
    assert "duration: 1 x 70 s of updown with at most 4 clients, about 86 s" in said
    assert "SHAPE is 'trace:': give steps, updown" in preflight.problems(SHAPE="trace:")


def test_results_that_cannot_be_written_are_a_problem(preflight: Preflight, tmp_path: Path) -> None:
    assert preflight.problems(RESULTS=tmp_path / "not" / "there yet") == ""
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} cannot be written: set RESULTS" in preflight.problems(RESULTS=tmp_path / "file")


def test_a_variable_that_is_nearly_a_setting_is_told(preflight: Preflight) -> None:
    near = {
        "INTERVALL": "INTERVAL",
        "INTERVAl": "INTERVAL",
        "INTERAVL": "INTERVAL",
        "CLIENTS": "CLIENT",
        "MAXMPL": "MAX_MPL",
        "RESULT": "RESULTS",
        "OUTER_REPEAT": "OUTER_REPEATS",
    }
    others = ("PYTHON3", "SUDO_UID", "PORTS", "KAAS_ADDRESS", "TERM", "DESCRIPTION_OF_IT", "X")

    said = preflight.run("--virtual", **dict.fromkeys((*near, *others), "1")).stdout

    told = [line.split()[1:] for line in said.splitlines() if "is no setting" in line]
    assert {name: words[3] for name, *words in told} == near


@pytest.mark.parametrize(
    ("how", "nodes", "shares"),
    [("auto", 0, True), ("shm", 0, True), ("inline", 0, False), ("auto", 2, False), ("shm", 2, True)],
)
def test_shared_memory_is_asked_for_where_matrices_are_in_it(
    preflight: Preflight, how: str, nodes: int, shares: bool
) -> None:
    where = ("--node", str(nodes)) if nodes else ()
    said = preflight.run("--virtual", *where, KAAS_TRANSPORT=how, N=2_000_000).stdout
    assert ("matrices in shared memory" in said) == shares
