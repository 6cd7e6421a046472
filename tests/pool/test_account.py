"""The server's account closes, whatever its clients do."""

import signal
from pathlib import Path

from support import Server, StartServer, eventually

from kaas import wire
from kaas.pool.account import ANSWERS, OUTCOMES, REFUSALS, Account


def assert_closed(status: dict[str, int], in_flight: int) -> None:
    assert status["accepted"] == sum(status[name] for name in OUTCOMES) + in_flight
    assert status["replies"] == sum(status[name] for name in wire.STATUSES)


def all_counters(server: Server) -> dict[str, int]:
    counters: dict[str, int] = server.status()["counters"]
    return counters


def test_every_status_is_an_answer_or_a_refusal() -> None:
    assert sorted((*ANSWERS, *REFUSALS)) == sorted(wire.STATUSES)


def test_the_account_closes_at_any_time_and_is_logged_at_the_end(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "2", "--when-full", "queue", "--max-queue", "2")
    with server.frames() as frames, server.frames() as gone, server.frames() as stranger:
        gone.invoke(gate, 1)
        eventually(lambda: server.workers("busy"))
        frames.invoke(gate, 1)
        frames.invoke(gate, 2, timeout=0.1)
        frames.invoke(gate, 3)
        assert frames.reply(2).status == "timeout"
        frames.invoke(gate, 4)
        frames.invoke(gate, 5)
        assert frames.reply(5).status == "rejected"
        stranger.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.reply(0).status == "bad_request"
        gone.close()
        eventually(lambda: all_counters(server)["abandoned"] == 1)
        status = server.status()
        assert (status["in_flight"], status["queued"]) == (3, 2)
        assert_closed(status["counters"], 3)
        gate.touch()
        frames.replies(1, 3, 4)
    eventually(lambda: server.status()["in_flight"] == 0)
    assert_closed(all_counters(server), 0)
    assert server.stop() == 0
    account = "accepted 6: ok 3, rejected 1, timeout 1, abandoned 1; connections refused: bad_request 1"
    assert server.stderr().splitlines()[-2].endswith(account)


def test_what_a_drain_cuts_short_is_in_the_account(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--drain-timeout", "600", "--kill-after", "600")
    with server.frames() as frames:
        frames.invoke(gate)
        eventually(lambda: server.workers("busy"))
        server.send(signal.SIGTERM)
        eventually(lambda: "no new invocations" in server.stderr())
        server.send(signal.SIGTERM)
        assert frames.reply().status == "shutting_down"
        assert server.wait() == 0
    assert "accepted 1: shutting_down 1\n" in server.stderr()


def test_a_refusal_abandons_what_its_connection_has_in_flight_and_frees_the_worker(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", "-m", "1")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        eventually(lambda: server.workers("busy"))
        frames.socket.sendall(b"no frame at all")
        assert frames.reply(0).status == "bad_request"
        assert server.status()["in_flight"] == 0
        gate.touch()
        eventually(lambda: server.workers("idle"))
        assert frames.closed_by_server()
    with server.connection() as kaas:
        assert kaas.invoke(str(gate).encode()).status == "ok"
    assert_closed(all_counters(server), 0)
    assert server.counters() == {
        "accepted": 2, "ok": 1, "abandoned": 1, "bad_request": 1, "replies": 2, "cold_starts": 1,
    }  # fmt: skip


def test_an_empty_account_reads_like_one() -> None:
    assert str(Account()) == "accepted 0"
