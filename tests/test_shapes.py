"""The shapes of the load besides the ramp, and arrivals: as functions of time, and as users ask for them."""

from itertools import pairwise
from pathlib import Path

import pytest

from kaas import shape_setting
from kaas.arrivals import Constant, Poisson
from kaas.errors import UsageError
from kaas.ramp import Ramp
from kaas.shapes import OpenLoop, Stepwise

RAMP = Ramp(1, 3, 1, 10.0)


def shape(text: str, ramp: Ramp = RAMP) -> Stepwise:
    found = shape_setting.read(text, ramp, "SHAPE")
    assert isinstance(found, Stepwise)
    return found


def steps(found: Stepwise) -> list[tuple[float, int]]:
    """Go from change to change, as the load generator does."""
    elapsed, seen = 0.0, []
    while elapsed < found.duration:
        seen.append((elapsed, found.clients(elapsed)))
        elapsed = found.next_change(elapsed)
    return seen


def arrivals(text: str, ramp: Ramp = RAMP) -> list[float]:
    found = shape(text, ramp)
    assert isinstance(found, OpenLoop)
    return list(found.arrivals)


def test_steps_are_the_ramp_itself() -> None:
    assert shape_setting.read("steps", RAMP, "SHAPE") is RAMP
    assert shape_setting.noted(RAMP) == {}


@pytest.mark.parametrize(
    ("text", "numbers", "duration", "most"),
    [
        # 1, 2, 3 clients and down again, each for 10 s
        ("updown", [1, 2, 3, 2, 1], 50.0, 3),
        # few, and in every second interval many; at the end few
        ("bursts", [1, 3, 1, 3, 1, 3, 1], 70.0, 3),
        ("bursts:1", [1, 3, 1], 30.0, 3),
    ],
)
def test_a_shape_of_even_steps(text: str, numbers: list[int], duration: float, most: int) -> None:
    found = shape(text)
    assert steps(found) == [(10.0 * step, number) for step, number in enumerate(numbers)]
    assert (found.duration, found.most, found.clients(duration), found.next_change(duration)) == (
        duration,
        most,
        0,
        duration,
    )
    assert (found.label(0.0), found.label(duration)) == (
        f"step 1/{len(numbers)}",
        f"step {len(numbers)}/{len(numbers)}",
    )
    assert shape_setting.noted(found) == {"Shape": text, "Shape duration [s]": f"{duration:g}", "Shape clients": most}


def test_going_up_and_down_ends_with_as_few_clients_as_it_began_though_the_last_step_up_is_a_smaller_one() -> None:
    assert [number for _, number in steps(shape("updown", Ramp(2, 9, 3, 0.1)))] == [2, 5, 8, 9, 8, 5, 2]


@pytest.mark.parametrize(
    ("lines", "expected", "duration"),
    [
        ("seconds,clients\n0,2\n1.5,0\n3,1\n4,0\n", [(0.0, 2), (1.5, 0), (3.0, 1)], 4.0),  # 0 clients: the end
        ("0,2\n\n5,4\n", [(0.0, 2), (5.0, 4)], 15.0),  # else the last step is an interval long
        ("\ufeff0 , 1\r\n", [(0.0, 1)], 10.0),
    ],
)
def test_a_trace_of_clients_is_followed(
    tmp_path: Path, lines: str, expected: list[tuple[float, int]], duration: float
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(lines)
    found = shape(f"trace:{file}")
    assert (steps(found), found.duration) == (expected, duration)


def test_a_constant_rate_arrives_evenly_and_lasts_as_long_as_the_steps_would() -> None:
    assert list(Constant(4.0, 1.0)) == [0.0, 0.25, 0.5, 0.75]
    found = shape("constant:0.1")
    assert (arrivals("constant:0.1"), found.duration, found.most) == ([0.0, 10.0, 20.0], 30.0, 3)
    assert steps(found) == [(0.0, 3), (10.0, 3), (20.0, 3)]  # all clients are there all the time
    assert found.clients(30.0) == 0


def test_poisson_arrivals_are_those_of_their_seed_and_have_mean_and_spread_of_their_kind() -> None:
    drawn = list(Poisson(100.0, 100.0, 7))
    assert drawn == list(Poisson(100.0, 100.0, 7)) == arrivals("poisson:100:7", Ramp(1, 1, 1, 100.0))
    assert drawn != list(Poisson(100.0, 100.0, 8))
    assert arrivals("poisson:2") == list(Poisson(2.0, 30.0, 1))
    gaps = [other - one for one, other in pairwise(drawn)]
    assert 0.0 < drawn[0] < drawn[-1] < 100.0
    assert min(gaps) >= 0.0
    # Of 10,000: three standard deviations of their number, and the mean of the squares that exponential gaps have.
    assert len(drawn) == pytest.approx(10_000, abs=300)
    assert sum(gap**2 for gap in gaps) / len(gaps) == pytest.approx(2 / 100**2, rel=0.1)


def test_recorded_arrivals_are_times_or_counts_a_minute_of_all_functions_together(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("time\n0.5\n0.5\n2\n12.25\n")
    assert arrivals(f"arrivals:{times}") == [0.5, 0.5, 2.0, 12.25]
    assert shape(f"arrivals:{times}").duration == 12.25
    # The public trace of Azure Functions has such columns: 1440 minutes of a day.
    counts = tmp_path / "counts"
    counts.write_text("HashOwner,HashApp,HashFunction,Trigger,1,2,3\na,b,c,http,1,0,2\nd,e,f,timer,2,0,1\n")
    assert arrivals(f"arrivals:{counts}") == [0.0, 20.0, 40.0, 120.0, 140.0, 160.0]
    assert shape(f"arrivals:{counts}").duration == 180.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ramp", "give steps, updown, bursts"),
        ("", "give steps, updown, bursts"),
        ("trace:", "give steps, updown, bursts"),  # of which file?
        ("poisson", "give steps, updown, bursts"),  # at which rate?
        ("steps:4", "set by the other settings"),
        ("updown:4", "set by the other settings"),
        ("bursts:0", "'0' is not a number of bursts above 0"),
        ("bursts:1.5", "1.5 is no number of bursts"),
        ("constant:fast", "'fast' is not a number of arrivals a second above 0"),
        ("constant:nan", "'nan' is not a number of arrivals"),
        ("poisson:-1", "'-1' is not a number of arrivals"),
        ("poisson:5:x", "x is no seed"),
        ("poisson:1e9", "arrivals are over 10000000"),
        ("trace:nowhere.csv", "nowhere.csv: No such file"),
    ],
)
def test_what_is_no_shape_is_said_with_the_settings_name(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        shape_setting.read(text, RAMP, "SHAPE")
    assert str(raised.value).startswith(f"SHAPE is {text!r}: ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "lines", "said"),
    [
        ("trace", "", "is empty"),
        ("trace", "1,2\n", "at 0 s"),
        ("trace", "seconds,clients\n", "at 0 s"),
        ("trace", "0,2\n5,x\n", "line 2 has no seconds,clients but '5,x'"),
        ("trace", "0,2\n5\n", "line 2 has no seconds,clients but '5'"),
        ("trace", "0,2\n5,1.5\n", "line 2 has 1.5 clients"),
        ("trace", "0,99999\n", "at most 10000"),
        ("trace", "0,2\n5,1\n5,2\n", "do not rise"),
        ("trace", "0,2\nnan,1\n", "do not rise"),
        ("trace", "0,0\n5,0\n", "no client at any time"),
        ("arrivals", "time\n", "no time of an arrival"),
        ("arrivals", "1\n0.5\n", "line 2 has 0.5 s, which is before"),
        ("arrivals", "1\nsoon\n", "line 2 has no time in seconds but 'soon'"),
        ("arrivals", "-1\n", "before 0 s"),
        ("arrivals", "app,1,2\na,3\n", "line 2 has no count for minute 2"),
        ("arrivals", "app,1,2\na,0,0\n", "arrivals are none"),
    ],
)
def test_a_file_that_will_not_do_is_said_with_the_line(tmp_path: Path, kind: str, lines: str, said: str) -> None:
    file = tmp_path / "file"
    file.write_text(lines)
    with pytest.raises(UsageError, match="SHAPE is ") as raised:
        shape_setting.read(f"{kind}:{file}", RAMP, "SHAPE")
    assert said in str(raised.value)
