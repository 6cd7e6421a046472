"""Runs whose load had another shape than the experiment's: clients that come and go, and open loops."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from made_runs import T0, booted

from kaas import description, events, results
from kaas.analysis import breakdown, figures, lag, runs, series, statistics, tables, timelines
from kaas.analysis.booted import boots
from kaas.analysis.runs import Run
from kaas.results import Outcome, RunFiles
from kaas.row import Row, encode_row, from_arrival, make_row


def read(folder: Path, rows: Iterable[Row], shape: Mapping[str, object], *, open_loop: bool = False) -> Run:
    """Write a run of some shape whose only GPU was booted at 0.5 s, and read it."""
    files = RunFiles(folder, "task-1")
    results.create_requests(files.requests, open_loop=open_loop)
    with files.requests.open("ab") as file:
        file.writelines(map(encode_row, sorted(rows, key=lambda row: row.timestamp + row.outer_time_ms / 1000)))
    description.begin(files.description, files.requests, T0, {"Interval": "10", **shape}, {"Host": "a host"})
    (folder / "log").write_text(events.format(booted(0.5, 0)) + "\n")
    events.sort_log(folder / "log", files.serverlogs)
    (run,) = runs.find_runs(folder)
    return run


def row(at: float, copy: int, concurrency: int, outer_ms: float = 1000.0, **more: object) -> Row:
    outcome = Outcome(outer_ms, outer_ms / 2, 100.0, bool(more.get("cold")), str(more.get("status", "ok")))
    return make_row(T0 + at, copy, concurrency, outcome)


def closed(*steps: tuple[int, int, int]) -> Iterator[Row]:
    """Give requests of 1 s each: from one second until another, so many clients."""
    for begin, end, number in steps:
        for copy in range(number):
            yield from (row(at + copy / 100, copy, number) for at in range(begin, end))


UPDOWN = {"Shape": "updown", "Shape duration [s]": "30", "Shape clients": 3}


def test_clients_that_a_shape_takes_away_did_not_fall_silent_and_are_drawn_as_they_were(tmp_path: Path) -> None:
    run = read(tmp_path, closed((0, 10, 1), (10, 20, 3), (20, 30, 1)), UPDOWN)

    assert run.notes == (f"{run.task}-gpu-monitoring.csv is missing: what it would show is left out.",)
    assert [check for check in run.checks if check.found] == []
    assert series.clients(run).tolist() == series.alive(run).tolist() == [1, 3, 1]
    assert statistics.steps(run)["clients"].tolist() == [1, 3, 1]
    step = statistics.last_step(run)
    assert step is not None
    assert (step.begin, step.end, step.clients) == (10.0, 20.0, 3.0)
    assert run.ramp_end == pytest.approx(30.0)
    assert run.is_whole
    assert figures.combined(run).axes[0].get_ylabel() == "Number of clients"


def test_where_nobody_was_there_for_a_while_it_is_one_run_and_there_were_no_clients(tmp_path: Path) -> None:
    shape = {"Shape": "trace:x.csv", "Shape duration [s]": "30", "Shape clients": 2}
    run = read(tmp_path, closed((0, 5, 1), (5, 10, 2), (20, 25, 2), (28, 33, 1)), shape)

    assert len(run.requests) == 5 + 10 + 10 + 5
    assert series.clients(run).tolist() == [1, 2, 0, 2, 0, 1]
    assert series.clients(run).index.tolist() == pytest.approx([0, 5, 10.01, 20, 25.01, 28])
    assert [check.rule for check in run.checks if check.found] == []  # no clock was set ahead


POISSON = {"Shape": "constant:2", "Shape duration [s]": "20", "Shape clients": 1}


def arrivals(served_in: float = 1000.0) -> list[Row]:
    """Give 2 requests a second from 10 s on, 0.5 a second before; the one client needs `served_in` ms for each."""
    rows, free = [], 0.0
    for number, at in enumerate([*range(0, 10, 2), *(10 + one / 2 for one in range(20))]):
        sent = max(float(at), free)
        free = sent + served_in / 1000
        rows.append(from_arrival(row(at, 0, 1, served_in, cold=not number), sent - at))
    return rows


def test_an_open_loop_counts_from_the_arrivals_and_is_checked_by_when_requests_were_sent(tmp_path: Path) -> None:
    run = read(tmp_path, arrivals(), POISSON, open_loop=True)

    assert [check for check in run.checks if check.found] == []
    assert run.timed
    assert (run.requests["elapsed"] + T0).tolist() == pytest.approx(run.requests["arrived"].tolist())
    assert run.requests["outer_time_ms"].tolist() == pytest.approx((1000 + run.requests["lag_ms"]).tolist())
    assert run.requests["lag_ms"].iloc[-1] == pytest.approx(19 * 500)
    assert run.ramp_end == pytest.approx(20.0)
    assert run.duration == pytest.approx(30.0)
    # At the server, there is one at a time, from after its setup.
    assert series.in_flight(run).max() == 1
    assert series.under_way(run).max() == 11
    assert boots(run)["begin"].tolist() == [0.0]
    (parts,) = breakdown.completion(run).to_dict("records")
    assert parts["lag"] == pytest.approx(run.requests["lag_ms"].mean())
    assert parts["rest"] == pytest.approx(400.0)


def test_a_client_of_an_open_loop_that_had_nothing_to_send_for_long_is_there_all_the_same(tmp_path: Path) -> None:
    rows = [from_arrival(row(at, int(at < 2), 3), 0.0001) for at in range(20)]
    run = read(tmp_path, rows, POISSON, open_loop=True)

    assert series.alive(run).tolist() == [3]
    assert not [note for note in run.notes if "client" in note]


def test_where_the_load_generator_fell_behind_is_told_with_the_rate(tmp_path: Path) -> None:
    run = read(tmp_path, arrivals(), POISSON, open_loop=True)

    assert lag.fell_behind(run) == (10.0, 2.0)
    numbers = tables.per_repeat([run]).loc["task-1"]
    assert numbers["arrived [1/s]"] == pytest.approx(25 / 20)
    assert numbers["lag, longest [ms]"] == pytest.approx(9500)
    assert numbers["sent over 10 ms late"] == 19
    assert numbers["fell behind at [1/s]"] == 2.0
    assert numbers["warm completion time, p50 [ms]"] > 4000  # and not the 1000 that each took once it was sent
    figure = timelines.arrivals(run)
    assert [axes.get_ylabel().split(" [")[0] for axes in figure.axes] == ["Requests", "Requests\nunder way", "Lag"]
    (label,) = [line.get_label() for line in figure.axes[2].get_lines() if "behind" in str(line.get_label())]
    assert label == "fell behind at 10 s, with 2 arrivals/s"
    assert figures.combined(run).axes[0].get_ylabel() == "Requests\nunder way"


def test_what_no_client_sent_is_not_counted_as_sent(tmp_path: Path) -> None:
    unsent = [from_arrival(row(at, 0, 1, 0.0, status="failed"), 25.0 - at) for at in (21.0, 22.0)]
    run = read(tmp_path, [*arrivals(served_in=400.0), *unsent], POISSON, open_loop=True)

    frame = lag.over_time(run, series.edges(run.duration))
    assert frame[["arrived", "sent"]].sum().tolist() == pytest.approx([27 / 0.5, 25 / 0.5])
    assert [check.rule for check in run.checks if check.found] == []


def test_a_load_generator_that_kept_up_did_not_fall_behind(tmp_path: Path) -> None:
    run = read(tmp_path, arrivals(served_in=400.0), POISSON, open_loop=True)

    assert lag.fell_behind(run) is None
    assert tables.per_repeat([run]).loc["task-1", "sent over 10 ms late"] == 0
    assert len(timelines.arrivals(run).axes) == 3


def test_a_closed_loop_has_no_numbers_of_arrivals(tmp_path: Path) -> None:
    run = read(tmp_path, closed((0, 10, 1)), {})
    assert not run.is_open_loop
    assert not [name for name in tables.per_repeat([run]).columns if "lag" in name]
