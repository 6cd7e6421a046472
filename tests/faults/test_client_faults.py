"""Clients that go away at any moment, send slowly, or are many: the others are served, and nothing of them stays."""

import contextlib
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually
from watch import StartWatch, clients

from kaas import wire
from kaas.client import split_address
from kaas.wire import Request

pytest_plugins = "watching"

FRAME = wire.encode_request(Request(wire.INVOKE, b"", 1))
MANY = 2000


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_clients_gone_before_and_in_the_middle_of_a_request(watch: StartWatch, reset: bool) -> None:
    one = watch("faulty", "-m", "1", "--message-size", "1000")
    long = wire.encode_request(Request(wire.INVOKE, bytes(1000), 1))
    for length in (*range(len(FRAME)), len(FRAME) + 1, len(long) - 1):
        with one.client() as client:
            client.socket.sendall(long[:length])
            if reset:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert one.invoke().status == "ok"
    assert one.server.counters()["accepted"] == 1


def test_clients_gone_while_queued_and_while_served(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "2", "--when-full", "queue")
    with one.client() as served, one.client() as queued:
        served.wait(gate)
        served.wait(gate)
        one.wait_until_busy(2)
        for _ in range(3):
            queued.ask(b"")
        stays = one.client()
        waits = stays.ask(b"")
        eventually(lambda: one.server.status()["queued"] == 4)
        queued.close()
        eventually(lambda: one.server.status()["queued"] == 1)
    eventually(lambda: one.server.counters().get("abandoned") == 5)
    assert one.server.status()["in_flight"] == 1
    gate.touch()
    assert stays.reply(waits).status == "ok"


def test_a_client_that_does_not_take_its_replies(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "3", "--when-full", "queue")
    size = 8 * 1024 * 1024
    client = one.client()
    asked = [client.ask(f"zeros {size}") for _ in range(2)]
    one.wait_until_busy(2)  # and so they stay, since what they reply is not held here
    assert one.invoke().status == "ok"
    asked += [client.ask(f"zeros {size}") for _ in range(6)]
    assert {len(client.reply(number).payload) for number in asked} == {size}


@pytest.mark.parametrize("pause", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_client_that_sends_byte_by_byte(watch: StartWatch, pause: float) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    *all_but_the_last, last = FRAME
    for byte in all_but_the_last:
        client.socket.sendall(bytes([byte]))
        time.sleep(pause)
        assert one.invoke().status == "ok"
    client.socket.sendall(bytes([last]))  # and it takes the only worker
    client.asked.add(1)
    assert client.reply(1).status == "ok"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process have as many connections as these tests make."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 200
    if hard not in {-1, resource.RLIM_INFINITY} and hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors here, and this takes {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_thousands_of_idle_connections_beside_busy_ones(watch: StartWatch) -> None:
    one = watch("faulty", "-g", "2", "-m", "4", "--when-full", "queue", "--max-queue", "10000")
    address = split_address(one.server.address)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(MANY)]
        with clients(one, 32) as busy:
            asked = {client: [client.ask(b"") for _ in range(25)] for client in busy}
            for client, numbers in asked.items():
                assert {client.reply(number).status for number in numbers} == {"ok"}
        for connection in idle[::100]:
            connection.sendall(FRAME[:-1])
