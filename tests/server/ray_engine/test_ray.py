"""A server over two simulated nodes of a real Ray; and, where Ray is not installed, that nothing needs it."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from ray_nodes import BOOT_TIMEOUT, events_of, needs_ray
from support import LIMIT, Marked, Server, StartServer, command, eventually, exists, refusal

from kaas import ROOT, inline, transport
from kaas.matrices import is_square_of, random_matrix

NODES = {"simulated-1": [0, 2], "simulated-2": [1, 3]}
GPUS = ("--num-gpus", "4", "-m", "2")


def sequence(server: Server, gates: Path) -> list[tuple[str, int | None, int | None, bool]]:
    """One sequence of arrivals and completions, each when what came before it has had its effect; what came of each."""
    gates.mkdir()
    with server.frames() as frames:

        def arrive(number: int) -> None:
            before = server.status()["counters"]["accepted"]
            frames.invoke(gates / str(number), number)
            eventually(lambda: server.status()["counters"]["accepted"] == before + 1)
            eventually(lambda: not server.workers("booting"))

        def complete(*numbers: int) -> None:
            for number in numbers:
                (gates / str(number)).touch()
                frames.reply(number)

        for number in range(1, 10):  # 8 places, one refused
            arrive(number)
        complete(3, 6, 2)
        for number in (10, 11):
            arrive(number)
        complete(1, 4, 5, 7)
        for number in (12, 13, 14):
            arrive(number)
        complete(8, 10, 11, 12, 13, 14)
        replies = frames.replies(*range(1, 15))
    return [(reply.status, reply.gpu, reply.worker, reply.cold_start) for _, reply in sorted(replies.items())]


@needs_ray
def test_invocations_are_served_on_both_nodes_and_placed_as_on_one_machine_and_nothing_is_left(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("wait", "--engine", "ray", "--ray-nodes", "2", *GPUS, *BOOT_TIMEOUT)
    local = start_server("wait", *GPUS)
    placed = sequence(server, tmp_path / "ray")
    assert placed == sequence(local, tmp_path / "local")
    assert {gpu for _, gpu, _, _ in placed} == {0, 1, 2, 3, None}
    status = server.status()
    assert (status["engine"]["name"], status["engine"]["nodes"]) == ("ray", NODES)
    assert [one["node"] for one in status["by_gpu"]] == ["simulated-1", "simulated-2"] * 2
    assert status["settings"]["Nodes"] == "simulated-1: GPUs 0, 2; simulated-2: GPUs 1, 3"
    assert [(event.gpu, event.node) for event in events_of(server, "booted")] == [
        (gpu, node) for gpu, node in enumerate(["simulated-1", "simulated-2"] * 2)
    ]
    assert {event.node for event in events_of(local, "booted")} == {""}

    # A worker that is killed is replaced on its node.
    victim = next(worker for worker in server.workers("idle") if worker["gpu"] == 3)
    os.kill(victim["pid"], 9)
    eventually(lambda: events_of(server, "lost"))
    (lost,) = events_of(server, "lost")
    assert (lost.gpu, lost.node, lost.detail) == (3, "simulated-2", "ended by SIGKILL")
    eventually(lambda: len(server.workers("idle")) == 8)

    folders = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("kaas-ray.*"))
    workers = [worker["pid"] for worker in server.workers("idle")]
    assert server.stop() == 0
    server.marked.assert_nothing_left()
    assert not any(map(exists, workers))
    left = {folder for folder in folders if folder.exists()}
    assert len(left) < len(folders), "its folder is removed"
    assert "Traceback" not in server.stderr()


@needs_ray
def test_matrices_that_travel_inline_are_computed_on_both_nodes(start_server: StartServer) -> None:
    two = ("--ray-nodes", "2", "--num-gpus", "2", "-m", "1")
    server = start_server(ROOT / "cuda-matmul-blas.py", "--engine", "ray", *two, *BOOT_TIMEOUT)
    assert server.status()["shared_memory"] == transport.place()
    matrix = random_matrix(1000)
    with server.frames() as first, server.frames() as second:
        for frames in (first, second):  # while the first waits for its boot, the second needs another GPU
            Thread(target=frames.invoke, args=(inline.request(matrix),)).start()
        replies = [frames.reply() for frames in (first, second)]
    assert {reply.gpu for reply in replies} == {0, 1}
    for reply in replies:
        assert is_square_of(inline.product(reply.payload, matrix), matrix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "nope"), "invalid choice"),
        (("--ray-address", "10.0.0.1:6379"), "--ray-address goes with --engine ray"),
        (("--ray-nodes", "2"), "--ray-nodes goes with --engine ray"),
        (("--link-host", "10.0.0.1"), "--link-host goes with --engine ray"),
        (("--link-port", "7000"), "--link-port goes with --engine ray"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal("echo", *arguments)


@needs_ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu-ids", "GPU-1", "--ray-address", "10.0.0.1:6379"), "--gpu-ids are those of this machine: leave out"),
        (("--ray-address", "auto", "--ray-nodes", "2"), "leave out --ray-address"),
        (("--ray-nodes", "2"), "--ray-nodes 2 are more than the GPUs (--num-gpus 1)"),
        (("--ray-address", "127.0.0.1:1"), "no Ray at --ray-address 127.0.0.1:1 (Connection refused): start one"),
    ],
)
def test_what_cannot_work_with_ray_is_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal("echo", "--engine", "ray", *arguments)


def test_without_the_library_the_engine_is_refused_in_one_line_that_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "hide.py").write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'ray' else find(name, *more)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    line = command("echo", "--engine", "ray")
    done = subprocess.run(
        [line[0], str(tmp_path / "hide.py"), *line[1:]],
        env=Marked({"PYTHONPATH": str(ROOT)}).environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu-server-scaling.py: --engine ray needs the library ray: run scripts/setup --ray\n"


def test_the_engine_local_imports_nothing_of_ray(tmp_path: Path) -> None:
    watch = (
        "import atexit, pathlib, runpy, sys\n"
        "told = pathlib.Path(sys.argv[1])\n"
        "tell = lambda: told.write_text(repr([name for name in sys.modules if 'ray' in name.split('.')]))\n"
        "atexit.register(tell)\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    line = command("echo")
    process = subprocess.Popen(
        [sys.executable, "-c", watch, str(tmp_path / "told"), *line[1:]],
        cwd=ROOT,
        env=Marked({"PYTHONPATH": str(ROOT)}).environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for said in process.stderr:
        if " listening on " in said:
            break
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert (tmp_path / "told").read_text() == "[]"
