"""`--call-timeout`: a worker whose call takes too long is answered for, killed and replaced."""

import os
import signal
from pathlib import Path

import pytest
from support import StartServer, eventually


def test_a_call_that_takes_too_long_is_answered_timeout_and_its_worker_replaced(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1", "--call-timeout", "0.5")
    with server.connection() as kaas:
        reply = kaas.invoke(str(gate).encode())
        assert (reply.status, reply.gpu, reply.worker) == ("timeout", 0, 0)
        assert "longer than 0.5 s (--call-timeout)" in reply.payload.decode()
        gate.touch()
        eventually(lambda: server.workers("idle"))
        assert kaas.invoke(str(gate).encode()).status == "ok"
    lost = [event.detail for event in server.events() if event.event == "lost"]
    assert lost == ["its call took longer than 0.5 s (--call-timeout)"]
    assert server.counters() == {"accepted": 2, "ok": 1, "timeout": 1, "replies": 2, "cold_starts": 1}


def test_a_worker_that_hangs_for_a_client_that_has_gone_is_replaced(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--call-timeout", "0.5")
    with server.frames() as frames:
        frames.invoke(gate)
        eventually(lambda: server.workers("busy"))
    eventually(lambda: "lost" in server.names_of_events())
    eventually(lambda: server.workers("idle"))
    assert server.counters() == {"accepted": 1, "abandoned": 1, "cold_starts": 1}


def test_a_request_with_a_timeout_of_its_own_leaves_its_worker_until_the_call_timeout(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1", "--call-timeout", "2")
    with server.connection() as kaas:
        reply = kaas.invoke(str(gate).encode(), timeout=0.2)
        assert (reply.status, b"not done within 0.2 s" in reply.payload) == ("timeout", True)
        assert server.workers("busy")
        eventually(lambda: "lost" in server.names_of_events())
    assert server.counters() == {"accepted": 1, "timeout": 1, "replies": 1, "cold_starts": 1}


def test_a_worker_that_was_stopped_is_replaced(start_server: StartServer) -> None:
    server = start_server("whoami", "-m", "1", "--call-timeout", "0.5")
    with server.connection() as kaas:
        assert kaas.invoke(b"").status == "ok"
        (worker,) = eventually(lambda: server.workers("idle"))
        os.kill(worker["pid"], signal.SIGSTOP)
        assert kaas.invoke(b"").status == "timeout"
        eventually(lambda: server.workers("idle"))
        assert kaas.invoke(b"").status == "ok"


@pytest.mark.parametrize("seconds", ["60", "0"])
def test_calls_that_are_in_time_are_left_alone(start_server: StartServer, seconds: str) -> None:
    server = start_server("echo", "-m", "1", "--call-timeout", seconds)
    with server.connection() as kaas:
        assert [kaas.invoke(b"x").status for _ in range(20)] == ["ok"] * 20
    assert "lost" not in server.names_of_events()
