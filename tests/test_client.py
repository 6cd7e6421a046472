import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import LIMIT, StartServer, eventually, listening_socket

from kaas import ROOT, client, wire
from kaas.client import Connection
from kaas.errors import ConnectionFailed, Refused, UsageError
from kaas.wire import Reply, Request

Answer = Callable[[socket.socket, Request], None]
StartFake = Callable[..., str]


@pytest.fixture
def fake_server() -> Iterator[StartFake]:
    """Start servers that serve one connection after the other, each with its own function for every request."""
    with listening_socket() as listener:
        threads = []

        def serve(answers: tuple[Answer, ...]) -> None:
            for answer in answers:
                accepted, _ = listener.accept()
                with accepted, contextlib.suppress(ConnectionResetError):  # by a client that gives up
                    accepted.settimeout(LIMIT)
                    decoder = wire.request_decoder()
                    while data := accepted.recv(100_000):
                        for request in decoder.feed(data):
                            answer(accepted, request)

        def start(*answers: Answer) -> str:
            threads.append(threading.Thread(target=serve, args=(answers,)))
            threads[-1].start()
            host, port = listener.getsockname()
            return f"{host}:{port}"

        yield start
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()


def reply_to(request: Request, payload: bytes = b"", status: str = "ok") -> bytes:
    return wire.encode_reply(Reply(status, payload, request.id))


def echo(connection: socket.socket, request: Request) -> None:
    connection.sendall(reply_to(request, request.payload))


def hang_up(connection: socket.socket, request: Request) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def stop_in_mid_reply(connection: socket.socket, request: Request) -> None:
    connection.sendall(reply_to(request, b"a whole reply")[:-1])
    connection.shutdown(socket.SHUT_RDWR)


def talk_http(connection: socket.socket, request: Request) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def say_nothing(connection: socket.socket, request: Request) -> None:
    pass


def test_nothing_listening_is_a_failed_connection() -> None:
    with listening_socket() as listener:
        port = listener.getsockname()[1]
    with Connection(f"127.0.0.1:{port}") as kaas:
        for use in (kaas.status, lambda: kaas.invoke(b"")):
            with pytest.raises(ConnectionFailed, match=rf"127\.0\.0\.1:{port}: .*refused"):
                use()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64, "a..b"])
def test_a_host_that_does_not_exist_is_a_failed_connection(host: str) -> None:
    with Connection(f"{host}:8080") as kaas, pytest.raises(ConnectionFailed):
        kaas.invoke(b"")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (hang_up, "closed the connection before it had answered"),
        (stop_in_mid_reply, "closed the connection before it had answered"),
        (talk_http, "does not answer like a KaaS server"),
    ],
)
def test_a_broken_exchange_is_told_and_the_next_one_uses_a_new_connection(
    fake_server: StartFake, answer: Answer, text: str
) -> None:
    address = fake_server(answer, echo)
    with Connection(address) as kaas:
        with pytest.raises(ConnectionFailed, match=text):
            kaas.invoke(b"first")
        assert "closed" in repr(kaas)
        assert kaas.invoke(b"second").payload == b"second"
        assert kaas.invoke(b"third").payload == b"third"


def test_a_reply_may_arrive_in_pieces(fake_server: StartFake) -> None:
    def in_pieces(connection: socket.socket, request: Request) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in reply_to(request, request.payload):
            connection.sendall(bytes([byte]))

    with Connection(fake_server(in_pieces)) as kaas:
        assert kaas.invoke(b"in pieces").payload == b"in pieces"


def test_a_reply_to_an_earlier_request_is_not_taken_for_the_next_one(fake_server: StartFake) -> None:
    def late(connection: socket.socket, request: Request) -> None:
        connection.sendall(reply_to(request._replace(id=request.id + 77), b"another's") + reply_to(request, b"its own"))

    with Connection(fake_server(late)) as kaas:
        assert kaas.invoke(b"").payload == b"its own"
        assert kaas.invoke(b"").payload == b"its own"


def test_a_reply_that_is_too_late_is_not_taken_for_the_next_one(
    fake_server: StartFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GRACE", 0.1)
    address = fake_server(say_nothing, echo)
    with Connection(address) as kaas:
        with pytest.raises(ConnectionFailed, match="no answer within"):
            kaas.invoke(b"first", timeout=0.1)
        assert kaas.invoke(b"second").payload == b"second"


def test_a_server_that_takes_nothing_is_given_up_in_the_callers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_GRACE", 0.1)
    payload = bytes(64 * 1024 * 1024)  # more than fits in between
    with listening_socket() as listener:
        host, port = listener.getsockname()
        with Connection(f"{host}:{port}") as kaas, pytest.raises(ConnectionFailed, match=r"no answer within 0\.2 s"):
            kaas.invoke(payload, timeout=0.1)


def test_an_answer_that_is_still_coming_when_the_time_is_over_is_waited_for_no_longer(
    fake_server: StartFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_at_length(connection: socket.socket, request: Request) -> None:
        connection.sendall(reply_to(request, bytes(100_000)))  # more than is read at once

    times = iter((0.0, 100.0, 200.0))
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with (
        Connection(fake_server(answer_at_length)) as kaas,
        pytest.raises(ConnectionFailed, match="no answer within 10 s"),
    ):
        kaas.status(timeout=10.0)


def test_a_limit_that_is_over_at_once_is_no_limit_for_ever(fake_server: StartFake) -> None:
    def echo_one(connection: socket.socket, request: Request) -> None:
        if request.kind == wire.INVOKE:
            echo(connection, request)

    with Connection(fake_server(echo_one)) as kaas:
        kaas.invoke(b"connects")
        with pytest.raises(ConnectionFailed, match="no answer within"):
            kaas.status(1e-9)


def test_a_limit_of_one_exchange_is_not_the_next_ones(fake_server: StartFake, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(connection: socket.socket, request: Request) -> None:
        time.sleep(float(request.payload))
        echo(connection, request)

    monkeypatch.setattr(client, "_GRACE", 0.01)
    with Connection(fake_server(slowly)) as kaas:
        kaas.invoke(b"0", timeout=0.1)
        assert kaas.invoke(b"0.3").status == "ok"


def test_a_host_that_does_not_answer_at_all_is_given_up_in_the_callers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def never(address: tuple[str, int], timeout: float) -> socket.socket:
        limits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never)
    with Connection("gpu-node:8080") as kaas:
        with pytest.raises(ConnectionFailed, match=r"no answer within 0\.5 s"):
            kaas.status(0.5)
        with pytest.raises(ConnectionFailed, match="no answer within 10 s"):
            kaas.invoke(b"")
    assert limits == [0.5, 10.0]


def test_the_timeout_goes_to_the_server_which_answers_it(start_server: StartServer, gate: Path) -> None:
    with start_server("wait").connection() as kaas:
        assert kaas.invoke(str(gate).encode(), timeout=0.001).status == "timeout"
        assert "open" in repr(kaas)
        assert kaas.status()["in_flight"] == 0


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), wire.MAX_TIMEOUT * 2])
def test_a_timeout_that_makes_no_sense_is_refused_before_anything_is_sent(timeout: float) -> None:
    with Connection("127.0.0.1:1") as kaas, pytest.raises(UsageError, match="timeout"):
        kaas.invoke(b"", timeout=timeout)


def test_a_refused_status_query_says_why(fake_server: StartFake) -> None:
    def refuse(connection: socket.socket, request: Request) -> None:
        connection.sendall(reply_to(request, b"set KAAS_TOKEN", "unauthorized"))

    with (
        Connection(fake_server(refuse)) as kaas,
        pytest.raises(Refused, match="unauthorized: set KAAS_TOKEN"),
    ):
        kaas.status()


def test_a_status_that_is_no_json_is_a_failed_connection(fake_server: StartFake) -> None:
    def babble(connection: socket.socket, request: Request) -> None:
        connection.sendall(reply_to(request, b"not json"))

    with Connection(fake_server(babble)) as kaas, pytest.raises(ConnectionFailed):
        kaas.status()


def test_the_token_is_shown_once_on_each_connection(fake_server: StartFake, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bytes]] = []

    def record(connection: socket.socket, request: Request) -> None:
        seen.append((request.kind, request.payload))
        if request.kind != wire.TOKEN:
            echo(connection, request)

    monkeypatch.setenv("KAAS_TOKEN", "secret")
    with Connection(fake_server(record, record)) as kaas:
        kaas.invoke(b"1")
        kaas.invoke(b"2")
        kaas.close()
        kaas.invoke(b"3")
    token = (wire.TOKEN, b"secret")
    assert seen == [token, (wire.INVOKE, b"1"), (wire.INVOKE, b"2"), token, (wire.INVOKE, b"3")]


def test_the_address_is_the_argument_or_the_environments_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAAS_ADDRESS", raising=False)
    assert Connection().address == "127.0.0.1:8080"
    monkeypatch.setenv("KAAS_ADDRESS", "gpu-node:9000")
    assert Connection().address == "gpu-node:9000"
    assert Connection("other:1").address == "other:1"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("gpu-node.example:65535", ("gpu-node.example", 65535)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_an_address_is_split(address: str, parts: tuple[str, int]) -> None:
    assert client.split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "host", ":8080", "host:", "host:0", "host:65536", "host:http", "host:-1", "8080"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        client.split_address(address)


FORKED = """
import os, sys
from kaas.client import Connection
kaas = Connection(sys.argv[1])
kaas.status()  # the connection is open before the fork
child = os.fork()
who = b"child" if child == 0 else b"parent"
own = all(kaas.invoke(sent, timeout=60.0).payload == sent for sent in (who + b"%d" % turn for turn in range(300)))
if child == 0:
    os._exit(0 if own else 1)
sys.exit(0 if own and os.waitpid(child, 0)[1] == 0 else 1)
"""


def test_a_forked_process_makes_a_connection_of_its_own_and_answers_are_not_mixed_up(start_server: StartServer) -> None:
    server = start_server("echo", "--num-gpus", "1", "--max-req-per-gpu", "2")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, server.address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_with_one_connection_take_turns(start_server: StartServer) -> None:
    server = start_server("echo")
    wrong: list[bytes] = []

    def invoke(kaas: Connection, who: int) -> None:
        for turn in range(100):
            sent = b"%d %d" % (who, turn)
            if kaas.invoke(sent, timeout=LIMIT).payload != sent:
                wrong.append(sent)

    with Connection(server.address) as kaas:
        threads = [threading.Thread(target=invoke, args=(kaas, who)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    assert not wrong
    assert server.counters()["ok"] == 400


def test_a_thread_whose_turn_does_not_come_in_time_is_told(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait")
    with Connection(server.address) as kaas:
        waiting = threading.Thread(target=kaas.invoke, args=(str(gate).encode(),))
        waiting.start()
        eventually(lambda: server.status()["in_flight"])
        with pytest.raises(ConnectionFailed, match=r"another thread has used the connection to .* for 0\.1 s"):
            kaas.status(timeout=0.1)
        gate.touch()
        waiting.join(LIMIT)
