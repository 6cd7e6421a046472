"""What goes wrong in kernels, workers and clients, and that the server goes on serving."""

from pathlib import Path

from support import KERNELS, Server, StartServer, eventually


def line_of(kernel: str, text: str) -> int:
    """Find the line of an example kernel in which something stands."""
    lines = (KERNELS / f"{kernel}.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def only_worker(server: Server) -> int:
    """Give the process id of the only worker, once it is idle."""
    (worker,) = eventually(lambda: server.workers("idle"))
    return int(worker["pid"])


def test_what_a_kernel_raises_is_told_with_the_line_and_the_worker_goes_on(start_server: StartServer) -> None:
    server = start_server("fails", "-m", "1")
    with server.connection() as kaas:
        first = kaas.invoke(b"no such matrix")
        pid = only_worker(server)
        second = kaas.invoke(b"on two\nlines")
    line = line_of("fails", "raise ValueError")
    assert (first.status, first.worker) == ("kernel_error", 0)
    assert first.payload.decode() == f"ValueError: no such matrix (fails.py, line {line})"
    assert second.payload.decode() == f"ValueError: on two lines (fails.py, line {line})"
    assert only_worker(server) == pid
    assert server.counters() == {"accepted": 2, "kernel_error": 2, "replies": 2, "cold_starts": 1}
    assert server.names_of_events() == ["booted", "ready"]


def test_an_error_text_that_is_not_unicode_is_the_kernels_error_too(start_server: StartServer) -> None:
    server = start_server("fails", "-m", "1")
    with server.connection() as kaas:
        reply = kaas.invoke(b"a file named \xff")
    assert reply.status == "kernel_error"
    assert b"ValueError: a file named " in reply.payload


def test_a_worker_that_crashes_in_a_call_is_replaced(start_server: StartServer) -> None:
    server = start_server("crashes", "-m", "1")
    with server.connection() as kaas:
        before = int(kaas.invoke(b"").payload)
        reply = kaas.invoke(b"crash")
        assert (reply.status, reply.gpu, reply.worker) == ("worker_lost", 0, 0)
        assert b"SIGKILL" in reply.payload
        after = only_worker(server)
        assert after != before
        assert int(kaas.invoke(b"").payload) == after
    assert server.status()["in_flight"] == 0
    assert server.counters() == {"accepted": 3, "ok": 2, "worker_lost": 1, "replies": 3, "cold_starts": 1}
    assert server.names_of_events() == ["booted", "ready", "lost", "ready"]
    lost = server.events()[2]
    assert (lost.worker, lost.gpu, lost.detail) == (0, 0, "ended by SIGKILL")


def test_other_workers_serve_while_one_boots(start_server: StartServer, tmp_path: Path) -> None:
    imports, calls = tmp_path / "imports", tmp_path / "calls"
    imports.touch()
    kernel = tmp_path / "both.py"
    kernel.write_text((KERNELS / "slow_import.py").read_text() + (KERNELS / "wait.py").read_text())
    server = start_server(kernel, "-g", "2", "-m", "1", SLOW_IMPORT_GATE=str(imports))
    with server.frames() as frames, server.frames() as other:
        frames.invoke(calls, 1)
        eventually(lambda: server.workers("busy"))
        imports.unlink()
        other.invoke(calls, 1)
        eventually(lambda: server.workers("booting"))
        calls.touch()
        assert frames.reply(1).gpu == 0
        frames.invoke(calls, 2)
        assert (frames.reply(2).gpu, frames.reply(2).waited_for_boot) == (0, False)
        imports.touch()
        assert (other.reply(1).gpu, other.reply(1).cold_start) == (1, True)


def test_a_timeout_is_answered_in_time_and_the_worker_is_of_use_afterwards(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1")
    with server.connection() as kaas:
        assert kaas.invoke(str(gate).encode(), timeout=0.3).status == "timeout"
        assert server.status()["in_flight"] == 0
        busy = kaas.invoke(str(gate).encode())
        assert busy.status == "rejected", "the worker is still in the call"
        gate.touch()
        pid = only_worker(server)
        reply = kaas.invoke(str(gate).encode(), timeout=60.0)
    assert (reply.status, int(reply.payload)) == ("ok", pid)
    assert "lost" not in server.names_of_events()


def test_a_timeout_while_its_worker_boots_leaves_the_worker_free(start_server: StartServer, gate: Path) -> None:
    gate.touch()
    server = start_server("slow_import", "-m", "1", SLOW_IMPORT_GATE=str(gate))
    gate.unlink()
    with server.connection() as kaas:
        reply = kaas.invoke(b"", timeout=0.2)
        assert (reply.status, reply.cold_start) == ("timeout", True)
        gate.touch()
        pid = only_worker(server)
        assert int(kaas.invoke(b"").payload) == pid


def test_when_the_fork_server_is_killed_workers_are_booted_again(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "2")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        eventually(lambda: server.workers("busy"))
        forkserver = server.forkserver()
        forkserver.kill()
        assert frames.reply(1).status == "worker_lost"
        gate.touch()
        frames.invoke(gate, 2)
        assert frames.reply(2).status == "ok"
    assert server.forkserver() != forkserver
    eventually(lambda: len(server.workers("idle")) == 2)
    assert server.names_of_events().count("lost") == 2
    assert server.status()["in_flight"] == 0
