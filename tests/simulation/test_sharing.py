"""Work that shares what does it: hand-computed cases, and that none is lost or made."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaas.simulation.chance import normals
from kaas.simulation.devices import Shared
from kaas.simulation.loop import VirtualLoop
from kaas.simulation.model import Model
from kaas.simulation.sharing import Host, Sharing

HOST = Model(setup_alone=1.0, setup_clients=(1.0, 2.0, 4.0), setup_seconds=(1.0, 1.2, 2.0))


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def ends_of(loop: VirtualLoop, sharing: Sharing | Shared, work: list[tuple[float, float]]) -> list[float]:
    """When each of (begin, seconds of work alone) is done."""
    ends = [float("nan")] * len(work)
    for number, (begin, seconds) in enumerate(work):
        run = sharing.run if isinstance(sharing, Shared) else sharing.add
        loop.at(begin, run, seconds, lambda number=number: ends.__setitem__(number, loop.time()))
    loop.run_until_complete(asyncio.sleep(1e6))
    return ends


def test_one_alone_takes_its_own_time(loop: VirtualLoop) -> None:
    assert ends_of(loop, Sharing(loop, lambda number: 1 / number), [(3.0, 2.0)]) == [5.0]


def test_two_at_once_take_turns(loop: VirtualLoop) -> None:
    # Alone until 1, so 3 s are left of the first; then half of the speed each: the second's 1 s takes 2, until 3; the
    # first has 2 s left then, alone again until 5.
    assert ends_of(loop, Sharing(loop, lambda number: 1 / number), [(0.0, 4.0), (1.0, 1.0)]) == pytest.approx(
        [5.0, 3.0]
    )


def test_what_is_equal_is_done_in_the_order_in_which_it_came(loop: VirtualLoop) -> None:
    done: list[int] = []
    sharing = Sharing(loop, lambda number: 1 / number)
    for number in range(5):
        loop.at(0.0, sharing.add, 1.0, done.append, number)
    loop.run_until_complete(asyncio.sleep(10.0))
    assert done == list(range(5))
    assert len(sharing) == 0


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 5)), min_size=1, max_size=20))
def test_no_work_is_lost_or_made(work: list[tuple[float, float]]) -> None:
    loop, spans = VirtualLoop(), list[tuple[float, float]]()
    try:
        ends = ends_of(
            loop, Shared(loop, lambda *span: spans.append(span), Sharing(loop, lambda number: 1 / number)), work
        )
    finally:
        loop.close()
    assert sum(end - begin for begin, end in spans) == pytest.approx(sum(seconds for _, seconds in work))
    assert all(end >= begin + seconds - 1e-6 for end, (begin, seconds) in zip(ends, work, strict=True))
    assert max(ends) == pytest.approx(spans[-1][1])


def test_a_host_takes_as_long_as_its_table_says(loop: VirtualLoop) -> None:
    host, ends = Host(HOST, loop, normals(1)), list[float]()
    for _ in range(2):
        host.set_up(lambda: ends.append(loop.time()))
    assert len(host) == 2
    loop.run_until_complete(asyncio.sleep(10.0))
    assert ends == pytest.approx([1.2, 1.2])


def test_a_host_with_noise_is_about_as_fast_as_one_without(loop: VirtualLoop) -> None:
    noisy = replace(HOST, host_noise=0.1, host_noise_from=0.0, host_noise_full=1.0)
    host, ends = Host(noisy, loop, normals(1)), list[float]()

    def again() -> None:
        ends.append(loop.time())
        host.set_up(again)

    for _ in range(4):
        host.set_up(again)
    loop.run_until_complete(asyncio.sleep(1000.0))
    assert len(ends) == pytest.approx(2000, rel=0.05)
    assert len(set(ends)) > 400
