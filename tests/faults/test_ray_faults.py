"""Faults of nodes, over simulated nodes of a real Ray: what a node took with it is lost, and the run goes on."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_nodes import BOOT_TIMEOUT, StartCluster, events_of, needs_ray, processes, raylets
from support import LIMIT, Server, StartServer, eventually, eventually_swept, refusal

pytestmark = [pytest.mark.slow, needs_ray]

RAY = ("--engine", "ray", "--ray-nodes", "2", "--num-gpus", "2", "-m", "1", "--idle-timeout", "0", *BOOT_TIMEOUT)
HANGS = "import time\ndef call(payload):\n    time.sleep(3600)\n"
CUTS = """
import os, socket, time
def call(payload):
    if payload == b"cut":
        for descriptor in range(3, 256):
            try:
                with socket.socket(fileno=os.dup(descriptor)) as link:
                    link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        time.sleep(3600)
    return payload
"""


def occupy(server: Server, frames: Any, gate: Path, *numbers: int) -> None:
    """Have so many workers be in a call."""
    for number in numbers:
        frames.invoke(gate, number)
    eventually(lambda: len(server.workers("busy")) == len(numbers))


def test_a_node_that_is_lost_takes_what_it_had_and_the_others_go_on(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", *RAY)
    with server.frames() as frames:
        occupy(server, frames, gate, 1, 2)
        raylets(server)["simulated-2"].kill()
        reply = frames.reply(2)
        assert (reply.status, reply.gpu) == ("worker_lost", 1)
        assert "worker 1 on GPU 1 was lost: node simulated-2 is lost" in reply.error
        assert not server.status()["by_gpu"][1]["booted"]
        frames.invoke(gate, 3)
        assert frames.reply(3).status == "rejected", "its GPU is no place any more"
        gate.touch()
        assert frames.reply(1).status == "ok"
        frames.invoke(gate, 4)
        assert (frames.reply(4).status, frames.reply(4).gpu) == ("ok", 0)
    assert [(event.gpu, event.node) for event in events_of(server, "lost")] == [(1, "simulated-2")]
    assert server.status()["engine"]["nodes"] == {"simulated-1": [0]}


def test_an_agent_that_is_killed_is_replaced_and_its_gpu_comes_back(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", *RAY)
    with server.frames() as frames:
        occupy(server, frames, gate, 1)
        (node,) = (node for node in raylets(server).values() if node.children() and server_of(server, node))
        agent = next(child for child in node.children() if "Actor.run" in " ".join(child.cmdline()))
        agent.kill()
        assert frames.reply(1).status == "worker_lost"
        eventually(lambda: len(server.status()["engine"]["nodes"]) == 2, what="its GPU is back")
        gate.touch()
        frames.invoke(gate, 2)
        assert (frames.reply(2).status, frames.reply(2).gpu, frames.reply(2).cold_start) == ("ok", 0, True)


def server_of(server: Server, node: psutil.Process) -> bool:
    """Tell whether a node has the one worker that is busy."""
    (worker,) = server.workers("busy")
    return worker["pid"] in {child.pid for child in node.children(recursive=True)}


def test_a_worker_whose_link_is_cut_is_killed_and_replaced(start_server: StartServer, tmp_path: Path) -> None:
    kernel = tmp_path / "cuts.py"
    kernel.write_text(CUTS)
    server = start_server(kernel, *RAY)
    with server.connection() as kaas:
        assert kaas.invoke(b"cut").status == "worker_lost"
        assert kaas.invoke(b"x").status == "ok"
    assert [event.detail for event in events_of(server, "lost")] == ["ended by SIGKILL"]


def test_who_says_no_secret_at_the_link_port_is_counted_and_disturbs_nobody(start_server: StartServer) -> None:
    server = start_server("echo", *RAY)
    listening = [each.laddr for each in psutil.Process(server.process.pid).net_connections() if each.status == "LISTEN"]
    (port,) = (at.port for at in listening if not server.address.endswith(f":{at.port}"))
    for said in (b"GET / HTTP/1.1\r\n\r\n" * 2, os.urandom(32), os.urandom(100)):
        with socket.create_connection(("127.0.0.1", port), LIMIT) as stranger:
            stranger.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    eventually(lambda: server.status()["engine"]["links_refused"] == 3)
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"


def test_when_rays_head_is_lost_the_server_ends_with_1_says_so_and_answers_what_is_in_flight(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", *RAY, "--kill-after", "1", "--drain-timeout", "60")
    with server.frames() as frames:
        occupy(server, frames, gate, 1)
        (head,) = (process for process in processes(server, "gcs_server") if process.name() == "gcs_server")
        head.kill()
        eventually(lambda: "no new invocations" in server.stderr())
        gate.touch()
        assert frames.reply(1).status in {"ok", "worker_lost", "shutting_down"}
        assert server.wait() == 1
    assert "Ray" in server.stderr().splitlines()[-1]
    assert "lost" in server.stderr().splitlines()[-1] or "gone" in server.stderr().splitlines()[-1]
    server.marked.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_however_the_server_ends_nothing_is_left_on_any_node(
    start_server: StartServer, tmp_path: Path, number: signal.Signals
) -> None:
    kernel = tmp_path / "hangs.py"
    kernel.write_text(HANGS)
    temporary = Path(tempfile.mkdtemp(prefix="k.", dir="/tmp"))
    try:
        server = start_server(kernel, *RAY, "--kill-after", "1", "--drain-timeout", "1", TMPDIR=str(temporary))
        with server.frames() as frames:
            frames.invoke(b"x")
            eventually(lambda: server.workers("busy"))
            server.send(number)
            assert server.wait() == (-9 if number == signal.SIGKILL else 0)
        server.marked.assert_nothing_left()
        eventually(lambda: not list(temporary.iterdir()), what="its files are removed")
    finally:
        shutil.rmtree(temporary)


def test_what_a_ray_had_that_was_killed_with_its_server_all_at_once_is_removed_by_the_next_run(
    start_server: StartServer,
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="k.", dir="/tmp"))
    try:
        server = start_server("echo", "--engine", "ray", *BOOT_TIMEOUT, TMPDIR=str(temporary))
        (folder,) = temporary.glob("kaas-ray.*")
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that nobody sees another die
            for process in processes(server, ""):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        assert server.wait() == -9
        server.marked.assert_nothing_left()
        eventually_swept(lambda: not folder.exists())
    finally:
        shutil.rmtree(temporary)


def test_nodes_of_a_ray_that_runs_already_are_used_and_one_that_joins_later_and_one_that_comes_back(
    start_server: StartServer, start_cluster: StartCluster
) -> None:
    ray = start_cluster(1, 1)
    server = start_server("echo", "--engine", "ray", "--ray-address", ray.address, "-m", "1", *BOOT_TIMEOUT)
    assert list(server.status()["engine"]["nodes"].values()) == [[0]]
    ray.add(2)
    eventually(lambda: server.status()["gpus"] == 2)
    before = server.status()["engine"]["nodes"]
    ray.raylet("simulated-2").kill()
    eventually(lambda: len(server.status()["engine"]["nodes"]) == 1)
    ray.add(2)
    eventually(lambda: server.status()["engine"]["nodes"] == before, what="it has the number that it had")
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"
    (worker,) = server.workers("idle")
    assert "working_dir_files" in " ".join(psutil.Process(worker["pid"]).cmdline()), "its code was shipped"
    assert server.stop() == 0
    assert ray.process.poll() is None, "it is not the server's, and stays"


def test_a_ray_whose_nodes_have_no_gpus_is_refused_in_one_line(start_cluster: StartCluster) -> None:
    address = ("--engine", "ray", "--ray-address", start_cluster(1, 0).address)
    assert "Ray's nodes have 0 GPUs, and 1 are wanted (--num-gpus)" in refusal("echo", *address)
