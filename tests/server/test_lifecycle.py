"""The server's own life: it starts or says why not, drains, ends, and leaves nothing behind however it ends."""

import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import LIMIT, Server, StartServer, command, eventually, listening_socket, refusal

from kaas.clock import Clock
from kaas.errors import ConnectionFailed

PARENT = "import os, subprocess, sys; sys.exit(subprocess.Popen([*sys.argv[1:], str(os.getpid())]).wait())"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_before_the_server_ends(
    start_server: StartServer, gate: Path, number: signal.Signals
) -> None:
    server = start_server("wait", "-m", "2", "--drain-timeout", "60")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        eventually(lambda: server.workers("busy"))
        server.send(number)
        eventually(lambda: "no new invocations" in server.stderr())
        frames.invoke(gate, 2)
        assert frames.reply(2).status == "shutting_down"
        with pytest.raises(ConnectionFailed, match="refused"):
            server.status()
        gate.touch()
        assert frames.reply(1).status == "ok"
        assert server.wait() == 0
        assert frames.closed_by_server()
    server.marked.assert_nothing_left()
    assert server.names_of_events()[-1] == "stopped"


def test_a_large_reply_is_sent_to_its_end_before_the_server_ends(start_server: StartServer) -> None:
    size = 32 * 1024 * 1024
    server = start_server("zeros", "-m", "1", "--drain-timeout", "60")
    with server.frames() as frames:
        frames.invoke(str(size).encode())
        frames.socket.recv(1, socket.MSG_PEEK)  # it has begun
        server.send(signal.SIGTERM)
        eventually(lambda: "no new invocations" in server.stderr())
        assert len(frames.reply().payload) == size
    assert server.wait() == 0


def test_what_takes_longer_than_the_drain_timeout_is_answered_shutting_down(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1", "--drain-timeout", "0.2", "--kill-after", "1")
    with server.frames() as frames:
        frames.invoke(gate)
        eventually(lambda: server.workers("busy"))
        server.send(signal.SIGTERM)
        assert frames.reply().status == "shutting_down"
        assert server.wait() == 0
    server.marked.assert_nothing_left()


def test_a_second_signal_ends_at_once_while_an_invocation_is_in_flight(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--drain-timeout", "600", "--kill-after", "600")
    with server.frames() as frames:
        frames.invoke(gate)
        eventually(lambda: server.workers("busy"))
        server.send(signal.SIGINT)
        eventually(lambda: "no new invocations" in server.stderr())
        server.send(signal.SIGINT)
        assert frames.reply().status == "shutting_down"
        assert server.wait() == 0
    server.marked.assert_nothing_left()


def test_a_second_signal_ends_at_once_while_a_call_goes_on_that_nobody_waits_for(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1", "--kill-after", "600")
    with server.connection() as kaas:
        assert kaas.invoke(str(gate).encode(), timeout=0.5).status == "timeout"
    eventually(lambda: server.workers("busy"))
    server.send(signal.SIGTERM)
    eventually(lambda: "stopped" in server.names_of_events())
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    server.marked.assert_nothing_left()


@pytest.fixture
def starting(tmp_path: Path, gate: Path) -> Iterator[Server]:
    """A server that is still trying its kernel."""
    line = command("slow_import", "--kill-after", "600")
    server = Server(tmp_path, line, {"SLOW_IMPORT_GATE": str(gate)})
    try:
        eventually(lambda: "libraries imported" in server.stderr())
        eventually(lambda: psutil.Process(server.process.pid).children() and server.worker_processes())
        yield server
    finally:
        gate.touch()
        server.end()


def test_a_signal_ends_a_server_that_is_still_starting(starting: Server, gate: Path) -> None:
    starting.send(signal.SIGTERM)
    eventually(lambda: "ending before the start was complete" in starting.stderr())
    gate.touch()
    assert starting.wait() == 0


def test_a_second_signal_ends_at_once_a_server_that_is_still_starting(starting: Server) -> None:
    starting.send(signal.SIGTERM)
    eventually(lambda: "ending before the start was complete" in starting.stderr())
    starting.send(signal.SIGTERM)
    assert starting.wait() == 0
    starting.marked.assert_nothing_left()


def test_an_idle_server_ends_without_waiting(start_server: StartServer) -> None:
    server = start_server("echo", "--drain-timeout", "600", "--kill-after", "600")
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"
        assert server.stop() == 0


def test_workers_end_by_themselves_when_the_server_is_killed(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "2", "--kill-after", "1")
    with server.frames() as frames:
        frames.invoke(gate)
        eventually(lambda: server.workers("busy"))
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server.marked.assert_nothing_left()


def test_a_supervised_server_leaves_ctrl_c_to_its_parent_and_ends_with_it(tmp_path: Path, gate: Path) -> None:
    line = [sys.executable, "-c", PARENT, *command("wait", "-m", "1", "--supervised")]
    parent = Server(tmp_path, line, {})
    try:
        parent.wait_until_listening()
        (server,) = psutil.Process(parent.process.pid).children()
        server.send_signal(signal.SIGINT)
        gate.touch()
        with parent.connection() as kaas:
            assert kaas.invoke(str(gate).encode()).status == "ok"
            assert kaas.status()["draining"] is False
            gate.unlink()
        with parent.frames() as frames:
            frames.invoke(gate)
            eventually(lambda: parent.workers("busy"))
            parent.process.kill()
            eventually(lambda: "the parent process is gone" in parent.stderr())
            gate.touch()
            assert frames.reply().status == "ok"
        server.wait(LIMIT)
    finally:
        gate.touch()
        parent.process.kill()
        parent.process.wait(LIMIT)
        try:
            parent.marked.assert_nothing_left()
        finally:
            parent.marked.kill()


@pytest.mark.parametrize("host", ["256.256.256.256", "x" * 64])
def test_a_host_that_is_none_is_refused_in_one_line(host: str) -> None:
    assert "--host" in refusal("echo", "--host", host)


def test_a_port_in_use_is_refused_in_one_line() -> None:
    with listening_socket() as other:
        port = str(other.getsockname()[1])
        assert f"port {port} on 127.0.0.1" in refusal("echo", "--port", port)
        assert f"port {port} on 127.0.0.1" in refusal("echo", "--port", port, "--check")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no module"),
        ("def call(payload:\n", "line 1: "),
        ("def other(payload): return payload\n", "has no function 'call'"),
        ("import no_such_module\ndef call(payload): return payload\n", "imports 'no_such_module'"),
        ("\0", "null bytes"),
    ],
    ids=["missing", "syntax error", "no call", "missing import", "no text"],
)
def test_a_file_that_is_no_kernel_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    kernel = tmp_path / "kernel.py"
    if text is not None:
        kernel.write_text(text)
    refused = refusal(kernel)
    assert message in refused
    assert str(kernel) in refused


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("broken_import", "RuntimeError: no such device (broken_import.py, line 3)"),
        ("exits_on_import", "this kernel wants another machine (exits_on_import.py, line 5)"),
        ("crashes_on_import", "the kernel does not start: "),
    ],
)
def test_a_kernel_that_does_not_load_is_refused_in_one_line(kernel: str, message: str) -> None:
    assert message in refusal(kernel)


def test_a_kernel_that_loads_forever_is_refused_in_one_line(gate: Path) -> None:
    assert "--boot-timeout" in refusal("slow_import", "--boot-timeout", "0.5", SLOW_IMPORT_GATE=str(gate))


def test_a_check_of_sound_arguments_says_nothing_and_starts_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path, command("echo", "--check"), {})
    assert server.wait() == 0
    assert (server.events(), server.stderr()) == ([], "")
    server.end()


def test_event_lines_bear_the_clock_of_the_run(start_server: StartServer) -> None:
    clock = Clock(1e6, time.monotonic())
    server = start_server("echo", "-m", "1", KAAS_CLOCK=str(clock))
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"
    stamps = [event.timestamp for event in server.events()]
    assert len(stamps) == 2
    assert 1e6 <= min(stamps) <= max(stamps) <= clock.now()
