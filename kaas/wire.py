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
| 6      | 2    |         | 0                                                                             |
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

Server and worker talk in the same frames over their socket pair.
"""

import math
import struct
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from kaas.errors import FrameError

MAGIC = b"KaaS"
VERSION = 1
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
DEFAULT_LIMIT = 64 * 1024 * 1024
"""Bytes that a payload may have unless the server is told otherwise."""
MAX_TIMEOUT = (2**32 - 1) / 1000
"""Seconds: the longest timeout that fits the frame (49 days)."""

_REQUEST = struct.Struct("!4sBBHIIQ")
_REPLY = struct.Struct("!4sBBBxIiiQQQ")
_ID_FIELD = 2
"""Place of the id, in either header, among the fields behind magic and version."""
_CODES = {status: code for code, status in enumerate(STATUSES)}
_COLD_START, _WAITED_FOR_BOOT = 1, 2


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


Frame = TypeVar("Frame", Request, Reply)


def encode_request(request: Request) -> bytes:
    """Write a request as one frame."""
    kind, payload, request_id, timeout = request
    # Rounded up, since a timeout that was asked for must not become 0, which means none; but 0.07 s are 70 ms.
    milliseconds = math.ceil(round(timeout * 1000, 6)) or (1 if timeout else 0)
    return _REQUEST.pack(MAGIC, VERSION, kind, 0, request_id, milliseconds, len(payload)) + payload


def encode_reply(reply: Reply) -> bytes:
    """Write a reply as one frame."""
    status, payload, request_id, cold_start, waited_for_boot, gpu, worker, queued_ns, kernel_ns = reply
    return (
        _REPLY.pack(
            MAGIC,
            VERSION,
            _CODES[status],
            (_COLD_START if cold_start else 0) | (_WAITED_FOR_BOOT if waited_for_boot else 0),
            request_id,
            -1 if gpu is None else gpu,
            -1 if worker is None else worker,
            queued_ns,
            kernel_ns,
            len(payload),
        )
        + payload
    )


def _make_request(fields: list[int], payload: bytes) -> Request:
    kind, _, request_id, milliseconds = fields
    if kind not in KINDS:
        raise FrameError(f"a request of kind {kind}, which is none of {KINDS}", request_id)
    return Request(kind, payload, request_id, milliseconds / 1000)


def _make_reply(fields: list[int], payload: bytes) -> Reply:
    code, flags, request_id, gpu, worker, queued_ns, kernel_ns = fields
    if code >= len(STATUSES):
        raise FrameError(f"a reply of status {code}, which is none of 0 to {len(STATUSES) - 1}", request_id)
    return Reply(
        STATUSES[code],
        payload,
        request_id,
        bool(flags & _COLD_START),
        bool(flags & _WAITED_FOR_BOOT),
        gpu if gpu >= 0 else None,
        worker if worker >= 0 else None,
        queued_ns,
        kernel_ns,
    )


def _check_magic(begin: bytes | bytearray) -> None:
    if not MAGIC.startswith(begin[: len(MAGIC)]):
        raise FrameError("not a KaaS frame: is the other side of this connection a KaaS client?")


class Decoder(Generic[Frame]):
    """Cuts a stream of bytes, arriving in any pieces, into frames.

    `limit`, the bytes that a payload may have, can be changed between two frames. Memory is taken for bytes that have
    come, never for such as a header announces.
    """

    def __init__(self, header: struct.Struct, make: Callable[[list[int], bytes], Frame], limit: int) -> None:
        self._header = header
        self._make: Callable[[list[int], bytes], Frame] = make
        self.limit = limit
        self._pending = bytearray()
        self._wanted = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take what came in; give every frame that is complete now.

        Raises:
            FrameError: the bytes are no frame, or its payload is over the limit. The stream is of no use any more.
        """
        pending = self._pending
        if pending:
            pending += data
            if len(pending) < self._wanted:
                _check_magic(pending)
                return
            data = bytes(pending)
            pending.clear()
        start, end, size = 0, len(data), self._header.size
        while start < end:
            self._wanted = size
            if end - start < size:
                _check_magic(data[start:])
                break
            magic, version, *fields, length = self._header.unpack_from(data, start)
            if magic != MAGIC:
                _check_magic(magic)
            if version != VERSION:
                raise FrameError(f"a frame of version {version}, but this side speaks version {VERSION} only")
            if length > self.limit:
                raise FrameError(
                    f"a payload of {length} bytes is over the limit of {self.limit} (--message-size)",
                    fields[_ID_FIELD],
                )
            self._wanted = size + length
            if end - start < self._wanted:
                break
            payload_at, start = start + size, start + self._wanted
            yield self._make(fields, data[payload_at:start])
        if start < end:
            pending += data[start:]

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._pending)


def request_decoder(limit: int = DEFAULT_LIMIT) -> Decoder[Request]:
    """Make a decoder of requests, for the server's and the worker's side."""
    return Decoder(_REQUEST, _make_request, limit)


def reply_decoder(limit: int = 2**63) -> Decoder[Reply]:
    """Make a decoder of replies, for the client's side and for the server's to its workers."""
    return Decoder(_REPLY, _make_reply, limit)
