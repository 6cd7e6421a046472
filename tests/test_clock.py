"""The one clock of a run: what it tells whatever the wall clock does, and what is found out about that."""

import os
import subprocess
import sys
import time

import pytest
from support import LIMIT

from kaas import ROOT
from kaas.clock import VARIABLE, Clock, Readings, Watch, in_words, read_clocks
from kaas.errors import UsageError

CLOCK = Clock(1000.0, 50.0)


def test_it_counts_from_the_epoch_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 57.5)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # set back in mid-run
    assert CLOCK.now() == 1007.5
    assert CLOCK.at(49.0) == 999.0


def test_all_programs_of_a_run_count_from_the_pair_that_its_script_has_drawn() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kaas.clock"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    before = Clock.draw()
    os.environ[VARIABLE] = done.stdout.strip()
    try:
        clock = Clock.of_run()
    finally:
        del os.environ[VARIABLE]
    assert str(clock) == done.stdout.strip()
    assert clock.monotonic <= before.monotonic
    assert abs(clock.now() - Clock.of_run().now()) < 60


def test_what_an_emulator_plays_is_of_the_year_2000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_EMULATOR", "somewhere")
    for now in (1.0, 1_700_000_000.5):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert 946_684_800 <= Clock.draw().epoch < 978_307_200


@pytest.mark.parametrize("text", ["now", "1:2:3", "1000.0", "1000.0:1e30", "1000.0:-1", "nan:nan"])
def test_a_pair_that_is_none_or_of_another_boot_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=r"KAAS_CLOCK is .* unset it"):
        Clock.of_run()


def watched(*readings: tuple[float, ...]) -> dict[str, str]:
    remaining = iter([Readings(*reading) for reading in readings])
    last = Readings(*readings[-1])
    watch = Watch(CLOCK, lambda: next(remaining, last))
    for _ in readings[1:]:
        watch.look()
    return watch.notes()


def test_a_wall_clock_that_keeps_step_has_a_drift_and_no_note() -> None:
    found = watched((50.0, 1000.0), (51.0, 1001.0001), (52.0, 2 + 1000.0002))
    assert found["Wall clock drift [s]"] == "+0.000200"
    assert "Clock notes" not in found


def test_a_wall_clock_that_is_set_is_noted_with_when_and_by_how_much() -> None:
    found = watched((50.0, 1000.0), (50.5, 990.5), (51.0, 991.0), (51.5, 1021.5))
    assert found["Clock notes"] == (
        "the wall clock was set by -10.000 s at 1000.000; the wall clock was set by +30.000 s at 1001.000"
    )
    assert found["Wall clock drift [s]"] == "+0.000000"


def test_a_machine_that_slept_is_noted_and_its_wall_clock_was_not_set() -> None:
    found = watched((50.0, 1000.0, 3.0), (50.5, 1100.5, 103.0))
    assert found["Clock notes"] == "the machine slept for 100.0 s at 1000.000"
    assert found["Wall clock drift [s]"] == "+0.000000"


def test_a_run_that_was_stopped_leaves_a_gap_that_is_noted() -> None:
    found = watched((50.0, 1000.0), (58.0, 1008.0))
    assert found["Clock notes"].startswith("the run stood still for 8.0 s at 1000.000: it was stopped, or ")


def test_the_machines_own_clocks_can_be_read() -> None:
    before, after = read_clocks(), read_clocks()
    assert after.monotonic >= before.monotonic
    assert after.suspended == pytest.approx(before.suspended, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "0 s"),
        (3.2, "3 s"),
        (59.6, "1 min"),
        (100.0, "1 min 40 s"),
        (486.0, "8 min 6 s"),
        (3600.0, "1 h"),
        (3601.0, "1 h"),
        (7500.0, "2 h 5 min"),
    ],
)
def test_how_long_something_takes_is_said_in_words(seconds: float, said: str) -> None:
    assert in_words(seconds) == said
