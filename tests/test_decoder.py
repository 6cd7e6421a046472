import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaas import wire
from kaas.decoder import LARGE
from kaas.passing import Piece
from kaas.wire import Request

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        yield data[begin:end]


SIZES = st.integers(-2, 2).map(lambda more: LARGE + more) | st.integers(0, 40 * LARGE)


@patient
@given(st.lists(SIZES, max_size=3), st.lists(st.integers(0, 10**7), max_size=8))
def test_large_payloads_that_arrive_in_any_pieces_are_the_same(sizes: list[int], cuts: list[int]) -> None:
    sent = [Request(wire.INVOKE, (b"%09d," % size) * (size // 10), size) for size in sizes]
    stream = b"".join(map(wire.encode_request, sent))
    decoder = wire.request_decoder()
    assert [request for piece in pieces(stream, cuts) for request in decoder.feed(piece)] == sent
    assert not decoder.mid_frame


class Taken:
    def __init__(self) -> None:
        self.got = bytearray()

    def write(self, data: Piece) -> None:
        self.got += data

    def is_closing(self) -> bool:
        return False


@patient
@given(st.lists(SIZES, max_size=3), st.lists(st.integers(0, 10**7), max_size=8))
def test_frames_that_are_passed_on_are_the_same_bytes(sizes: list[int], cuts: list[int]) -> None:
    sent = [Request(wire.INVOKE, b"x" * size, size, 1.5) for size in sizes]
    stream = b"".join(map(wire.encode_request, sent))
    decoder, taken = wire.request_frames(), Taken()
    got = []
    for piece in pieces(stream, cuts):
        for request in decoder.feed(piece):
            got.append(request)
            for begin in request.frame:
                taken.write(begin)
            if request.rest is not None:
                request.rest.hand_on(taken)
    assert taken.got == stream
    assert [(request.kind, request.id, request.timeout) for request in got] == [(1, size, 1.5) for size in sizes]
    assert not decoder.mid_frame


def test_a_large_frame_that_is_passed_on_is_given_when_its_header_has_come() -> None:
    decoder = wire.request_frames()
    stream = wire.encode_request(Request(wire.INVOKE, bytes(LARGE), 7))
    assert list(decoder.feed(stream[:23])) == []
    (request,) = decoder.feed(stream[23:24])
    assert (request.id, request.rest and request.rest.left) == (7, LARGE)
    assert list(decoder.feed(stream[24:])) == []
    (following,) = decoder.feed(wire.encode_request(Request(wire.INVOKE, b"x", 8)))
    assert (following.id, following.rest, following.payload) == (8, None, b"x")


def test_room_is_given_for_a_small_multiple_of_what_has_come() -> None:
    decoder = wire.request_decoder(10**15)
    header = wire.encode_request(Request(wire.INVOKE, b""))[:-8] + (10**12).to_bytes(8, "big")
    come = len(list(decoder.feed(header)))
    assert decoder.mid_frame
    for _ in range(3):
        room = len(decoder.buffer())
        assert room <= max(8 * come, 2**20)
        assert list(decoder.received(room)) == []
        come += room


@pytest.mark.parametrize("size", [0, 100, LARGE - 1, LARGE, 5_000_000])
def test_frames_are_received_from_a_blocking_socket_until_its_end(size: int) -> None:
    sent = [Request(wire.INVOKE, bytes([number]) * size, number) for number in range(1, 4)]
    ours, theirs = socket.socketpair()
    with ours:

        def send() -> None:
            with theirs:
                for request in sent:
                    for piece in wire.request_pieces(request):
                        theirs.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        decoder = wire.request_decoder()
        got: list[Request] = []
        while (requests := decoder.receive(ours)) is not None:
            got += requests
        sender.join()
    assert got == sent
