"""A large payload that passes: it comes no faster than it is taken, and whoever has a part of it is told of its end."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
from support import LIMIT

from kaas.line import Line
from kaas.passing import Passing, Piece, Turns


class Source:
    def __init__(self) -> None:
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Waiting:
    """A line in which nobody waits any longer than until `go_on`."""

    def __init__(self) -> None:
        self.turns: list[Callable[[], object]] = []
        self.wait = self.turns.append

    def go_on(self) -> None:
        while self.turns:
            self.turns.pop(0)()


class Sink:
    def __init__(self) -> None:
        self.got = b""
        self.closing = False

    def write(self, data: Piece) -> None:
        self.got += bytes(data)

    def is_closing(self) -> bool:
        return self.closing


class Way:
    """A payload, where it comes from, where it goes to, and what was told of it."""

    def __init__(self, size: int) -> None:
        self.rest, self.source, self.sink, self.line = Passing(size), Source(), Sink(), Waiting()
        self.told: list[str] = []
        self.rest.done = lambda: self.told.append("done")
        self.rest.cut = lambda: self.told.append("cut")
        self.rest.come_from(self.source, self.line)

    def come(self, data: bytes, waits: bool = False) -> None:
        self.rest.room()[: len(data)] = data
        self.rest.received(len(data))
        if not waits:
            self.line.go_on()


@pytest.mark.parametrize("dropped", [False, True])
def test_once_it_has_passed_or_was_dropped_it_is_kept_by_nobody_whom_it_tells(dropped: bool) -> None:
    rest, told = Passing(3), list[Passing]()
    rest.come_from(Source(), Waiting())
    rest.hand_on(Sink())
    rest.cut = partial(told.append, rest)  # as one that knows the invocation, whose payload it is
    rest.done = partial(told.append, rest)
    if dropped:
        rest.drop()
    rest.received(3)
    assert told == [rest] * (1 + dropped)
    known = weakref.ref(rest)
    told.clear()
    gc.disable()
    try:
        del rest
        assert known() is None, "all large payloads of late stay until the garbage collector looks for them"
    finally:
        gc.enable()


def test_nothing_is_read_before_somebody_takes_it_and_then_all_is_handed_on() -> None:
    way = Way(5)
    assert not way.source.reading
    way.rest.hand_on(way.sink)
    assert way.source.reading
    way.come(b"abc")
    assert (way.sink.got, way.told, len(way.rest.room())) == (b"abc", [], 2)
    way.come(b"de")
    assert (way.sink.got, way.told) == (b"abcde", ["done"])


def test_it_waits_while_who_takes_it_can_take_no_more() -> None:
    way = Way(5)
    way.rest.pause()  # its first piece was too much already
    way.rest.hand_on(way.sink)
    assert not way.source.reading
    way.rest.resume()
    assert way.source.reading
    way.come(b"abcd")
    way.rest.pause()
    assert not way.source.reading
    way.rest.resume()
    way.come(b"e")
    assert way.sink.got == b"abcde"


def test_after_each_piece_it_waits_for_its_turn_whatever_else_becomes_of_it() -> None:
    way = Way(4)
    way.rest.hand_on(way.sink)
    way.come(b"a", waits=True)
    way.rest.resume()
    assert not way.source.reading
    way.rest.drop()
    assert not way.source.reading
    way.line.go_on()
    assert way.source.reading


@pytest.mark.parametrize(("names", "expected"), [("ab", "a-b-a-b-a-b"), ("a", "a-a-a")])
def test_all_that_pass_at_once_have_a_piece_each_and_others_a_turn_of_the_loop_between_any_two(
    names: str, expected: str
) -> None:
    said: list[str] = []

    async def run() -> None:
        line, done = Line(), asyncio.Event()

        def go_on(name: str, left: int) -> None:
            said.append(name)
            if left:
                line.wait(partial(go_on, name, left - 1))

        def somebody_else() -> None:
            said.append("-")
            asyncio.get_running_loop().call_soon(somebody_else) if len(said) < 14 else done.set()

        for name in names:
            line.wait(partial(go_on, name, 2))
        somebody_else()
        await done.wait()

    asyncio.run(run())

    assert "".join(said).strip("-") == expected


def test_one_that_fails_in_its_turn_keeps_nobody_from_theirs() -> None:
    async def run() -> None:
        line, done, failed = Line(), asyncio.Event(), list[dict[str, object]]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        line.wait(lambda: 1 / 0)
        line.wait(done.set)
        await asyncio.wait_for(done.wait(), LIMIT)
        assert len(failed) == 1

    asyncio.run(run())


def test_the_last_piece_leaves_its_source_to_whatever_comes_next() -> None:
    way = Way(1)
    way.rest.hand_on(way.sink)
    way.come(b"x")
    way.rest.pause()
    assert way.source.reading


@pytest.mark.parametrize("full", [False, True])
def test_what_is_dropped_half_way_is_read_and_forgotten_and_its_taker_told(full: bool) -> None:
    way = Way(5)
    way.rest.hand_on(way.sink)
    way.come(b"ab")
    if full:
        way.rest.pause()
    for _ in range(2):
        way.rest.drop()
    assert (way.told, way.source.reading) == (["cut"], True)
    way.rest.pause()  # of no more concern
    assert way.source.reading
    way.come(b"cde")
    assert (way.sink.got, way.told) == (b"ab", ["cut", "done"])


def test_who_has_no_part_of_it_is_told_nothing_when_it_is_dropped() -> None:
    way = Way(5)
    way.rest.drop()
    assert way.source.reading
    way.come(b"abcde")
    assert (way.sink.got, way.told) == (b"", ["done"])


def test_what_has_passed_cannot_be_dropped() -> None:
    way = Way(1)
    way.rest.hand_on(way.sink)
    way.come(b"x")
    way.rest.drop()
    assert way.told == ["done"]


def test_to_a_connection_that_closes_nothing_more_is_written() -> None:
    way = Way(2)
    way.rest.hand_on(way.sink)
    way.sink.closing = True
    way.come(b"xy")
    assert (way.sink.got, way.told) == (b"", ["done"])


def test_replies_wait_for_the_large_one_before_them_and_those_dropped_meanwhile_are_left_out() -> None:
    first, second, third = (Way(1) for _ in range(3))
    sink = Sink()
    turns = Turns(sink, full=False)
    turns.write([b"1"], first.rest)
    turns.write([b"a"])
    turns.write([b"2"], second.rest)
    turns.write([b"3"], third.rest)
    turns.write([b"b"])
    assert (sink.got, turns.crowded, second.source.reading) == (b"1", True, False)
    second.rest.drop()
    first.come(b"x")
    turns.has_passed()
    assert sink.got == b"1xa3"
    third.come(b"y")
    turns.has_passed()
    assert (sink.got, turns.crowded) == (b"1xa3yb", False)


def test_a_large_reply_whose_client_takes_nothing_waits_until_it_does() -> None:
    way, sink = Way(2), Sink()
    turns = Turns(sink, full=True)
    turns.write([b"1"], way.rest)
    assert (sink.got, way.source.reading) == (b"1", False)
    turns.resume()
    assert way.source.reading
    turns.pause()
    assert not way.source.reading
