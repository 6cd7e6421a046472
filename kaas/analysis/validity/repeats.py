"""Rules on several repeats: only those that did the same belong into one mean.

Pure. What is not alike is still shown, each repeat for itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kaas.analysis.run import Run
from kaas.analysis.validity import Check

_OF_ONE_RUN = ("Task name", "Server", "Memory", "Time zone", "CPU load before the run")
"""Facts that tell a run from its repeats, not what it was asked to do: its server may have any port that was free."""
_LENGTHS_APART = 0.05
_TELLING_S = 10.0
"""Shorter runs say nothing by their length: to start takes as long."""
_SAME_PART = 0.5
_BY_CHANCE = 10
"""Requests with equal time stamps that say nothing: round ones may agree."""
_SHOWN = 3


class Alike(NamedTuple):
    """Repeats that can be taken together, and of each other one, by its task, why it cannot."""

    pooled: list[Run]
    differing: dict[str, str]


def alike(found: Sequence[Run]) -> Alike:
    """Choose the repeats that did the same: the most that have the same parameters, machine and length, each one once.

    A mean over different things is of nothing, and a run that is counted twice makes an interval too narrow.

    Args:
        found: repeats of one experiment, at least one.
    """
    settings = {run.task: _setting(run) for run in found}
    kinds = Counter(settings.values())
    commonest = max(kinds, key=lambda setting: kinds[setting])  # of equals, the first
    usual = dict(commonest)
    pooled: list[Run] = []
    differing: dict[str, str] = {}
    lengths = [run.duration for run in found if settings[run.task] == commonest and run.is_whole]
    length = float(np.median(lengths)) if lengths else 0.0
    for run in found:
        if why := _differs(run, dict(settings[run.task]), usual, length) or _is_one_of(run, pooled):
            differing[run.task] = why
        else:
            pooled.append(run)
    return (
        Alike(pooled, differing) if pooled else Alike([found[0]], {run.task: differing[run.task] for run in found[1:]})
    )


def check(found: Sequence[Run]) -> list[tuple[str, Check]]:
    """Say of each repeat of one experiment why it is not taken together with the others, and what it is called."""
    rule, other_rule = "Repeats that are taken together did the same.", "Each repeat has a number of its own."
    differing = alike(found).differing
    checks = []
    for run in found:
        why = differing.get(run.task, "")
        checks.append((run.task, Check(rule, f"it is left out of means over repeats: {why}" if why else "")))
        namesakes = [other.task for other in found if other.repeat == run.repeat and other is not run]
        said = f"{', '.join(namesakes)} bears the same number of a repeat" if namesakes else ""
        checks.append((run.task, Check(other_rule, said)))
    return checks


def _setting(run: Run) -> tuple[tuple[str, str], ...]:
    facts = ({"Host": run.told.machine} if run.told.machine else {}) | dict(run.told.settings)
    return tuple(sorted((name, value) for name, value in facts.items() if name not in _OF_ONE_RUN))


def _differs(run: Run, own: Mapping[str, str], usual: Mapping[str, str], length: float) -> str:
    names = [name for name in dict.fromkeys((*usual, *own)) if usual.get(name, "") != own.get(name, "")]
    if names:
        said = [
            f"{name} is {own.get(name) or 'not known'} here, {usual.get(name) or 'not known'} there" for name in names
        ]
        return "; ".join(said[:_SHOWN]) + (f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")
    if not run.timed:
        return "its times cannot be trusted"
    if not run.is_whole:
        return "it did not come to its end"
    if max(run.duration, length) >= _TELLING_S and abs(run.duration - length) > _LENGTHS_APART * length:
        return f"it lasted {run.duration:,.1f} s, the others {length:,.1f} s"
    return ""


def _is_one_of(run: Run, others: Sequence[Run]) -> str:
    """Say which other one holds the same requests: no two runs agree in the microseconds of most."""
    for other in others:
        shared = int(np.isin(run.requests["timestamp"], other.requests["timestamp"]).sum())
        if shared > max(_BY_CHANCE, _SAME_PART * len(run.requests)):
            return f"it holds the requests of {other.task}"
    return ""
