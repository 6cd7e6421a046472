"""What runs out: descriptors and shared memory. It is said in a line, and when there is more, all goes on."""

import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, Server, StartServer, command, eventually
from watch import StartWatch, Watch, shell_line

from kaas import ROOT
from kaas.client import split_address

pytest_plugins = "watching"


def use_up_descriptors(one: Watch, limit: int) -> list[socket.socket]:
    """Make connections until the server can take no more, and some that have to wait."""
    address = split_address(one.server.address)
    connections = [socket.create_connection(address) for _ in range(limit)]
    eventually(lambda: "connections are open: more have to wait" in one.server.stderr())
    return connections


def test_descriptors_used_up_by_clients(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1", shell="ulimit -n 64")
    client = one.client()
    assert client.reply(client.ask(b"")).status == "ok"
    (worker,) = one.wait_until_idle(1)
    others = use_up_descriptors(one, 100)
    try:
        asked = client.ask(b"")
        assert client.reply(asked).status == "ok", "who was there before is served"
        os.kill(worker["pid"], signal.SIGKILL)
        eventually(lambda: "lost" in one.server.names_of_events())
        asked = client.ask(b"")
        assert client.reply(asked).status == "ok", "descriptors are kept for workers"
    finally:
        for connection in others:
            connection.close()
    assert one.invoke().status == "ok"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="another process's limits can be set on Linux only")
def test_descriptors_used_up_while_workers_are_lost_and_clients_come(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    assert client.reply(client.ask(b"")).status == "ok"
    pids = [worker["pid"] for worker in one.wait_until_idle(2)]
    pid, kind = one.server.process.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (3, before[1]))  # what is open stays so, and nothing more can be opened
    for worker in pids:
        os.kill(worker, signal.SIGKILL)
    asked = client.ask(b"")
    late = one.client()
    asked_late = late.ask(b"")
    eventually(lambda: all(text in one.server.stderr() for text in ("no process can be started", "more have to wait")))
    resource.prlimit(pid, kind, before)
    assert client.reply(asked).status in {"ok", "worker_lost"}
    assert late.reply(asked_late).status in {"ok", "worker_lost"}
    assert not any("left out" in event.detail for event in one.server.events())


def run_client(server: Server, scratch: Path, shell: str = "") -> "subprocess.CompletedProcess[str]":
    environment = server.marked.environment | {"KAAS_ADDRESS": server.address, "KAAS_SCRATCH": str(scratch)}
    line = shell_line(shell, [sys.executable, str(ROOT / "cuda-matmul-client.py"), "200"])
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory is limited like files on Linux only")
def test_shared_memory_that_a_client_does_not_get(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(ROOT / "cuda-matmul-blas.py", "-m", "1")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert run_client(server, scratch).returncode == 0
    refused = run_client(server, scratch, shell="ulimit -f 1")
    assert refused.returncode == 2
    assert "no shared memory for a matrix of 320000 bytes: " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert run_client(server, scratch).returncode == 0
    assert server.counters() == {"accepted": 2, "ok": 2, "replies": 2, "cold_starts": 1}
    assert server.status()["in_flight"] == 0


@pytest.mark.parametrize("limit", [10, 13, 14, 20])
def test_a_limit_of_descriptors_that_is_too_low_is_said_in_one_line(limit: int) -> None:
    line = shlex.join(command("echo"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n {limit}; exec {line}"], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "ulimit -n" in done.stderr


def test_the_lowest_limit_of_descriptors_is_enough_for_one_worker(watch: StartWatch) -> None:
    assert watch("faulty", "-m", "1", shell="ulimit -n 32").invoke().status == "ok"
