"""Policies side by side on the same load: what each costs and gives, and which differences are more than chance.

Of as many numbers, chance alone makes some look different. So a difference is called one only if it remains when all of
the table are looked at together (Holm's correction), which takes `SEEDS_AT_LEAST` seeds. kaas.analysis.policies draws
them.
"""

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kaas.comparisons import ALPHA, holm
from kaas.errors import ResultsError
from kaas.policy import NAMES, Policy, named
from kaas.simulation import observed, ways
from kaas.simulation.experiment import Simulated, simulate
from kaas.simulation.model import Model
from kaas.simulation.observed import Floats
from kaas.simulation.setting import Setting

MOST_WAITING = 1024
"""Of the queues: the server's default."""
BUSY_W, BOOTED_W, OFF_W = 250.0, 45.0, 25.0
"""Power of a GPU that computes, of one that is booted and does not, and of one that is not booted. Assumed, for a GPU
of at most 250 W; only the differences between policies are of interest."""
MEASURES = (
    "p50 [s]",
    "p95 [s]",
    "p99 [s]",
    "served",
    "refused",
    "cold starts",
    "GPU-seconds booted",
    "GPU-seconds idle",
    "energy [kJ]",
)
"""Completion times are those of all served requests. Idle is booted and without a kernel."""
COLUMNS = ("policy", "measure", "simulated seeds", "mean", "low", "high", "p", "p, all lines", "differs")
YES, NO = "yes", "no"
SEEDS_AT_LEAST = 11
"""Of two policies that differ in each of fewer seeds, chance makes such a difference too often among 45."""
HOW_TO_READ = (
    "Means over {seeds} simulated runs, +- half of a 95 % interval. *: it differs from\nthe first policy by more than "
    f"chance, all of them looked at together (Holm's\ncorrection, p < {ALPHA:g}; from {SEEDS_AT_LEAST} seeds on)"
)
_BESIDE_EACH_OTHER = 3
_MOST_SIGNS = 14
_DRAWS = 2000
_CONFIDENCE = 0.95


class Compared(NamedTuple):
    """One policy: `values` has a row for each seed and a column for each of `MEASURES`, and `p` a value for each.

    `p` is the probability of a difference to the first policy as large as this, or larger, if there were none; `p_all`
    the same corrected for the number of all comparisons.
    """

    name: str
    values: Floats
    p: Floats
    p_all: Floats


def compare(model: Model, setting: Setting, seeds: range) -> list[Compared]:
    """Simulate every policy, without and with a queue, on the same seeds, as this harness does.

    The paper's is the first.

    Raises:
        ResultsError: nothing ended in a run.
    """
    kinds: dict[str, Callable[[], Policy]] = {}
    for name in NAMES:
        kinds |= {name: partial(named, name), f"{name}, queue": partial(named, name, MOST_WAITING)}
    setting, model = replace(ways.HARNESS.setting(setting), observed=True), ways.HARNESS.model(model)
    found: list[Compared] = []
    for name, policy in kinds.items():
        runs = (simulate(model, replace(setting, policy=policy), seed) for seed in seeds)
        values = np.array([_measures(run) for run in runs])
        p = np.array([_p(column) for column in (values - found[0].values).T] if found else [1.0] * len(MEASURES))
        found.append(Compared(name, values, p, p))
    first, others = found[0], found[1:]
    corrected = holm(np.array([one.p for one in others]).ravel()).reshape(len(others), -1)
    return [first, *(one._replace(p_all=p_all) for one, p_all in zip(others, corrected, strict=True))]


def _measures(run: Simulated) -> list[float]:
    seen, ok = observed.of_rows(run.rows), [row for row in run.rows if row.status == "ok"]
    times = np.percentile(seen.outer[seen.ok], (50, 95, 99)) if ok else np.full(3, np.nan)
    assert run.gpus is not None
    booted, busy = 0.0, sum(end - begin for spans in run.gpus.kernels for begin, end in spans)
    for event in run.events:
        if event.event in {"booted", "stopped"}:
            until_end = max(run.ended - event.timestamp, 0.0)
            booted += until_end if event.event == "booted" else -until_end
    off = run.setting.gpus * run.ended - booted
    energy = busy * BUSY_W + max(booted - busy, 0.0) * BOOTED_W + off * OFF_W
    counts = [len(ok), len(run.rows) - len(ok), sum(row.cold_start for row in run.rows)]
    return [*times.tolist(), *map(float, counts), booted, max(booted - busy, 0.0), energy / 1000]


def _p(differences: Floats) -> float:
    """Tell how often signs drawn at random make the mean of paired differences as large (a sign-flip test)."""
    number = len(differences)
    if np.isnan(differences).any():
        return float("nan")
    if number <= _MOST_SIGNS:
        signs = 1.0 - 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1)
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (2**_MOST_SIGNS, number))
    drawn = int(number > _MOST_SIGNS)  # then the signs that were seen are one draw more
    as_large = np.abs(signs @ differences) / number >= abs(differences.mean()) - 1e-12
    return float((as_large.sum() + drawn) / (len(signs) + drawn))


def interval(values: Floats) -> tuple[float, float]:
    """Give the 95 % interval of a mean over seeds, drawn from them again and again (bootstrap)."""
    drawn = np.random.default_rng(0).choice(values, (_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def table(found: list[Compared]) -> str:
    """Write means over seeds +- half of their intervals, a column for each policy; `*` where it differs from the first.

    They are so many that only some stand beside each other.
    """
    text = []
    for begin in range(0, len(found), _BESIDE_EACH_OTHER):
        columns = [["", *MEASURES]]
        for one in found[begin : begin + _BESIDE_EACH_OTHER]:
            cells = []
            for values, p in zip(one.values.T, one.p_all, strict=True):
                low, high = interval(values)
                cells.append(f"{values.mean():.4g} +- {(high - low) / 2:.2g}{'*' if p < ALPHA else ' '}")
            columns.append([f"{one.name} ", *cells])
        text.append(ways.columns(list(map(list, zip(*columns, strict=True)))))
    return "\n\n".join(text)


def write(found: list[Compared], path: Path) -> None:
    """Write a line for each policy and measure: mean, interval, p against the first policy, and whether it differs.

    Raises:
        ResultsError: the file is there already, or cannot be written.
    """
    try:
        with path.open("x", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for one in found:
                for name, values, p, p_all in zip(MEASURES, one.values.T, one.p, one.p_all, strict=True):
                    differs = YES if p_all < ALPHA else NO
                    rows.writerow([one.name, name, len(values), values.mean(), *interval(values), p, p_all, differs])
    except FileExistsError:
        raise ResultsError(f"{path} is there already: move it away, or give another --output") from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
