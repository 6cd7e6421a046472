"""Large payloads, which pass through the server in pieces: whoever stops half-way holds up nobody else."""

import contextlib
import os
import select
import signal
import socket
import struct
import threading
from pathlib import Path

import psutil
import pytest
from support import StartServer, eventually
from watch import Client, StartWatch, Watch

from kaas import wire
from kaas.wire import Request

pytest_plugins = "watching"

SIZE = 8 * 1024 * 1024
"""More than fits in between."""
PAYLOAD = b"nothing " + bytes(SIZE)
HALF = SIZE // 2
LARGE_REPLY = f"zeros {SIZE}"


def lost(one: Watch) -> list[str]:
    return [event.detail for event in one.server.events() if event.event == "lost"]


def leave(client: Client, reset: bool) -> None:
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_request_has_its_place_when_its_header_has_come_and_the_others_are_served_meanwhile(
    watch: StartWatch,
) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    number, rest = client.begin(PAYLOAD, 0)
    one.wait_until_busy(1)
    assert [one.invoke().status for _ in range(3)] == ["ok"] * 3
    client.socket.sendall(rest)
    assert client.reply(number).status == "ok"
    assert lost(one) == []


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_client_gone_with_half_a_request_sent_takes_its_worker_with_it_and_no_other(
    watch: StartWatch, reset: bool
) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    client.begin(PAYLOAD, HALF)
    one.wait_until_busy(1)
    leave(client, reset)
    eventually(lambda: lost(one))
    assert one.invoke().status == "ok"
    one.wait_until_idle(2)
    assert lost(one) == ["its client left, or ran out of time, with half a request sent"]


def test_a_request_of_which_half_has_come_in_time_is_answered_timeout_and_its_connection_goes_on(
    watch: StartWatch,
) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    number, rest = client.begin(PAYLOAD, HALF, timeout=0.2)
    assert client.reply(number).status == "timeout"
    eventually(lambda: lost(one))
    assert one.invoke().status == "ok", "its place is free"
    client.socket.sendall(rest)
    assert client.reply(client.ask(b"")).status == "ok"


def test_a_request_without_a_place_is_rejected_at_once_and_the_rest_of_it_is_dropped(
    watch: StartWatch, gate: Path
) -> None:
    one = watch("faulty", "-m", "1")
    busy, client = one.client(), one.client()
    held = busy.wait(gate)
    one.wait_until_busy(1)
    number, rest = client.begin(PAYLOAD, HALF)
    assert client.reply(number).status == "rejected"
    client.socket.sendall(rest)
    assert client.reply(client.ask(PAYLOAD)).status == "rejected"
    gate.touch()
    assert busy.reply(held).status == "ok"
    one.wait_until_idle(1)
    assert client.reply(client.ask(b"")).status == "ok"


def test_a_worker_that_dies_with_half_a_request_is_lost_at_once_and_the_rest_is_dropped(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1")
    assert one.invoke().status == "ok"
    (worker,) = one.wait_until_idle(1)
    client = one.client()
    number, rest = client.begin(PAYLOAD, HALF)
    one.wait_until_busy(1)
    os.kill(worker["pid"], signal.SIGKILL)
    assert client.reply(number).status == "worker_lost"
    client.socket.sendall(rest)
    assert client.reply(client.ask(b"")).status == "ok"


def test_a_worker_that_takes_nothing_more_holds_up_its_client_and_nobody_else(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    number, rest = client.begin(PAYLOAD, 0)
    one.wait_until_busy(1)
    (worker,) = one.server.workers("busy")
    os.kill(worker["pid"], signal.SIGSTOP)
    sender = threading.Thread(target=client.socket.sendall, args=(rest,))
    sender.start()
    assert [one.invoke().status for _ in range(3)] == ["ok"] * 3
    os.kill(worker["pid"], signal.SIGCONT)
    assert client.reply(number).status == "ok"
    sender.join()


def test_a_request_that_waits_is_not_read_before_it_has_a_place(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "1", "--when-full", "queue")
    busy, client = one.client(), one.client()
    busy.wait(gate)
    one.wait_until_busy(1)
    number, rest = client.begin(PAYLOAD, 0)
    eventually(lambda: one.server.status()["queued"] == 1)
    client.socket.setblocking(False)
    left = memoryview(rest + bytes(64 * SIZE))
    while left and select.select([], [client.socket], [], 0.5)[1]:  # what the system holds is a small part
        left = left[client.socket.send(left) :]
    assert len(left) > 32 * SIZE
    client.closed = True  # what it has sent is no request any more
    client.close()
    late = one.client()
    number = late.ask(b"")
    gate.touch()
    assert late.reply(number).status == "ok"


def test_a_request_that_has_waited_is_taken_whole(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "1", "--when-full", "queue")
    busy, client = one.client(), one.client()
    busy.wait(gate)
    one.wait_until_busy(1)
    sender = threading.Thread(target=client.ask, args=(PAYLOAD,))
    sender.start()
    eventually(lambda: one.server.status()["queued"] == 1)
    gate.touch()
    sender.join()
    assert client.reply(1).status == "ok"
    assert lost(one) == []


def test_requests_and_queries_behind_a_large_request_are_answered(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2", "--when-full", "queue")
    client = one.client()
    numbers = [client.ask(payload) for payload in (PAYLOAD, b"", PAYLOAD, b"", PAYLOAD)]
    assert {client.reply(number).status for number in numbers} == {"ok"}


def test_a_client_that_takes_no_large_reply_holds_up_its_worker_and_no_other(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    number = client.ask(LARGE_REPLY)
    one.wait_until_busy(1)
    assert [one.invoke().status for _ in range(3)] == ["ok"] * 3
    assert len(one.server.workers("busy")) == 1
    assert client.reply(number).payload == bytes(SIZE)


def test_large_and_small_replies_to_one_client_come_one_after_the_other(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "4", "--when-full", "queue")
    client = one.client()
    sizes = [SIZE, 0, SIZE // 2, 10, SIZE, 1, SIZE // 2, 100]
    asked = {client.ask(f"zeros {size}"): size for size in sizes}
    assert [len(client.reply(number).payload) for number in asked] == sizes


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_client_gone_with_a_large_reply_not_taken_leaves_its_worker_as_it_is(watch: StartWatch, reset: bool) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    client.ask(LARGE_REPLY)
    client.socket.recv(1000, socket.MSG_PEEK)
    leave(client, reset)
    one.wait_until_idle(1)
    assert one.invoke().status == "ok"
    assert lost(one) == []


def test_a_worker_that_dies_with_half_a_reply_given_ends_the_connection_and_nothing_is_said_twice(
    watch: StartWatch,
) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    client.ask(LARGE_REPLY)
    client.socket.recv(1000, socket.MSG_PEEK)
    (worker,) = one.server.workers("busy")
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: one.server.counters().get("abandoned") == 1)
    with pytest.raises((ConnectionError, AssertionError)):
        client.reply(1)
    client.close()
    assert one.invoke().status == "ok"


def test_a_reply_that_is_not_taken_in_time_ends_its_connection_and_frees_its_worker(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    client.ask(LARGE_REPLY, timeout=0.5)
    client.socket.recv(1000, socket.MSG_PEEK)
    eventually(lambda: one.server.counters().get("abandoned") == 1)
    one.wait_until_idle(1)
    client.close()
    assert lost(one) == []


def test_a_reply_that_waits_for_its_turn_can_be_answered_timeout(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    asked = [client.ask(b"") for _ in range(2)]
    assert {client.reply(number).status for number in asked} == {"ok"}
    _, later = (worker["pid"] for worker in one.wait_until_idle(2))
    os.kill(later, signal.SIGSTOP)
    first, second = client.ask_together((LARGE_REPLY, 0.0), (LARGE_REPLY, 1.0))
    one.wait_until_busy(2)
    client.socket.recv(1000, socket.MSG_PEEK)
    os.kill(later, signal.SIGCONT)
    eventually(lambda: one.server.counters().get("timeout") == 1)
    assert (len(client.reply(first).payload), client.reply(second).status) == (SIZE, "timeout")


def test_a_call_timeout_holds_for_who_sends_and_who_takes_slowly(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2", "--call-timeout", "0.5")
    sends, takes = one.client(), one.client()
    number, _ = sends.begin(PAYLOAD, HALF)
    takes.ask(LARGE_REPLY)
    takes.socket.recv(1000, socket.MSG_PEEK)
    assert sends.reply(number).status == "timeout"
    eventually(lambda: one.server.counters().get("abandoned") == 1)
    for client in (sends, takes):
        client.close()


def test_a_server_that_ends_answers_half_a_request(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1", "--drain-timeout", "0.2")
    client = one.client()
    client.begin(PAYLOAD, HALF)
    one.wait_until_busy(1)
    one.send(signal.SIGTERM)
    assert client.reply(1).status == "shutting_down"


def test_what_is_wrong_behind_a_large_reply_that_passes_ends_the_connection(start_server: StartServer) -> None:
    server = start_server("faulty", "-m", "1")
    with server.frames() as frames:
        frames.invoke(LARGE_REPLY.encode())
        frames.socket.recv(1000, socket.MSG_PEEK)
        frames.socket.sendall(b"rubbish")

        def is_found() -> bool:  # once the client takes some more of the reply, if that has filled its connection
            with contextlib.suppress(OSError):
                frames.socket.recv(64 * 1024, socket.MSG_DONTWAIT)
            return bool(server.counters().get("bad_request"))

        eventually(is_found)
        eventually(lambda: server.workers("idle"))
        assert server.counters()["abandoned"] == 1


def test_the_server_holds_no_large_payload_however_many_send_and_take_one(start_server: StartServer) -> None:
    size, number = 32 * 1024 * 1024, 4
    server = start_server("echo", "-m", str(number))
    process = psutil.Process(server.process.pid)
    payload = bytes(size)
    with server.connection() as kaas:
        assert kaas.invoke(bytes(1024 * 1024)).status == "ok"
    before, most = process.memory_info().rss, 0
    frames = [server.frames() for _ in range(number)]
    senders = [threading.Thread(target=each.invoke, args=(payload,)) for each in frames]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        most = max(most, process.memory_info().rss - before)
    for each in frames:
        assert each.reply().payload == payload
        most = max(most, process.memory_info().rss - before)
        each.close()
    assert most < size
    assert server.counters()["ok"] == number + 1


def test_a_stranger_with_a_large_payload_is_sent_away(start_server: StartServer) -> None:
    server = start_server("echo", KAAS_TOKEN="secret")
    with server.frames() as frames:
        frames.socket.sendall(wire.encode_request(Request(wire.INVOKE, PAYLOAD, 7))[:1000])
        assert frames.reply(7).status == "unauthorized"


def test_a_token_of_any_length_is_taken(start_server: StartServer) -> None:
    token = 100_000 * "x"
    server = start_server("echo", KAAS_TOKEN=token)
    with server.connection(token) as kaas:
        assert kaas.invoke(PAYLOAD).payload == PAYLOAD
