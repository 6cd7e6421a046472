"""The pool decides on recorded arrivals as it did, or would have, live."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from support import StartServer, eventually

from kaas import ROOT
from kaas.arrivals import Poisson
from kaas.errors import ResultsError
from kaas.policy import Queue
from kaas.simulation import observed
from kaas.simulation.recorded import Arrival, Decision, decide


def where(decisions: list[Decision]) -> list[tuple[bool, int | None, int | None]]:
    return [(one.cold_start, one.gpu, one.worker) for one in decisions]


def test_arrivals_are_placed_by_the_rule() -> None:
    found = decide(
        [Arrival(0.0, 9.0), Arrival(1.0, 2.0), Arrival(1.5, 9.0), Arrival(2.0, 9.0), Arrival(3.0, 9.0)], 2, 2
    )
    assert where(found) == [
        (True, 0, 0),
        (False, 0, 1),
        (True, 1, 2),
        (False, 0, 1),  # given back just before
        (False, 1, 3),
    ]


def test_who_finds_no_place_is_refused_or_waits() -> None:
    arrivals = [Arrival(0.0, 5.0), Arrival(1.0, 6.0)]
    assert [one.status for one in decide(arrivals, 1, 1)] == ["ok", "rejected"]
    assert where(decide(arrivals, 1, 1, policy=lambda: Queue(5))) == [(True, 0, 0), (False, 0, 0)]


def test_a_request_without_an_end_holds_its_place() -> None:
    found = decide([Arrival(0.0, None), Arrival(50.0, 60.0), Arrival(70.0, 80.0)], 2, 1)
    assert found[0] == Decision("unanswered", True, 0, 0)  # as the cold start that it was
    assert [one.gpu for one in found[1:]] == [1, 1]


def test_an_idle_task_runner_is_stopped_if_the_server_does_so() -> None:
    arrivals = [Arrival(0.0, 1.0), Arrival(100.0, 101.0)]
    assert [one.cold_start for one in decide(arrivals, 1, 1)] == [True, False]
    assert [one.cold_start for one in decide(arrivals, 1, 1, idle_timeout=60.0)] == [True, True]


def test_the_published_boots_follow_from_the_published_arrivals() -> None:
    try:
        runs = observed.read(ROOT.parent / "shared" / "paper-results")
    except ResultsError as error:
        pytest.skip(f"the published results are not here: {error}")
    for run in runs:
        over = run.outer - run.setup - run.inner
        waited = np.where(run.cold, np.maximum(over - np.median(over), 0.0), 0.0)
        released = run.arrival + run.inner + waited + 0.2 * (over - waited)
        silent = [Arrival(at + setup_at(run, at), None) for _, at in run.silent()]
        arrivals = sorted([*map(Arrival, run.arrival.tolist(), released.tolist()), *silent], key=lambda one: one.at)
        # A refused request is one that took no place.
        boots = [one.at for one, decided in zip(arrivals, decide(arrivals, 8, 4), strict=True) if decided.cold_start]
        assert boots[:7] == pytest.approx(run.boots[:7], abs=0.02)


def setup_at(run: observed.Observed, at: float) -> float:
    return float(np.median(run.setup[np.abs(run.begin - at) < 5.0]))


def test_the_live_server_decides_the_same_on_the_same_arrivals(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("wait", "-g", "2", "-m", "2", "--idle-timeout", "0")
    random, held, arrivals = Random(3), list[int](), list[Arrival]()
    with server.frames() as frames:
        for moment in range(40):
            if held and random.random() < 0.4:
                done = held.pop(random.randrange(len(held)))
                (tmp_path / str(done)).touch()
                frames.reply(done)
                arrivals[done] = arrivals[done]._replace(released=float(moment))
            else:
                asked = len(arrivals)
                arrivals.append(Arrival(float(moment), None))
                frames.invoke(tmp_path / str(asked), asked)
                if len(held) == 4:
                    frames.reply(asked)  # there is no place
                else:
                    held.append(asked)
                    eventually(lambda: len(server.workers("busy")) == len(held))
                    eventually(lambda: not server.workers("booting"))
        for one in held:
            (tmp_path / str(one)).touch()
        live = frames.replies(*range(len(arrivals)))
    last = [one._replace(released=one.released or 40.0) for one in arrivals]
    decided = decide(last, 2, 2)
    assert {one.status for one in decided} == {"ok", "rejected"}
    assert decided == [
        Decision(live[one].status, live[one].cold_start, live[one].gpu, live[one].worker)
        for one in range(len(arrivals))
    ]


def test_the_live_server_decides_the_same_on_arrivals_that_a_shape_has_drawn(
    start_server: StartServer, tmp_path: Path
) -> None:
    # Each request that is served holds its place for 0.5 s: 5 a second are more than 2 x 2 places take at times.
    arrivals = [Arrival(at, at + 0.5) for at in Poisson(5.0, 8.0, seed=2)]
    decided = decide(arrivals, 2, 2)
    assert {one.status for one in decided} == {"ok", "rejected"}
    moments = [(one.at, "comes", number) for number, one in enumerate(arrivals)]
    moments += [(one.at + 0.5, "goes", number) for number, one in enumerate(arrivals)]

    server = start_server("wait", "-g", "2", "-m", "2", "--idle-timeout", "0")
    held: set[int] = set()
    replies = {}
    with server.frames() as frames:
        for _, what, number in sorted(moments):
            if what == "comes":
                frames.invoke(tmp_path / str(number), number)
                if len(held) == 4:
                    replies[number] = frames.reply(number)
                    continue
                held.add(number)
            elif number in held:
                (tmp_path / str(number)).touch()
                replies[number] = frames.reply(number)
                held.remove(number)
            eventually(lambda: len(server.workers("busy")) == len(held))
            eventually(lambda: not server.workers("booting"))
    live = [replies[number] for number in range(len(arrivals))]
    assert decided == [Decision(one.status, one.cold_start, one.gpu, one.worker) for one in live]
