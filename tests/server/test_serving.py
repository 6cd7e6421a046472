"""What a client gets: replies, several at a time, refusals of what is no request, and the token."""

import os
import socket
from pathlib import Path

import pytest
from support import Server, StartServer, eventually

from kaas import wire
from kaas.client import Connection
from kaas.wire import Request


@pytest.fixture(scope="module")
def echo(start_shared_server: StartServer) -> Server:
    """A server for tests that do not care what others have asked it."""
    return start_shared_server("echo")


@pytest.fixture(scope="module")
def small(start_shared_server: StartServer) -> Server:
    """A server that takes small payloads only."""
    return start_shared_server("echo", "--message-size", "1000")


def test_one_connection_serves_many_invocations(start_server: StartServer) -> None:
    server = start_server("echo")
    with server.connection() as kaas:
        for number in range(500):
            payload = str(number).encode()
            reply = kaas.invoke(payload)
            assert (reply.status, reply.payload) == ("ok", payload)
            assert reply.cold_start == (number == 0)
        assert kaas.status()["counters"]["ok"] == 500
        assert kaas.status()["in_flight"] == 0


def test_each_invocation_may_have_a_connection_of_its_own(echo: Server) -> None:
    for number in range(100):
        with echo.connection() as kaas:
            assert kaas.invoke(str(number).encode()).payload == str(number).encode()


@pytest.mark.parametrize("payload", [b"", bytes(20 * 1024 * 1024), os.urandom(1000)], ids=["empty", "20 MiB", "random"])
def test_any_payload_comes_back_as_it_was(echo: Server, payload: bytes) -> None:
    with echo.connection() as kaas:
        assert kaas.invoke(payload).payload == payload


def test_replies_to_invocations_in_flight_together_carry_their_ids(start_server: StartServer) -> None:
    server = start_server("echo", "-m", "2", "--when-full", "queue")
    with server.frames() as frames:
        for number in range(1, 101):
            frames.invoke(f"payload {number}".encode(), number)
        replies = frames.replies(*range(1, 101))
    assert {number: reply.payload for number, reply in replies.items()} == {
        number: f"payload {number}".encode() for number in range(1, 101)
    }


def test_a_request_may_arrive_in_pieces(echo: Server) -> None:
    with echo.frames() as frames:
        frames.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in wire.encode_request(Request(wire.INVOKE, b"in pieces", 1)):
            frames.socket.sendall(bytes([byte]))
        assert frames.reply().payload == b"in pieces"


def test_what_a_kernel_prints_does_not_disturb_the_event_lines(start_server: StartServer) -> None:
    server = start_server("prints", "-m", "1")
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"
    assert server.names_of_events() == ["booted", "ready"]
    assert "on GPU 99" in server.stderr()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"x",
        b"KaaS\x02" + bytes(19),
        b"KaaS\x01\x09" + bytes(18),
        b"KaaS\x01\x01\x00\x01" + bytes(16),
    ],
    ids=["another protocol", "one byte", "another version", "another kind", "reserved bytes"],
)
def test_what_is_no_request_is_answered_bad_request_and_disturbs_nobody_else(echo: Server, garbage: bytes) -> None:
    with echo.connection() as other, echo.frames() as frames:
        assert other.invoke(b"before").status == "ok"
        frames.socket.sendall(garbage)
        assert frames.reply(0).status == "bad_request"
        assert frames.closed_by_server()
        assert other.invoke(b"after").status == "ok"
    assert echo.status()["in_flight"] == 0


@pytest.mark.parametrize("size", [1001, 16 * 1024 * 1024])
def test_a_payload_over_the_limit_is_answered_bad_request(small: Server, size: int) -> None:
    with small.connection() as kaas:
        assert kaas.invoke(bytes(1000)).status == "ok"
        reply = kaas.invoke(bytes(size))
    assert reply.status == "bad_request"
    assert b"--message-size" in reply.payload


def test_a_connection_is_of_use_after_a_bad_request(small: Server) -> None:
    with small.connection() as kaas:
        assert kaas.invoke(bytes(1001)).status == "bad_request"
        assert kaas.invoke(bytes(1000)).status == "ok"


def test_a_reply_over_the_limit_is_the_kernels_error(start_server: StartServer) -> None:
    with start_server("zeros", "--message-size", "1000").connection() as kaas:
        assert kaas.invoke(b"1000").payload == bytes(1000)
        reply = kaas.invoke(b"1001")
    assert reply.status == "kernel_error"
    assert b"--message-size" in reply.payload


def test_with_a_token_only_who_shows_it_is_served(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server("echo", KAAS_TOKEN="secret")
    with server.connection("secret") as kaas:
        assert kaas.invoke(b"x").status == "ok"
    for wrong in ("", "Secret", "secret2"):
        with server.connection(wrong) as kaas:
            reply = kaas.invoke(b"x")
            assert reply.status == "unauthorized"
            assert b"KAAS_TOKEN" in reply.payload
    monkeypatch.setenv("KAAS_TOKEN", "secret")
    with Connection(server.address) as kaas:
        assert kaas.status()["counters"]["accepted"] == 1


def test_each_request_with_a_wrong_token_is_answered_unauthorized(start_server: StartServer) -> None:
    server = start_server("echo", KAAS_TOKEN="secret")
    with server.connection("wrong") as kaas:
        assert [kaas.invoke(bytes(size)).status for size in (1, 1, 8 * 1024 * 1024, 1)] == ["unauthorized"] * 4


def test_a_token_is_no_harm_where_none_is_wanted(echo: Server) -> None:
    with echo.connection("whatever") as kaas:
        assert kaas.invoke(b"x").status == "ok"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="a connection's timers are shown on Linux only")
def test_a_client_whose_machine_is_gone_without_a_word_is_noticed(start_server: StartServer) -> None:
    server = start_server("echo")
    port = int(server.address.rpartition(":")[2])
    established, keepalive = "01", "02"

    def timers() -> list[str]:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [row[5][:2] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == established]

    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"
        eventually(lambda: timers() == [keepalive])
