"""What is due is done at its time, what is cancelled is not, and neither costs more than it must."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kaas.pool.deadlines import Deadlines
from kaas.simulation.loop import VirtualLoop


class CoarseLoop(VirtualLoop):
    """Its timers come up to a millisecond early, as uvloop's do."""

    def call_later(self, delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        return super().call_later(int(delay * 1000) / 1000, *rest, **more)


@pytest.fixture(params=[VirtualLoop, CoarseLoop], ids=["exact", "coarse"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in virtual time, on whose every turn some time passes."""
    made: VirtualLoop = request.param()

    def tick() -> None:
        made._now += 1e-4
        made.call_soon(tick)

    made.call_soon(tick)
    yield made
    made.close()


def test_each_deed_is_done_at_its_time_in_order(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, done = Deadlines(loop, loop.time), list[tuple[float, float]]()
    for when in (3.0, 1.0, 2.0005, 2.0):
        deadlines.at(when, lambda when: done.append((when, loop.time() - when)), when)
    loop.run_until_complete(asyncio.sleep(4.0))
    assert list(dict(done)) == [1.0, 2.0, 2.0005, 3.0]
    assert all(0.0 <= late < 0.001 for _, late in done)
    assert len(deadlines) == 0


def test_what_is_cancelled_is_not_done_and_may_be_cancelled_again(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, done = Deadlines(loop, loop.time), list[str]()
    first, second = deadlines.at(1.0, done.append, "first"), deadlines.at(2.0, done.append, "second")
    deadlines.at(0.5, deadlines.cancel, first)
    loop.run_until_complete(asyncio.sleep(3.0))
    for number in (first, second, 0):
        deadlines.cancel(number)
    assert done == ["second"]


def test_a_deed_may_ask_for_another_one_that_is_due_at_once(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, done = Deadlines(loop, loop.time), list[str]()
    deadlines.at(1.0, deadlines.at, 0.5, done.append, "done")
    loop.run_until_complete(asyncio.sleep(1.1))
    assert done == ["done"]


def test_a_deed_that_raises_keeps_no_other_from_being_done(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, done, raised = Deadlines(loop, loop.time), list[str](), list[object]()
    loop.set_exception_handler(lambda _, context: raised.append(type(context["exception"])))
    deadlines.at(1.0, lambda: 1 / 0)
    for when in (1.0, 2.0):
        deadlines.at(when, done.append, "done")
    loop.run_until_complete(asyncio.sleep(3.0))
    assert raised == [ZeroDivisionError]
    assert done == ["done", "done"]


def test_deadlines_that_are_cancelled_take_no_memory_however_late_they_are() -> None:
    loop = VirtualLoop()
    deadlines = Deadlines(loop, loop.time)
    deadlines.at(5.0, print)
    for _ in range(10_000):
        deadlines.cancel(deadlines.at(1e6, print))
    assert len(deadlines._heap) < 200
    assert len(loop._scheduled) < 10, "and no timer of the loop each"  # type: ignore[attr-defined]
    loop.close()
