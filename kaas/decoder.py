"""Cuts a stream of bytes into frames. What is in a frame, `wire.py` says."""

import ctypes
import mmap
import socket
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Generic, TypeVar

from kaas.errors import FrameError
from kaas.passing import Passing

MAGIC = b"KaaS"
VERSION = 1
PREFIX = MAGIC + bytes([VERSION])
LARGE = 64 * 1024
"""Bytes from which on a payload is a piece of its own, and is not copied."""
_ID_FIELD = 3
"""Place of the id among the fields of either header."""
_FIRST_ROOM = 1024 * 1024
_GROWTH = 8
_HUGE_PAGE = 2 * 1024 * 1024

Fields = tuple[Any, ...]
"""What is in a header: the prefix, then numbers, the last of which is the payload's length."""
Frame = TypeVar("Frame")
Make = Callable[[Fields, bytes, Any], Frame]
"""Makes what is given for a frame: of its fields and all of it, or of its header and a `Large` with its payload, or of
what has come of it and a `Passing` with the rest."""

# An event loop reads here what belongs to no large payload; it is taken out before anything else is read.
_scratch = memoryview(bytearray(LARGE))


class Decoder(Generic[Frame]):
    """Cuts a stream of bytes, arriving in any pieces, into frames.

    An event loop reads into `buffer()` and asks `received()` for the frames; others `receive()` them from a socket or
    `feed()` it. A large payload is read straight to where it stays, or passed on. `limit`, the bytes that a payload may
    have, and `large`, those from which on it is a large one, can be changed between two frames. Memory is taken for
    bytes that have come, at most eight times as much, never for such as a header announces.

    Args:
        header: its layout.
        make: makes what is given for a frame.
        limit: see above.
        passes: whether a frame with a large payload is given when it has begun, and the rest passed on (kaas.passing).
    """

    def __init__(self, header: struct.Struct, make: Make[Frame], limit: int, *, passes: bool = False) -> None:
        self._header = header
        self._make: Make[Frame] = make
        self.limit = limit
        self.large = LARGE
        self._passes = passes
        self._begun = b""  # of the next frame
        self._large: Large | Passing | None = None  # or its payload

    def buffer(self, sizehint: int = -1) -> memoryview:
        """Give the room for the next bytes; all decoders share it, so one thread only may read this way."""
        return _scratch if self._large is None else self._large.room()

    def received(self, number: int) -> Iterator[Frame]:
        """Take the bytes that were read into the buffer; give every frame that is complete now.

        Raises:
            FrameError: the bytes are no frame, or its payload is over the limit. The stream is of no use any more.
        """
        if self._large is None:
            return self._cut(self._begun + _scratch[:number])
        return self._received_of_large(self._large, number)

    def receive(self, connection: socket.socket) -> Iterator[Frame] | None:
        """Read from a blocking socket; give every frame that is complete now, or None at its end.

        Raises:
            FrameError: see `received`.
            OSError: what `recv` raises.
        """
        if self._large is None:
            data = connection.recv(LARGE)
            return self._cut(self._begun + data) if data else None
        number = connection.recv_into(self._large.room(), 0, socket.MSG_WAITALL)
        return self._received_of_large(self._large, number) if number else None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take what came in elsewhere; give every frame that is complete now; raises what `received` does."""
        while data and self._large is not None:
            room = self._large.room()
            here, data = data[: len(room)], data[len(room) :]
            room[: len(here)] = here
            yield from self._received_of_large(self._large, len(here))
        if data:
            yield from self._cut(self._begun + data)

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._begun) or self._large is not None

    def _cut(self, data: bytes) -> Iterator[Frame]:
        self._begun = b""
        if len(data) >= self._header.size:
            fields = self._header.unpack_from(data)
            if fields[0] == PREFIX and self._header.size + fields[-1] == len(data) and fields[-1] <= self.limit:
                return iter((self._make(fields, data, None),))  # one that is whole: what comes nearly always
        return self._cut_any(data)

    def _cut_any(self, data: bytes) -> Iterator[Frame]:
        start, end, size = 0, len(data), self._header.size
        while start < end:
            if end - start < size:
                _check_magic(data[start:])
                self._begun = data[start:]
                return
            fields = self._read_header(data, start)
            stop = start + size + fields[-1]
            if stop > end:
                if fields[-1] < self.large:
                    self._begun = data[start:]
                elif self._passes:
                    self._large = rest = Passing(stop - end)
                    yield self._make(fields, data[start:], rest)
                else:
                    self._large = Large(fields, data[start : start + size], data[start + size :])
                return
            yield self._make(fields, data[start:stop], None)
            start = stop

    def _received_of_large(self, large: "Large | Passing", number: int) -> Iterator[Frame]:
        if isinstance(large, Passing):
            if number == large.left:
                self._large = None  # first: who is told that it has passed may be asked for the next
            large.received(number)
        elif large.received(number):
            self._large = None
            yield self._make(large.fields, large.header, large)

    def _read_header(self, data: bytes, start: int) -> Fields:
        fields = self._header.unpack_from(data, start)
        if fields[0] != PREFIX:
            _check_magic(fields[0])
            version = fields[0][-1]
            raise FrameError(f"a frame of version {version}, but this side speaks version {VERSION} only")
        if fields[-1] > self.limit:
            raise FrameError(
                f"a payload of {fields[-1]} bytes is over the limit of {self.limit} (--message-size)",
                fields[_ID_FIELD],
            )
        return fields


class Large:
    """A large payload; while it is on its way, its room grows as it comes."""

    def __init__(self, fields: Fields, header: bytes, begin: bytes) -> None:
        self.fields = fields
        self.header = header
        self._come = len(begin)
        self._make_room(max(_FIRST_ROOM, len(begin)), begin)

    def room(self) -> memoryview:
        """Give the room for what comes next."""
        return self.view[self._come :]

    def received(self, number: int) -> bool:
        """Count what has come, and tell whether that is all."""
        self._come += number
        if self._come == self.fields[-1]:
            return True
        if self._come == len(self.view):
            self._make_room(_GROWTH * self._come, self.view)
        return False

    def payload(self) -> bytes:
        """Give all of it, once, and without a copy unless somebody still looks at it."""
        self.view.release()
        return self._buffer.getvalue()

    def _make_room(self, size: int, begin: bytes | memoryview) -> None:
        # Bytes that can be written to, until they are asked for; neither step copies them.
        self._buffer = BytesIO(bytes(min(size, self.fields[-1])))
        self.view = self._buffer.getbuffer()
        _advise_huge_pages(self.view)
        self.view[: len(begin)] = begin


def _advise_huge_pages(view: memoryview) -> None:
    """Have the system give memory in large pages if it can: to give it in small ones takes longer than to fill it."""
    if len(view) < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    begin = address + -address % mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + len(view) - begin), mmap.MADV_HUGEPAGE)


def _check_magic(begin: bytes) -> None:
    if not MAGIC.startswith(begin[: len(MAGIC)]):
        raise FrameError("not a KaaS frame: is the other side of this connection a KaaS client?")
