"""The load's shape as a user asks for it: one word, and after a colon what it needs. Files are read here.

    steps               the experiment's: from few clients to many, a step each interval
    updown              the same, and down again
    bursts[:NUMBER]     the fewest clients, and in every second interval the most: so often (3 times)
    trace:FILE          as many clients as a file says: lines of `seconds,clients`
    constant:RATE       an open loop: so many arrivals a second, evenly
    poisson:RATE[:SEED] the same number on average, each independent of the others (seed 1)
    arrivals:FILE       arrivals as a file has them: a time in seconds in each line, or counts a minute

An open loop of a rate lasts as long as the steps would, and has the most clients all the time to send what arrives. A
file of clients begins at 0 s; its last line ends it if that has 0 clients, else the last step is an interval long.
Counts a minute stand in columns that are named 1, 2, 3 and so on, as in the public trace of Azure
Functions (https://github.com/Azure/AzurePublicDataset); all lines are added up, and those of a minute arrive evenly.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from kaas import shapes
from kaas.arrivals import Constant, Poisson
from kaas.errors import UsageError
from kaas.ramp import Ramp, Shape
from kaas.shapes import Stepwise

GRAMMAR = "steps, updown, bursts[:NUMBER], trace:FILE, constant:RATE, poisson:RATE[:SEED] or arrivals:FILE"
DEFAULT = "steps"
MOST_ARRIVALS = 10_000_000
_MOST_STEPS = 1_000_000
_MOST_CLIENTS = 10_000
_BURSTS = 3
_MINUTE = 60.0


def read(text: str, ramp: Ramp, called: str) -> Ramp | Stepwise:
    """Make the shape that a user asks for.

    Args:
        text: what was asked for.
        ramp: that of the other settings, whose clients and interval it has.
        called: the setting's name, with which a complaint begins.

    Raises:
        UsageError: there is no such shape, or its file will not do.
    """
    kind, _, rest = text.partition(":")
    try:
        if kind in _FROM and (rest or kind in _ALONE):
            return _FROM[kind](text, rest, ramp)
    except ValueError as error:
        raise UsageError(f"{called} is {text!r}: {error}") from None
    raise UsageError(f"{called} is {text!r}: give {GRAMMAR}")


def noted(shape: Shape) -> Mapping[str, object]:
    """Give what a run's description says of a shape that is not the experiment's own."""
    if not isinstance(shape, Stepwise):
        return {}
    return {"Shape": shape.name, "Shape duration [s]": f"{shape.duration:.10g}", "Shape clients": shape.most}


def _steps(_: str, rest: str, ramp: Ramp) -> Ramp:
    if rest:
        raise ValueError("steps are set by the other settings: give steps alone")
    return ramp


def _updown(name: str, rest: str, ramp: Ramp) -> Stepwise:
    if rest:
        raise ValueError("the steps are set by the other settings: give updown alone")
    return shapes.up_and_down(name, ramp)


def _bursts(name: str, rest: str, ramp: Ramp) -> Stepwise:
    number = _number(rest or str(_BURSTS), "a number of bursts")
    if number % 1 or number > _MOST_STEPS:
        raise ValueError(f"{rest} is no number of bursts: give a whole number, as in bursts:3")
    return shapes.bursts(name, ramp, int(number))


def _trace(name: str, rest: str, ramp: Ramp) -> Stepwise:
    begins, numbers = [], []
    for line, cells in _lines(rest):
        try:
            at, clients = map(float, cells)
        except ValueError:
            raise ValueError(f"line {line} has no seconds,clients but {','.join(cells)[:40]!r}") from None
        if not (0 <= clients <= _MOST_CLIENTS and clients % 1 == 0):
            raise ValueError(f"line {line} has {clients:g} clients: give a whole number of at most {_MOST_CLIENTS}")
        begins.append(at)
        numbers.append(int(clients))
    if not begins or begins[0] != 0:
        raise ValueError("its first line must say how many clients there are at 0 s")
    if not all(one < other < math.inf for one, other in pairwise(begins)):
        raise ValueError("its times do not rise from line to line")
    if not any(numbers):
        raise ValueError("it has no client at any time")
    end = begins[-1] + ramp.interval
    if not numbers[-1]:
        numbers.pop()
        end = begins.pop()
    return Stepwise(name, tuple(begins), tuple(numbers), end)


def _constant(name: str, rest: str, ramp: Ramp) -> Stepwise:
    rate = _rate(rest, ramp)
    return shapes.open_loop(name, Constant(rate, ramp.duration), ramp.max_clients, ramp.duration, ramp.interval)


def _poisson(name: str, rest: str, ramp: Ramp) -> Stepwise:
    rate, _, seed = rest.partition(":")
    if seed and not (seed.isascii() and seed.isdecimal()):
        raise ValueError(f"{seed} is no seed: give a whole number, as in poisson:5:1")
    arrivals = Poisson(_rate(rate, ramp), ramp.duration, int(seed or 1))
    return shapes.open_loop(name, arrivals, ramp.max_clients, ramp.duration, ramp.interval)


def _arrivals(name: str, rest: str, ramp: Ramp) -> Stepwise:
    lines = list(_lines(rest, headed=False))
    minutes = {place: int(cell) for place, cell in enumerate(lines[0][1]) if cell.isascii() and cell.isdecimal()}
    if lines and len(lines[0][1]) > 1 and minutes:
        times, duration = _of_minutes(minutes, lines[1:])
    else:
        times = _times(lines)
        duration = max(times[-1], ramp.interval)
    if duration / ramp.interval > _MOST_STEPS:
        raise ValueError(f"it lasts {duration:g} s, which is over {_MOST_STEPS} intervals")
    return shapes.open_loop(name, times, ramp.max_clients, duration, ramp.interval)


def _times(lines: list[tuple[int, list[str]]]) -> tuple[float, ...]:
    """Read one time in each line, but for a first line that names the column."""
    times: list[float] = []
    for line, cells in lines:
        try:
            (at,) = map(float, cells)
        except ValueError:
            if line == 1:
                continue
            raise ValueError(f"line {line} has no time in seconds but {','.join(cells)[:40]!r}") from None
        if not (times[-1] if times else 0.0) <= at < math.inf:
            raise ValueError(f"line {line} has {at:g} s, which is before the line above it, or before 0 s")
        times.append(at)
    if not times:
        raise ValueError("no time of an arrival is in it")
    if len(times) > MOST_ARRIVALS:
        raise ValueError(f"its {len(times)} arrivals are over {MOST_ARRIVALS}")
    return tuple(times)


def _of_minutes(minutes: Mapping[int, int], lines: list[tuple[int, list[str]]]) -> tuple[tuple[float, ...], float]:
    """Add up the counts of each minute over all lines; give the arrivals, and the seconds that the minutes take."""
    counts = dict.fromkeys(sorted(minutes.values()), 0)
    for line, cells in lines:
        for place, minute in minutes.items():
            count = cells[place] if place < len(cells) else ""
            if not (count.isascii() and count.isdecimal()):
                raise ValueError(f"line {line} has no count for minute {minute} but {count[:40]!r}")
            counts[minute] += int(count)
    if not 0 < sum(counts.values()) <= MOST_ARRIVALS or min(counts) < 1:
        raise ValueError(f"its {sum(counts.values())} arrivals are none, or over {MOST_ARRIVALS}")
    times = [_MINUTE * (minute - 1 + one / count) for minute, count in counts.items() for one in range(count)]
    return tuple(times), _MINUTE * max(counts)


def _lines(name: str, *, headed: bool = True) -> Iterable[tuple[int, list[str]]]:
    """Give the cells of each line that has any, and its number; not a first line that names the columns.

    Raises:
        ValueError: the file cannot be read, or is empty.
    """
    try:
        lines = list(csv.reader(Path(name).read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{name} is no file of CSV") from None
    numbered = [(number, [cell.strip() for cell in cells]) for number, cells in enumerate(lines, 1) if any(cells)]
    if not numbered:
        raise ValueError(f"{name} is empty")
    return numbered[1:] if headed and not numbered[0][1][0][:1].isdecimal() else numbered


def _rate(text: str, ramp: Ramp) -> float:
    rate = _number(text, "a number of arrivals a second")
    if rate * ramp.duration > MOST_ARRIVALS:
        raise ValueError(f"{rate * ramp.duration:.0f} arrivals are over {MOST_ARRIVALS}")
    return rate


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is not {what} above 0")
    return number


_FROM: Mapping[str, Callable[[str, str, Ramp], Ramp | Stepwise]] = {
    "steps": _steps,
    "updown": _updown,
    "bursts": _bursts,
    "trace": _trace,
    "constant": _constant,
    "poisson": _poisson,
    "arrivals": _arrivals,
}
_ALONE = {"steps", "updown", "bursts"}
"""Those that need nothing after their name."""
