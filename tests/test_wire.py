from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaas import wire
from kaas.decoder import LARGE, MAGIC, VERSION, Decoder
from kaas.errors import FrameError
from kaas.wire import Reply, Request

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

REQUEST_HEADER, REPLY_HEADER = 24, 44
IDS = st.integers(0, 2**32 - 1)
NUMBERS = st.none() | st.integers(0, 2**31 - 1)
NANOSECONDS = st.integers(0, 2**64 - 1)

requests = st.builds(
    Request,
    kind=st.sampled_from(wire.KINDS),
    payload=st.binary(max_size=100),
    id=IDS,
    # Eighths of a second are whole milliseconds, and exact as a float.
    timeout=st.integers(0, 10**6).map(lambda number: number / 8),
)
replies = st.builds(
    Reply,
    status=st.sampled_from(wire.STATUSES),
    payload=st.binary(max_size=100),
    id=IDS,
    cold_start=st.booleans(),
    waited_for_boot=st.booleans(),
    gpu=NUMBERS,
    worker=NUMBERS,
    queued_ns=NANOSECONDS,
    kernel_ns=NANOSECONDS,
)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        yield data[begin:end]


def decode_requests(data: bytes, limit: int = wire.DEFAULT_LIMIT) -> list[Request]:
    return list(wire.request_decoder(limit).feed(data))


# Every field comes back


@patient
@given(requests)
def test_a_request_comes_back_with_every_field(request: Request) -> None:
    frame = wire.encode_request(request)
    assert len(frame) == REQUEST_HEADER + len(request.payload)
    assert decode_requests(frame) == [request]


@patient
@given(replies)
def test_a_reply_comes_back_with_every_field(reply: Reply) -> None:
    frame = wire.encode_reply(reply)
    assert len(frame) == REPLY_HEADER + len(reply.payload)
    assert list(wire.reply_decoder().feed(frame)) == [reply]


def test_a_request_lies_on_the_wire_as_the_docstring_says() -> None:
    frame = wire.encode_request(Request(wire.INVOKE, b"input", id=7, timeout=1.5))
    assert frame == (
        b"KaaS"  # magic
        b"\x01"  # version
        b"\x01"  # kind: invocation
        b"\0\0"
        b"\0\0\0\x07"  # id
        b"\0\0\x05\xdc"  # 1500 ms
        b"\0\0\0\0\0\0\0\x05"  # length
        b"input"
    )


def test_a_reply_lies_on_the_wire_as_the_docstring_says() -> None:
    frame = wire.encode_reply(Reply("rejected", b"full", id=7, waited_for_boot=True, worker=2, kernel_ns=9))
    assert frame == (
        b"KaaS\x01"  # magic and version
        b"\x01"  # status: rejected
        b"\x02"  # flags: waited for boot
        b"\0"
        b"\0\0\0\x07"  # id
        b"\xff\xff\xff\xff"  # no GPU
        b"\0\0\0\x02"  # worker
        b"\0\0\0\0\0\0\0\0"  # queued
        b"\0\0\0\0\0\0\0\x09"  # in the kernel
        b"\0\0\0\0\0\0\0\x04"  # length
        b"full"
    )


@pytest.mark.parametrize("size", [5, LARGE])
def test_what_only_the_server_knows_is_filled_in_and_the_rest_stays(size: int) -> None:
    (reply,) = wire.reply_frames().feed(wire.encode_reply(Reply("kernel_error", b"x" * size, kernel_ns=9)))
    server = {"id": 7, "cold_start": True, "waited_for_boot": True, "gpu": 3, "worker": 14, "queued_ns": 2**40}
    wire.complete_reply(reply.frame, server.pop("id"), **server)  # type: ignore[arg-type]
    (read,) = wire.reply_decoder().feed(b"".join(reply.frame))
    assert read == Reply("kernel_error", b"x" * size, 7, kernel_ns=9, **server)  # type: ignore[arg-type]


# A stream in any pieces


@patient
@given(st.lists(requests, max_size=4), st.lists(st.integers(0, 10**4), max_size=8))
def test_requests_that_arrive_in_any_pieces_are_the_same_requests(sent: list[Request], cuts: list[int]) -> None:
    decoder = wire.request_decoder()
    stream = b"".join(map(wire.encode_request, sent))
    got = [request for piece in pieces(stream, cuts) for request in decoder.feed(piece)]
    assert got == sent
    assert not decoder.mid_frame


@patient
@given(st.lists(replies, max_size=4), st.lists(st.integers(0, 10**4), max_size=8))
def test_replies_that_arrive_in_any_pieces_are_the_same_replies(sent: list[Reply], cuts: list[int]) -> None:
    decoder = wire.reply_decoder()
    stream = b"".join(map(wire.encode_reply, sent))
    got = [reply for piece in pieces(stream, cuts) for reply in decoder.feed(piece)]
    assert got == sent
    assert not decoder.mid_frame


def test_frames_byte_by_byte_are_the_same_frames() -> None:
    sent = [Request(wire.INVOKE, b"one", 1), Request(wire.STATUS, b"", 2), Request(wire.INVOKE, b"three", 3)]
    decoder = wire.request_decoder()
    stream = b"".join(map(wire.encode_request, sent))
    assert [request for byte in stream for request in decoder.feed(bytes([byte]))] == sent


def test_several_frames_in_one_piece_all_come_out_at_once() -> None:
    sent = [Request(wire.INVOKE, bytes([number]) * number, number) for number in range(5)]
    assert decode_requests(b"".join(map(wire.encode_request, sent))) == sent


def test_a_frame_is_given_as_soon_as_its_last_byte_is_there_and_not_before() -> None:
    decoder = wire.request_decoder()
    frame = wire.encode_request(Request(wire.INVOKE, b"input", 1))
    following = wire.encode_request(Request(wire.INVOKE, b"next", 2))
    assert list(decoder.feed(frame[:-1])) == []
    assert decoder.mid_frame
    assert [request.id for request in decoder.feed(frame[-1:] + following[:10])] == [1]
    assert decoder.mid_frame
    assert [request.id for request in decoder.feed(following[10:])] == [2]
    assert not decoder.mid_frame


def test_a_payload_that_looks_like_a_frame_is_a_payload() -> None:
    inner = wire.encode_request(Request(wire.INVOKE, b"inner", 1))
    outer = Request(wire.INVOKE, inner, 2)
    assert decode_requests(wire.encode_request(outer)) == [outer]


# What is no frame


@pytest.mark.parametrize(
    "stream",
    [
        b"\0",  # wrong at its first byte
        b"GET / HTTP/1.1\r\n\r\n",  # a browser
        b"Ka!",  # wrong at its third byte, and shorter than the magic
        b"KaaX",  # wrong at its fourth byte
        b"KAAS" + bytes(20),  # a whole header of the wrong magic
    ],
)
def test_bytes_without_the_magic_are_refused_at_once(stream: bytes) -> None:
    with pytest.raises(FrameError, match="not a KaaS frame"):
        decode_requests(stream)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_magic_that_goes_wrong_in_a_later_piece_is_refused_with_the_whole_header(first: int) -> None:
    decoder = wire.request_decoder()
    stream = b"KaaX" + bytes(20)
    list(decoder.feed(stream[:first]))
    with pytest.raises(FrameError, match="not a KaaS frame"):
        list(decoder.feed(stream[first:]))


def test_bytes_without_the_magic_after_a_whole_frame_are_refused_after_that_frame() -> None:
    frames = wire.request_decoder().feed(wire.encode_request(Request(wire.INVOKE, b"one", 1)) + b"rubbish")
    assert next(frames).payload == b"one"
    with pytest.raises(FrameError, match="not a KaaS frame"):
        next(frames)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_and_both_versions_are_named(version: int) -> None:
    frame = bytearray(wire.encode_request(Request(wire.INVOKE, b"", 1)))
    frame[4] = version
    with pytest.raises(FrameError, match=f"version {version}.*version {VERSION}"):
        decode_requests(bytes(frame))


@pytest.mark.parametrize("kind", [3, 255])
def test_an_unknown_kind_is_refused_with_the_id_of_its_request(kind: int) -> None:
    with pytest.raises(FrameError, match=f"kind {kind}") as caught:
        decode_requests(wire.encode_request(Request(kind, b"", 77)))
    assert caught.value.request_id == 77


@pytest.mark.parametrize("decode", [wire.request_decoder, wire.request_frames])
@pytest.mark.parametrize("at", [6, 7])
def test_reserved_bytes_that_are_not_zero_are_refused_with_the_id_of_their_request(
    decode: Callable[[], "Decoder[object]"], at: int
) -> None:
    frame = bytearray(wire.encode_request(Request(wire.INVOKE, b"x", 77)))
    frame[at] = 1
    with pytest.raises(FrameError, match="reserved bytes") as caught:
        list(decode().feed(bytes(frame)))
    assert caught.value.request_id == 77


@pytest.mark.parametrize("status", [len(wire.STATUSES), 255])
def test_an_unknown_status_is_refused_with_the_id_of_its_request(status: int) -> None:
    frame = bytearray(wire.encode_reply(Reply("ok", b"", 78)))
    frame[5] = status
    with pytest.raises(FrameError, match=f"status {status}") as caught:
        list(wire.reply_decoder().feed(bytes(frame)))
    assert caught.value.request_id == 78


def test_a_payload_over_the_limit_is_refused_by_its_header_alone() -> None:
    frame = wire.encode_request(Request(wire.INVOKE, bytes(101), 79))
    with pytest.raises(FrameError, match="101 bytes is over the limit of 100") as caught:
        decode_requests(frame[:REQUEST_HEADER], limit=100)
    assert caught.value.request_id == 79


def test_a_payload_of_just_the_limit_is_taken() -> None:
    request = Request(wire.INVOKE, bytes(100), 1)
    assert decode_requests(wire.encode_request(request), limit=100) == [request]


def feed_whatever(decoder: "Decoder[Request] | Decoder[Reply]", stream: bytes, cuts: list[int]) -> None:
    problem = "none"
    try:
        for piece in pieces(stream, cuts):
            for frame in decoder.feed(piece):
                assert isinstance(frame, Request | Reply)
    except FrameError as error:
        problem = str(error)
    assert len(problem.splitlines()) == 1


garbage = st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: MAGIC + bytes([VERSION]) + tail)


@patient
@given(garbage, st.lists(st.integers(0, 200), max_size=4))
def test_garbage_raises_nothing_but_frame_errors(stream: bytes, cuts: list[int]) -> None:
    feed_whatever(wire.request_decoder(100), stream, cuts)
    feed_whatever(wire.reply_decoder(), stream, cuts)


@patient
@given(replies, st.integers(0, REPLY_HEADER - 1), st.integers(0, 255))
def test_a_damaged_byte_in_a_header_raises_nothing_but_frame_errors(reply: Reply, at: int, value: int) -> None:
    frame = bytearray(wire.encode_reply(reply))
    frame[at] = value
    feed_whatever(wire.reply_decoder(), bytes(frame), [])


# Timeouts


@patient
@given(st.floats(0.0, wire.MAX_TIMEOUT))
def test_a_timeout_is_rounded_up_to_milliseconds_and_never_becomes_none(timeout: float) -> None:
    (request,) = decode_requests(wire.encode_request(Request(wire.INVOKE, b"", 1, timeout)))
    assert (request.timeout == 0.0) == (timeout == 0.0)
    assert timeout <= request.timeout * (1 + 1e-12) + 1e-12
    assert request.timeout <= timeout + 0.001 + 1e-9


def test_the_shortest_timeout_is_a_millisecond_and_the_longest_fits() -> None:
    for asked, given_back in ((5e-324, 0.001), (1e-9, 0.001), (0.001, 0.001), (wire.MAX_TIMEOUT, wire.MAX_TIMEOUT)):
        (request,) = decode_requests(wire.encode_request(Request(wire.INVOKE, b"", 1, asked)))
        assert request.timeout == given_back
