"""Streams of frames, sound and damaged, what a server must make of them, and an exchange that checks that it does.

One generator serves hypothesis, which shrinks what it finds, and `benchmarks/fuzz.py`, which sends very many.
"""

import socket
import struct
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from kaas import wire
from kaas.wire import Reply, Request

MESSAGE_SIZE = 4096
"""What a server that is sent these must have as --message-size."""
LEGITIMATE = {"ok", "kernel_error", "timeout"}
"""Statuses that a sound invocation may get from a server that queues."""

_HEADER = 24
_LENGTH_AT = 16
_STATUS_ANSWER = b'{"in_flight": '


class Stream(NamedTuple):
    """Bytes for one connection, and of which kinds the frames are that they were made of."""

    kinds: list[str]
    data: bytes


class Expected(NamedTuple):
    """What must be answered: invocations and status queries by their ids, and `bad_request` if the rest is no frame."""

    invocations: list[int]
    queries: list[int]
    refused: bool


class Exchanged(NamedTuple):
    """What became of a stream: invocations in it, and the answers to them, with `bad_request` if there was one."""

    asked: int
    received: Counter[str]


def make_stream(random: Random) -> Stream:
    """Draw some frames, glued together."""
    kinds = [random.choice(list(_KINDS)) for _ in range(random.randint(1, 5))]
    return Stream(kinds, b"".join(_KINDS[kind](random) for kind in kinds))


def expected(data: bytes) -> Expected:
    """Read a stream by the table in kaas/wire.py, not by its code."""
    ids: dict[int, list[int]] = {wire.TOKEN: [], wire.INVOKE: [], wire.STATUS: []}
    refused = False
    while data and not refused:
        header = data[:_HEADER]
        refused = header[:4] != b"KaaS"[: len(header)]
        if refused or len(header) < _HEADER:
            break
        kind, number, length = header[5], int.from_bytes(header[8:12], "big"), int.from_bytes(header[16:], "big")
        refused = header[4] != 1 or length > MESSAGE_SIZE
        if refused or len(data) < _HEADER + length:
            break
        refused = kind not in ids or header[6:8] != bytes(2)
        if not refused:
            ids[kind].append(number)
        data = data[_HEADER + length :]
    return Expected(ids[wire.INVOKE], ids[wire.STATUS], refused)


def exchange(address: tuple[str, int], data: bytes, limit: float) -> Exchanged:
    """Send a stream, take the answers that are due, and check them and that the connection then ends.

    Raises:
        AssertionError: the server does not do what it must.
        OSError: the connection fails otherwise than by its end.
    """
    due = expected(data)
    number = len(due.invocations) + len(due.queries)
    with socket.create_connection(address, timeout=limit) as connection:
        connection.sendall(data)
        replies = _read(connection, lambda got: not due.refused and len(got) >= number)
        if not due.refused:
            # An end of what we send is taken for our going, so that the server closes, too: nothing more may come.
            connection.shutdown(socket.SHUT_WR)
            replies += _read(connection, lambda _: False)
    told = f"{data!r} got {replies}"
    received = Counter(reply.status for reply in replies if not reply.payload.startswith(_STATUS_ANSWER))
    answered = Counter(reply.id for reply in replies if reply.status != "bad_request")
    if due.refused:
        assert received["bad_request"] == 1, told
        assert replies[-1].status == "bad_request", told
        assert answered <= Counter(due.invocations + due.queries), told
    else:
        assert received["bad_request"] == 0, told
        assert answered == Counter(due.invocations + due.queries), told
    assert set(received) <= LEGITIMATE | {"bad_request"}, told
    return Exchanged(len(due.invocations), received)


def _read(connection: socket.socket, enough: Callable[[list[Reply]], bool]) -> list[Reply]:
    decoder, replies = wire.reply_decoder(), list[Reply]()
    while not enough(replies):
        data = connection.recv(65536)
        if not data:
            break
        replies += decoder.feed(data)
    assert not decoder.mid_frame
    return replies


def _sound(random: Random) -> bytes:
    kind = random.choice((wire.INVOKE, wire.INVOKE, wire.STATUS, wire.TOKEN))
    payload = random.randbytes(random.choice((0, 1, 20, 200))) if kind == wire.INVOKE else b""
    return wire.encode_request(Request(kind, payload, random.getrandbits(32), random.choice((0.0, 0.001, 60.0))))


def _mutated(random: Random) -> bytes:
    frame = bytearray(_sound(random))
    for _ in range(random.randint(1, 3)):
        frame[random.randrange(len(frame))] = random.getrandbits(8)
    return bytes(frame)


def _truncated(random: Random) -> bytes:
    frame = _sound(random)
    return frame[: random.randrange(len(frame))]


def _oversized(random: Random) -> bytes:
    frame = bytearray(_sound(random)[:_HEADER])
    over = random.choice((1, 100, 65536))
    announced = random.choice((MESSAGE_SIZE + over, 2**63, 2**64 - 1))
    struct.pack_into("!Q", frame, _LENGTH_AT, announced)
    return bytes(frame) + bytes(random.choice((0, MESSAGE_SIZE + over)))


def _random(random: Random) -> bytes:
    return random.randbytes(random.choice((1, 4, _HEADER - 1, _HEADER, _HEADER + 1, 100, 1000)))


def _random_length(random: Random) -> bytes:
    frame = bytearray(_sound(random))
    struct.pack_into("!Q", frame, _LENGTH_AT, random.randint(0, 2 * MESSAGE_SIZE))
    return bytes(frame)


def _glued(random: Random) -> bytes:
    first, second = _sound(random), _sound(random)
    return first[: random.randrange(len(first))] + second[random.randrange(len(second)) :]


_KINDS: dict[str, Callable[[Random], bytes]] = {
    "sound": _sound,
    "mutated": _mutated,
    "truncated": _truncated,
    "oversized": _oversized,
    "random": _random,
    "random length": _random_length,
    "glued": _glued,
}
