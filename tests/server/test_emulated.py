"""The emulated kernel in a real server, with an emulator beside it: products are right, and a turn is handed on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import LIMIT, StartServer, eventually, failure, refusal

from kaas import ROOT, matrices
from kaas.matrices import Task, random_matrix, shared_matrix

KERNEL = ROOT / "cuda-matmul-emulated.py"
CALIBRATION = """
[parameters]
setup_alone = { value = 0.1, unit = "s" }
setup_clients = { value = [1], unit = "1" }
setup_seconds = { value = [0.1], unit = "s" }
kernel = { value = 4, unit = "s" }
"""


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[str]:
    """An emulator of one GPU, whose kernels take 4 s; its socket."""
    calibration, ready = tmp_path / "slow.toml", tmp_path / "ready"
    calibration.write_text(CALIBRATION)
    program = [sys.executable, str(ROOT / "simulate.py"), "-g", "1", "--calibration", str(calibration)]
    process = subprocess.Popen([*program, "emulate", "--ready", str(ready)])
    try:
        eventually(ready.exists)
        socket = Path(ready.read_text().strip())
        yield str(socket)
        process.terminate()
        assert process.wait(LIMIT) == 0
        assert not socket.parent.exists()
    finally:
        process.kill()
        process.wait()


def test_a_worker_that_is_killed_in_its_turn_loses_its_call_and_the_next_is_served(
    start_server: StartServer, emulator: str
) -> None:
    server = start_server(KERNEL, "--max-req-per-gpu", "2", KAAS_EMULATOR=emulator)
    matrix = random_matrix(20)
    with (
        shared_matrix(20, content=matrix) as a,
        shared_matrix(20) as first,
        shared_matrix(20) as second,
        server.frames() as frames,
    ):
        for number, c in enumerate((first, second), 1):
            frames.invoke(Task(a.name, c.name, 20).encode(), number)
            eventually(lambda number=number: len(server.workers("busy")) == number)  # type: ignore[misc]
        (worker,) = (one for one in server.workers("busy") if one["worker"] == 0)
        os.kill(worker["pid"], signal.SIGKILL)
        replies = frames.replies(1, 2)
        assert [replies[number].status for number in (1, 2)] == ["worker_lost", "ok"]
        assert matrices.is_square_of(second.matrix, matrix)


def test_a_task_that_is_none_holds_nobody_up(start_server: StartServer, emulator: str) -> None:
    server = start_server(KERNEL, "--max-req-per-gpu", "1", KAAS_EMULATOR=emulator)
    with server.connection() as kaas:
        assert kaas.invoke(b"none").status == kaas.invoke(b"none").status == "kernel_error"


def test_without_an_emulator_the_kernel_says_what_to_do(tmp_path: Path) -> None:
    assert "there is no emulator: ./autoscale-cpu.sh --rehearse-paper starts one" in refusal(KERNEL)
    assert "no emulator is at" in failure(1, KERNEL, KAAS_EMULATOR=str(tmp_path / "none"))


def test_a_gpu_that_is_not_emulated_is_refused_by_number(start_server: StartServer, emulator: str) -> None:
    server = start_server(KERNEL, "--num-gpus", "2", "--max-req-per-gpu", "1", KAAS_EMULATOR=emulator)
    with shared_matrix(2, content=np.ones((2, 2))) as a, shared_matrix(2) as c, server.frames() as frames:
        frames.invoke(Task(a.name, c.name, 2).encode(), 1)
        frames.invoke(Task(a.name, c.name, 2).encode(), 2)
        eventually(lambda: "no GPU 1 is emulated: it has 1 GPUs, see its --num-gpus" in server.stderr())
        assert frames.reply(1).status == "ok"
