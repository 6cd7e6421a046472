"""Large payloads on their way through the server: handed on in pieces as they come, and never held as a whole.

A large frame is known when its header has come, with the first piece of its payload; the rest is a `Passing`. It comes
no faster than whoever takes it can: until then its source, which is read in the same loop, is not read. And it takes
turns with the others: a source that always has more to read would have the loop for megabytes at a time.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

PIECE = 128 * 1024
"""Bytes that are handed on at a time, at most."""
Piece = bytes | bytearray | memoryview

_room = memoryview(bytearray(PIECE))  # an event loop reads here; what is handed on is a copy


class Source(Protocol):
    """What a payload comes from: a transport, or what has one."""

    def pause_reading(self) -> None:
        """Read no more from it."""

    def resume_reading(self) -> None:
        """Read on."""


class Sink(Protocol):
    """What a payload goes to: a transport, whose protocol tells `pause` and `resume` when it must not write."""

    def write(self, data: Piece) -> None:
        """Send some of it."""

    def is_closing(self) -> bool:
        """Tell whether nothing more can be sent."""


class Waiting(Protocol):
    """Where those wait that pass at the same time (kaas.line)."""

    def wait(self, turn: Callable[[], object]) -> None:
        """Call `turn` when it is this one's."""


class Passing:
    """The rest of a large payload: it waits for somebody to take it, and is handed on or dropped.

    `left` are the bytes that have not come; `begun` is whether who takes it has a part. What comes from a source that
    was not made to wait, before anybody takes it, is dropped.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.begun = self.dropped = False
        self.done: Callable[[], object] = _nothing
        """Called when all of it has come, wherever it went."""
        self.cut: Callable[[], object] = _nothing
        """Called when it is dropped and has begun: who takes it has a part, and gets no more."""
        self._source: Source | None = None
        self._line: Waiting
        self._sink: Sink | None = None
        self._full = False  # the sink is
        self._in_line = False  # it has handed on a piece, and waits for its next turn

    def come_from(self, source: Source, line: Waiting) -> None:
        """Wait: the source is not read until somebody takes what comes, or nobody wants it.

        Args:
            source: of it.
            line: where it waits for its turn after each piece.
        """
        self._source, self._line = source, line
        source.pause_reading()

    def hand_on(self, sink: Sink) -> None:
        """Give it to who takes it, and has been sent its first piece."""
        self.begun, self._sink = True, sink
        if not self._full:
            self._read_on()

    def pause(self) -> None:
        """Whoever takes it, or is about to, can take no more for now."""
        self._full = True
        if self._source is not None and self.left and not self.dropped:
            self._source.pause_reading()

    def resume(self) -> None:
        """Whoever takes it can take more."""
        self._full = False
        self._read_on()

    def drop(self) -> None:
        """Have what has not come yet be read and forgotten: nobody wants it any more, or who took it is lost."""
        if self.left and not self.dropped:
            self.dropped, self._sink = True, None
            cut, self.cut = self.cut, _nothing
            if self.begun:
                cut()
            self._read_on()

    # What reads it (decoder.Decoder)

    def room(self) -> memoryview:
        """Give the room for what comes next, which all share."""
        return _room[: self.left]

    def received(self, number: int) -> None:
        """Hand on what has been read into the room."""
        self.left -= number
        if self._sink is not None and not self._sink.is_closing():
            self._sink.write(bytes(_room[:number]))
        if not self.left:
            # All of these lead back to it: it would stay, with its frame, until the garbage collector comes.
            done, self.done, self.cut, self._source, self._sink = self.done, _nothing, _nothing, None, None
            done()
        elif self._source is not None:
            self._source.pause_reading()
            self._in_line = True
            self._line.wait(self._have_turn)

    def _have_turn(self) -> None:
        self._in_line = False
        if not self._full or self.dropped:
            self._read_on()

    def _read_on(self) -> None:
        if self._source is not None and self.left and not self._in_line:
            self._source.resume_reading()


class Turns:
    """What is written to one client of whose replies one is large: one after the other.

    Args:
        sink: leads to the client.
        full: whether that takes nothing now.
    """

    def __init__(self, sink: Sink, *, full: bool) -> None:
        self._sink = sink
        self._full = full
        self._passing: Passing | None = None
        self._behind: deque[tuple[list[Piece], Passing | None]] = deque()

    @property
    def crowded(self) -> bool:
        """Whether something waits for its turn."""
        return bool(self._behind)

    def write(self, frame: list[Piece], rest: Passing | None = None) -> None:
        """Write a frame, and have its rest pass, when it is its turn; or not, if it was dropped until then."""
        if self._passing is not None:
            self._behind.append((frame, rest))
        elif rest is None or not rest.dropped:
            self._passing = rest
            if rest is not None and self._full:
                rest.pause()
            for piece in frame:
                self._sink.write(piece)
            if rest is not None:
                rest.hand_on(self._sink)

    def has_passed(self) -> None:
        """Go on with what is behind the large reply whose turn it was."""
        self._passing = None
        while self._behind and self._passing is None:
            self.write(*self._behind.popleft())

    def pause(self) -> None:
        """The client takes no more for now."""
        self._full = True
        if self._passing is not None:
            self._passing.pause()

    def resume(self) -> None:
        """It takes more."""
        self._full = False
        if self._passing is not None:
            self._passing.resume()


def _nothing() -> None:
    pass
