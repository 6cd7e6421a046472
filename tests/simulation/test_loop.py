"""Virtual time goes on to what is due next, whether it can be cancelled or not."""

import asyncio
from collections.abc import Iterator

import pytest

from kaas.simulation.loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def test_time_passes_only_from_one_thing_that_is_due_to_the_next(loop: VirtualLoop) -> None:
    seen: list[tuple[str, float]] = []
    loop.at(5.0, lambda: seen.append(("second", loop.time())))
    loop.at(2.5, lambda: seen.append(("first", loop.time())))
    loop.run_until_complete(asyncio.sleep(1000.0))
    assert seen == [("first", 2.5), ("second", 5.0)]
    assert loop.time() == pytest.approx(1000.0)


def test_what_is_due_at_one_time_happens_in_the_order_in_which_it_was_asked_for(loop: VirtualLoop) -> None:
    seen: list[int] = []
    for number in range(50):
        loop.at(1.0, seen.append, number)
    loop.run_until_complete(asyncio.sleep(1.0))
    assert seen == list(range(50))


def test_what_is_due_can_set_a_timer_that_comes_before_all_that_was_due(loop: VirtualLoop) -> None:
    seen: list[tuple[str, float]] = []

    def note(what: str) -> None:
        seen.append((what, loop.time()))

    loop.at(1.0, lambda: loop.call_later(1.0, note, "timer"))
    loop.at(1.5, note, "due")
    loop.at(9.0, note, "last")
    loop.run_until_complete(asyncio.sleep(10.0))
    assert seen == [("due", 1.5), ("timer", 2.0), ("last", 9.0)]


def test_a_timer_that_was_cancelled_meanwhile_is_none(loop: VirtualLoop) -> None:
    timer = loop.call_later(3.0, pytest.fail)
    loop.at(1.0, timer.cancel)
    loop.run_until_complete(asyncio.sleep(5.0))


def test_somebody_who_waits_for_a_result_has_it_at_its_time(loop: VirtualLoop) -> None:
    result = loop.create_future()
    loop.at(7.0, result.set_result, "done")
    loop.at(8.0, pytest.fail, "too late")

    async def wait() -> tuple[str, float]:
        return await result, loop.time()

    assert loop.run_until_complete(wait()) == ("done", 7.0)


def test_to_wait_for_what_will_never_happen_is_an_error(loop: VirtualLoop) -> None:
    loop.at(1.0, lambda: None)
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        loop.run_until_complete(loop.create_future())


def test_an_error_of_what_is_due_ends_the_loop(loop: VirtualLoop) -> None:
    loop.at(1.0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(asyncio.sleep(2.0))
