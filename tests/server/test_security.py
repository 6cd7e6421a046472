"""Who may reach the server, and what a stranger may cost it: the token, its limits, and who gets to see it."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import Frames, Server, StartServer, command, eventually, refusal

from kaas import ROOT, addresses, wire
from kaas.client import Connection
from kaas.errors import UsageError
from kaas.wire import Request

TOKEN = "a token that nobody guesses"
IMPATIENT = """
import runpy, sys
from kaas.server import connection
connection._PATIENCE = 0.5
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def has_ipv6() -> bool:
    """Tell whether this machine can listen on ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Server]:
    """A server that waits half a second for a token."""
    program, *arguments = command("echo")
    line = [program, "-c", IMPATIENT, *arguments]
    server = Server(tmp_path, line, {"KAAS_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)})
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.end()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_this_machine_only(host: str) -> None:
    assert addresses.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])
def test_what_others_can_reach_is_no_loopback(host: str) -> None:
    assert not addresses.is_loopback(host)


def test_a_name_is_loopback_only_if_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert not addresses.is_loopback("both")


TWO_ADDRESSES = """
import runpy, socket, sys
resolve = socket.getaddrinfo
def both(host, port, *arguments, **options):
    hosts = ("{}", "127.0.0.1") if host == "both" else (host,)
    return [found for each in hosts for found in resolve(each, port, *arguments, **options)]
socket.getaddrinfo = both
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# The last is an address of nobody's machine (RFC 5737): a name's address that is not ours is passed over.
@pytest.mark.parametrize(
    ("first", "ours"), [("127.1.2.3", 2), ("192.0.2.1", 1), pytest.param("::1", 2, marks=needs_ipv6)]
)
def test_a_name_is_listened_to_on_all_its_addresses(tmp_path: Path, first: str, ours: int) -> None:
    program, *arguments = command("echo", "--host", "both", "--metrics-port", "0", "--insecure")
    line = [program, "-c", TWO_ADDRESSES.format(first), *arguments]
    server = Server(tmp_path, line, {"PYTHONPATH": str(ROOT)})
    try:
        server.wait_until_listening()
        (says,) = [line for line in server.stderr().splitlines() if " listening on " in line]
        addresses = says.partition(" listening on ")[2].partition(": kernel")[0].split(" and ")
        assert len(addresses) == ours
        assert addresses[-1].startswith("127.0.0.1:")
        assert len({address.rpartition(":")[2] for address in addresses}) == 1
        for address in addresses:
            with Connection(address) as kaas:
                assert kaas.invoke(b"x").payload == b"x"
        metrics = server.stderr().partition("metrics on ")[2].partition("\n")[0].split(" and ")
        assert len(metrics) == ours
    finally:
        server.end()


def test_a_host_that_is_none_is_refused_with_the_options_name() -> None:
    with pytest.raises(UsageError, match="--host 256"):
        addresses.is_loopback("256.256.256.256")


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_without_a_token_a_host_open_to_others_is_refused(check: tuple[str, ...]) -> None:
    text = refusal("echo", "--host", "0.0.0.0", *check)
    assert "KAAS_TOKEN" in text
    assert "--insecure" in text


@pytest.mark.parametrize(
    ("arguments", "token", "text"),
    [(("--insecure",), "", "ANYBODY"), ((), TOKEN, "who shows the token")],
    ids=["insecure", "token"],
)
def test_listening_beyond_this_machine_is_warned_of(
    start_server: StartServer, arguments: tuple[str, ...], token: str, text: str
) -> None:
    environment = {"KAAS_TOKEN": token} if token else {}
    server = start_server("echo", "--host", "0.0.0.0", *arguments, **environment)
    (warning,) = [line for line in server.stderr().splitlines() if "WARNING" in line]
    assert "beyond this machine" in warning
    assert text in warning


def test_the_token_is_seen_by_no_worker_and_in_no_output(start_server: StartServer) -> None:
    server = start_server("whoami", "-m", "1", "--log-level", "debug", KAAS_TOKEN=TOKEN)
    with server.connection(TOKEN) as kaas:
        assert kaas.invoke(b"").status == "ok"
        status = kaas.status()
    with server.connection("wrong") as kaas:
        reply = kaas.invoke(b"")
    for process in (server.forkserver(), *server.worker_processes()):
        assert "KAAS_TOKEN" not in process.environ()
    assert TOKEN not in " ".join(psutil.Process(server.process.pid).cmdline())
    for text in (str(status), reply.payload.decode(), server.stderr()):
        assert TOKEN not in text


def test_who_has_shown_no_token_may_send_no_more_than_a_token(start_server: StartServer) -> None:
    server = start_server("echo", KAAS_TOKEN=TOKEN)
    with server.frames() as frames:
        frames.socket.sendall(wire.encode_request(Request(wire.INVOKE, bytes(1_000_000), 7))[:100])
        reply = frames.reply(7)
        assert reply.status == "unauthorized"
        assert frames.closed_by_server()
    with server.connection(TOKEN) as kaas:
        assert len(kaas.invoke(bytes(1_000_000)).payload) == 1_000_000
        counters = kaas.status()["counters"]
    assert (counters["accepted"], counters["unauthorized"], counters["replies"]) == (1, 1, 2)


def test_what_follows_a_refused_request_is_not_looked_at(start_server: StartServer) -> None:
    server = start_server("echo", KAAS_TOKEN=TOKEN)
    with server.frames() as frames:
        frames.socket.sendall(wire.encode_request(Request(wire.INVOKE, b"x", 7)) + b"no frame at all")
        assert frames.reply(7).status == "unauthorized"
        assert frames.closed_by_server()
    with server.connection(TOKEN) as kaas:
        counters = kaas.status()["counters"]
    assert (counters["accepted"], counters["unauthorized"], counters["replies"]) == (0, 1, 1)


def test_a_token_longer_than_a_message_may_be_is_taken(start_server: StartServer) -> None:
    server = start_server("echo", "--message-size", "5", KAAS_TOKEN=TOKEN)
    with server.connection(TOKEN) as kaas:
        assert kaas.invoke(b"12345").status == "ok"
        assert kaas.invoke(b"123456").status == "bad_request"


def test_who_shows_no_token_for_some_time_is_sent_away_and_who_has_shown_it_may_stay(impatient: Server) -> None:
    with impatient.connection(TOKEN) as friend, impatient.frames() as stranger:
        assert friend.invoke(b"x").status == "ok"
        reply = stranger.reply(0)
        assert reply.status == "unauthorized"
        assert "within 0.5 s" in reply.payload.decode()
        assert stranger.closed_by_server()
        assert friend.invoke(b"x").status == "ok"


def test_strangers_keep_nobody_out_who_has_the_token(tmp_path: Path) -> None:
    line = ["sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *command("echo", "-m", "1")]
    server = Server(tmp_path, line, {"KAAS_TOKEN": TOKEN})
    strangers: list[Frames] = []
    try:
        server.wait_until_listening()
        strangers = [server.frames() for _ in range(200)]
        assert strangers[0].closed_by_server(), "at once, and without an answer"
        with server.connection(TOKEN) as friend:
            assert friend.invoke(b"x").payload == b"x"
            assert friend.status()["counters"]["unauthorized"] == 0, "nobody had to run out of patience"
        assert "show no token" in server.stderr()
        assert "more have to wait" not in server.stderr()
    finally:
        for frames in strangers:
            frames.close()
        server.end()


def test_a_token_may_be_any_bytes(start_server: StartServer) -> None:
    token = os.fsdecode(b"\xff\xfe")
    server = start_server("echo", KAAS_TOKEN=token)
    with server.connection(token) as kaas:
        assert kaas.invoke(b"x").status == "ok"
    with server.connection("wrong") as kaas:
        assert kaas.invoke(b"x").status == "unauthorized"


def test_queries_that_nobody_reads_the_answers_of_take_no_memory(start_server: StartServer) -> None:
    number = 1000
    server = start_server("echo", "-g", "1000")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with server.frames() as frames, server.connection() as other:
        frames.socket.sendall(b"".join(wire.encode_request(Request(wire.STATUS, id=each)) for each in range(number)))
        size = len(str(other.status()))
        assert process.memory_info().rss - before < number * size / 2
        assert sorted(frames.replies(*range(number))) == list(range(number)), "all are answered when they are read"


def test_memory_is_taken_for_what_has_come_and_not_for_what_is_announced(start_server: StartServer) -> None:
    size = 10**9
    server = start_server("echo", "--message-size", str(size))
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    header = wire.encode_request(Request(wire.INVOKE, b"x"))[:-9] + size.to_bytes(8, "big")
    with server.frames() as frames:
        frames.socket.sendall(header + bytes(1000))
        with server.connection() as other:  # by then, the first has been read
            assert other.invoke(b"x").status == "ok"
        assert process.memory_info().rss - before < 64 * 1024**2


def test_when_descriptors_are_used_up_clients_wait_and_others_are_served(tmp_path: Path) -> None:
    line = ["sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *command("whoami", "-m", "1")]
    server = Server(tmp_path, line, {})
    crowd: list[Frames] = []
    try:
        server.wait_until_listening()
        with server.connection() as kaas:
            assert kaas.invoke(b"").status == "ok"
            (worker,) = eventually(lambda: server.workers("idle"))
            crowd = [server.frames() for _ in range(200)]
            eventually(lambda: "more have to wait" in server.stderr())
            os.kill(worker["pid"], signal.SIGKILL)
            eventually(lambda: "lost" in server.names_of_events())
            assert kaas.invoke(b"").status == "ok", "there are descriptors left for a worker's place"
            crowd[-1].invoke(b"")
            for frames in crowd[:-1]:
                frames.close()
            assert crowd[-1].reply().status == "ok", "who has waited is served when others have gone"
        assert server.stderr().count("more have to wait") == 1
    finally:
        for frames in crowd:
            frames.close()
        server.end()
