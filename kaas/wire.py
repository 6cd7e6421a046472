"""The frame on a TCP connection: its one description, encode and decode. No sockets live here.

A connection carries frames back to back, in both directions, any number of them. All numbers are big-endian. Nothing
is ever unpickled or evaluated: a payload is bytes for the kernel, or JSON, or text.

After `bad_request` and `unauthorized` the server answers nothing more and closes the connection. A client that shuts
down its sending side is taken for gone. Either way its invocations that are not answered yet are abandoned.

Request, 24 bytes and the payload:

| offset | size | field   | meaning                                                                       |
| ------ | ---- | ------- | ----------------------------------------------------------------------------- |
| 0      | 4    | magic   | `KaaS`                                                                        |
| 4      | 1    | version | 1                                                                             |
| 5      | 1    | kind    | 0 token (no reply unless it is wrong), 1 invocation, 2 status query           |
| 6      | 2    |         | 0; anything else is a `bad_request`, so that it can get a meaning             |
| 8      | 4    | id      | chosen by the client, echoed in the reply; replies may come in another order  |
| 12     | 4    | timeout | milliseconds after which the answer is `timeout`; 0 for none                  |
| 16     | 8    | length  | of the payload: the token, the kernel's input, or nothing                     |

Reply, 44 bytes and the payload:

| offset | size | field   | meaning                                                                       |
| ------ | ---- | ------- | ----------------------------------------------------------------------------- |
| 0      | 4    | magic   | `KaaS`                                                                        |
| 4      | 1    | version | 1                                                                             |
| 5      | 1    | status  | index into `STATUSES`                                                         |
| 6      | 1    | flags   | 1 cold start, 2 waited for boot                                               |
| 7      | 1    |         | 0                                                                             |
| 8      | 4    | id      | of the request                                                                |
| 12     | 4    | gpu     | number of the GPU that served it, -1 if none did                              |
| 16     | 4    | worker  | number of the worker that served it, -1 if none did                           |
| 20     | 8    | queued  | nanoseconds from acceptance until a worker had it                             |
| 28     | 8    | kernel  | nanoseconds in the kernel's `call`                                            |
| 36     | 8    | length  | of the payload: the kernel's output, the status as JSON, or an error text     |

Server and worker talk in the same frames over their link.
"""

import math
import struct
from typing import NamedTuple

from kaas.decoder import LARGE, PREFIX, Decoder, Fields, Large
from kaas.errors import FrameError
from kaas.passing import Passing, Piece

TOKEN, INVOKE, STATUS = range(3)
KINDS = (TOKEN, INVOKE, STATUS)
STATUSES = (
    "ok",
    "rejected",
    "kernel_error",
    "worker_lost",
    "timeout",
    "bad_request",
    "unauthorized",
    "shutting_down",
)
NO_GPU = "no GPU is left"
"""How the error of a refusal begins that is for good: all GPUs have been left out."""
DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes that a payload may have unless the server is told otherwise."""
MAX_TIMEOUT = (2**32 - 1) / 1000
"""Seconds: the longest timeout that fits the frame (49 days)."""

_REQUEST = struct.Struct("!5sBHIIQ")
_REPLY = struct.Struct("!5sBBxIiiQQQ")
_COMPLETION = struct.Struct("!BxIiiQ")
"""The part of a reply's header that the server fills in: flags, id, gpu, worker, queued."""
_COMPLETION_AT = 6
_CODES = {status: code for code, status in enumerate(STATUSES)}
_COLD_START, _WAITED_FOR_BOOT = 1, 2


Pieces = list[Piece]
"""A frame, in one piece; or header and payload, if that is large; or what has come of it, if the rest is to pass."""


class Request(NamedTuple):
    """A request as it came; `timeout` in seconds, 0.0 for none."""

    kind: int
    payload: bytes = b""
    id: int = 0
    timeout: float = 0.0


class Reply(NamedTuple):
    """A reply: `payload` is the kernel's output if `status` is `ok`, else an error text in UTF-8."""

    status: str
    payload: bytes = b""
    id: int = 0
    cold_start: bool = False
    waited_for_boot: bool = False
    gpu: int | None = None
    worker: int | None = None
    queued_ns: int = 0
    kernel_ns: int = 0

    @property
    def error(self) -> str:
        """Why it was not served, whatever bytes the text is made of; empty if it was."""
        return "" if self.status == "ok" else self.payload.decode(errors="backslashreplace")


class RequestFrame(NamedTuple):
    """A request for who passes it on: what its header says, and as much of it as has come."""

    kind: int
    id: int
    timeout: float
    frame: Pieces
    rest: Passing | None = None

    @property
    def payload(self) -> bytes:
        """A copy of what it carries, as far as it has come."""
        return b"".join(self.frame)[_REQUEST.size :]


class ReplyFrame(NamedTuple):
    """A reply for who passes it on."""

    status: str
    kernel_ns: int
    frame: Pieces
    rest: Passing | None = None

    @property
    def payload(self) -> bytes:
        """A copy of what it carries, as far as it has come."""
        return b"".join(self.frame)[_REPLY.size :]

    @property
    def text(self) -> str:
        """What it carries if it is an error text, whatever bytes that is made of."""
        return self.payload.decode(errors="backslashreplace")


def encode_request(request: Request) -> bytes:
    """Write a request as one frame."""
    return b"".join(request_pieces(request))


def request_pieces(request: Request) -> Pieces:
    """Write a request's frame; a large payload stays a piece of its own, and is not copied."""
    kind, payload, request_id, timeout = request
    # Rounded up, since a timeout that was asked for must not become 0, which means none; but 0.07 s are 70 ms.
    milliseconds = math.ceil(round(timeout * 1000, 6)) or 1 if timeout else 0
    return _pieces(_REQUEST.pack(PREFIX, kind, 0, request_id, milliseconds, len(payload)), payload)


def encode_reply(reply: Reply) -> bytes:
    """Write a reply as one frame."""
    status, payload, request_id, cold_start, waited_for_boot, gpu, worker, *times_ns = reply
    flags = _COLD_START * cold_start | _WAITED_FOR_BOOT * waited_for_boot
    numbers = [-1 if number is None else number for number in (gpu, worker)]
    return _REPLY.pack(PREFIX, _CODES[status], flags, request_id, *numbers, *times_ns, len(payload)) + payload


def reply_pieces(status: str, payload: bytes, request_id: int = 0, kernel_ns: int = 0) -> Pieces:
    """Write the frame of a reply of which no more is known, in the pieces of `request_pieces`."""
    return _pieces(_REPLY.pack(PREFIX, _CODES[status], 0, request_id, -1, -1, 0, kernel_ns, len(payload)), payload)


def complete_reply(
    frame: Pieces, request_id: int, *, cold_start: bool, waited_for_boot: bool, gpu: int, worker: int, queued_ns: int
) -> None:
    """Fill in what only the server knows, `gpu` and `worker` -1 for none; the rest stays as it is."""
    frame[0] = header = bytearray(frame[0])
    flags = _COLD_START * cold_start | _WAITED_FOR_BOOT * waited_for_boot
    _COMPLETION.pack_into(header, _COMPLETION_AT, flags, request_id, gpu, worker, queued_ns)


def id_of(frame: Pieces) -> bytes:
    """Give the id of a request's or a reply's frame, to be compared with another's."""
    return bytes(frame[0][8:12])


def _pieces(header: bytes, payload: bytes) -> Pieces:
    return [header + payload] if len(payload) < LARGE else [header, payload]


def _request(fields: Fields, begin: bytes, large: Large | None) -> Request:
    _, kind, reserved, request_id, milliseconds, _ = fields
    if reserved or kind not in KINDS:
        raise _no_request(fields)
    payload = begin[_REQUEST.size :] if large is None else large.payload()
    return Request(kind, payload, request_id, milliseconds / 1000)


def _request_frame(fields: Fields, begin: bytes, rest: Passing | None) -> RequestFrame:
    _, kind, reserved, request_id, milliseconds, _ = fields
    if reserved or kind not in KINDS:
        raise _no_request(fields)
    return RequestFrame(kind, request_id, milliseconds / 1000, [begin], rest)


def _reply(fields: Fields, begin: bytes, large: Large | None) -> Reply:
    _, code, flags, request_id, gpu, worker, queued_ns, kernel_ns, _ = fields
    if code >= len(STATUSES):
        raise _no_reply(fields)
    return Reply(
        STATUSES[code],
        begin[_REPLY.size :] if large is None else large.payload(),
        request_id,
        flags & _COLD_START != 0,
        flags & _WAITED_FOR_BOOT != 0,
        gpu if gpu >= 0 else None,
        worker if worker >= 0 else None,
        queued_ns,
        kernel_ns,
    )


def _reply_frame(fields: Fields, begin: bytes, rest: Passing | None) -> ReplyFrame:
    _, code, _, _, _, _, _, kernel_ns, _ = fields
    if code >= len(STATUSES):
        raise _no_reply(fields)
    return ReplyFrame(STATUSES[code], kernel_ns, [begin], rest)


def _no_request(fields: Fields) -> FrameError:
    _, kind, reserved, request_id, _, _ = fields
    if reserved:
        return FrameError(f"a request whose reserved bytes are {reserved}, and must be 0", request_id)
    return FrameError(f"a request of kind {kind}, which is none of {KINDS}", request_id)


def _no_reply(fields: Fields) -> FrameError:
    return FrameError(f"a reply of status {fields[1]}, which is none of 0 to {len(STATUSES) - 1}", fields[3])


def request_decoder(limit: int = DEFAULT_LIMIT) -> Decoder[Request]:
    """Make a decoder of requests, for the worker's side."""
    return Decoder(_REQUEST, _request, limit)


def reply_decoder(limit: int = 2**63) -> Decoder[Reply]:
    """Make a decoder of replies, for the client's side."""
    return Decoder(_REPLY, _reply, limit)


def request_frames(limit: int = DEFAULT_LIMIT) -> Decoder[RequestFrame]:
    """Make a decoder of requests that are passed on, for the server's side to its clients."""
    return Decoder(_REQUEST, _request_frame, limit, passes=True)


def reply_frames() -> Decoder[ReplyFrame]:
    """Make a decoder of replies that are passed on, for the server's side to its workers."""
    return Decoder(_REPLY, _reply_frame, 2**63, passes=True)
