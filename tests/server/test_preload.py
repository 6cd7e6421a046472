"""What the fork server imports for all workers, and what each of them must have for itself all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, StartServer, eventually

from kaas import ROOT, SINGLE_THREADED, matrices

WORKERS = 4


@pytest.mark.parametrize(
    "line",
    [
        "import numpy.random",  # before the fork
        "import numpy as np; np.random",  # after it: NumPy imports that when it is asked for
        "import numba",  # whose initialisation imports it, too
    ],
)
def test_no_two_workers_draw_the_same_random_numbers(start_server: StartServer, tmp_path: Path, line: str) -> None:
    kernel = tmp_path / "drawing.py"
    kernel.write_text(
        f"{line}\nimport numpy as np\ndef call(payload):\n    return np.random.random(2).tobytes()\n",
        encoding="utf-8",
    )
    server = start_server(kernel, "--num-gpus", "1", "--max-req-per-gpu", str(WORKERS))
    ids = range(1, WORKERS + 1)
    with server.frames() as frames:
        for number in ids:  # all placed before the first worker is ready, so each has one
            frames.invoke(b"", number)
        replies = frames.replies(*ids).values()
    assert {reply.worker for reply in replies} == set(range(WORKERS))
    assert len({reply.payload for reply in replies}) == WORKERS


def test_what_a_matrix_kernel_needs_is_there_before_the_fork_and_one_thread() -> None:
    code = """
import sys
import psutil
from kaas import ROOT, kernels
from kaas.server import worker
path = ROOT / "cuda-matmul-cpu.py"
imports = kernels.imports(path)
modules = [name for name in imports if name.partition(".")[0] in worker.SAFE_TO_PRELOAD]
worker.preload({"kernel": str(path), "modules": modules})
before = set(sys.modules)
kernel = kernels.load(path, "call")
kernel.multiply(kernel.matrices.random_matrix(3), kernel.matrices.random_matrix(3))
print(psutil.Process().num_threads(), sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | SINGLE_THREADED | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1 ['cuda-matmul-cpu']\n", "")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_an_idle_worker_keeps_nothing_of_what_it_has_served(start_server: StartServer) -> None:
    server = start_server(ROOT / "cuda-matmul-blas.py", "-m", "1")
    with (
        server.connection() as kaas,
        matrices.shared_matrix(100, content=matrices.random_matrix(100)) as a,
        matrices.shared_matrix(100) as c,
    ):
        assert kaas.invoke(matrices.Task(a.name, c.name, 100).encode()).status == "ok"
        (worker,) = kaas.status()["workers"]
        # It detaches once its reply is on its way.
        eventually(lambda: "kaas_" not in Path(f"/proc/{worker['pid']}/maps").read_text())
