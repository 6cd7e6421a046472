"""The paper's claims on autoscaling as checks: what is expected, with its tolerance, what was found, and the verdict.

The claims are those of Pfandzelter et al., "Kernel-as-a-Service", Middleware '23. Their words give what is counted;
how much is enough was chosen here: a rank agreement of 0.9, one task runner too few, the share of one worker of all, an
exponent of 0.8. The published data were known when it was. They satisfy the exponent narrowly, so this says what they
show, and not that it was foretold. Where a run does not tell, no verdict is forced on it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kaas.analysis import series, statistics
from kaas.analysis.runs import Run

HOW_TO_READ = (
    "Read each line as one claim put to one repeat: what would have to be found for it to hold, what was found, and "
    "the verdict, which is open where the run does not tell."
)

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_BE_TOLD = "cannot be told"

RANK_AGREEMENT_AT_LEAST = 0.9
EXPONENT_AT_LEAST = 0.8
_TOO_FEW = 1
_LEVELS_AT_LEAST = 3
_CLOCKS_APART_S = 1.0
"""By how much the server's clock may differ from that of the clients."""
_VIRTUAL = "The GPUs are virtual and share the same cores, of which one more GPU adds none."


class Claim(NamedTuple):
    """One claim put to one run."""

    claim: str
    expected: str
    found: str
    verdict: str
    note: str


class _Finding(NamedTuple):
    found: str
    holds: bool
    note: str = ""


class _UnclearError(Exception):
    """Why a run does not tell."""


def check(found: Sequence[Run]) -> pd.DataFrame:
    """Put each claim to each run: rows in the order of the claims (index: claim and task).

    Columns: `expected`, `found`, `verdict` (HOLDS, DOES_NOT_HOLD or CANNOT_BE_TOLD) and `note`, all of them words.
    """
    by_claim = zip(*map(check_run, found), strict=True)
    rows = [(run.task, *claim) for same in by_claim for run, claim in zip(found, same, strict=True)]
    return pd.DataFrame(rows, columns=["task", *Claim._fields]).set_index(["claim", "task"])


def check_run(run: Run) -> list[Claim]:
    """Put each claim to one run."""
    setting = _Setting.of(run)
    return [_check(claim, expected, judge, setting) for claim, expected, judge in _CLAIMS]


def _check(claim: str, expected: str, judge: "Callable[[_Setting], _Finding]", setting: "_Setting") -> Claim:
    try:
        finding = judge(setting)
    except _UnclearError as reason:
        return Claim(claim, expected, "", CANNOT_BE_TOLD, str(reason))
    return Claim(claim, expected, finding.found, HOLDS if finding.holds else DOES_NOT_HOLD, finding.note)


class _Setting(NamedTuple):
    """What more than one check asks of a run; None is what is not known."""

    run: Run
    steps: pd.DataFrame
    first_boots: "pd.Series[float]"
    gpus: int | None
    workers_per_gpu: int | None

    @classmethod
    def of(cls, run: Run) -> "_Setting":
        booted = run.events[run.events["event"] == "booted"]
        sampled = run.monitoring["gpu"].nunique()
        return cls(
            run,
            statistics.steps(run),
            booted.groupby("gpu")["elapsed"].min().sort_values(),
            _whole(run.parameters.get("Server number of GPUs")) or sampled or None,
            _whole(run.parameters.get("Server workers per GPU"))
            or (int(booted["num_workers"].max()) if len(booted) else None),
        )

    @property
    def note_if_virtual(self) -> str:
        """Say why no more work is done with more GPUs, if those are virtual; else nothing."""
        return _VIRTUAL if self.run.monitoring["bus_id"].str.startswith("virtual:").any() else ""

    def needs_log(self) -> None:
        if self.first_boots.empty:
            raise _UnclearError("No boot was logged by the server.")

    def needs_growth(self) -> tuple[int, int]:
        """Give the GPUs and the workers of each, for a ramp that goes beyond one of several GPUs."""
        gpus = self.gpus or len(self.first_boots)
        workers = self.workers_per_gpu
        if not gpus or not workers:
            raise _UnclearError("The number of GPUs or of their workers is not known.")
        if gpus == 1:
            raise _UnclearError("There was one GPU only.")
        most = int(self.run.requests["concurrency"].max())
        if most <= workers:
            raise _UnclearError(f"One task runner has a worker for each client: there were {most} at most.")
        levels = self.steps["clients"].nunique()
        if levels < _LEVELS_AT_LEAST:
            raise _UnclearError(f"The ramp has too few steps to see growth: {levels}.")
        return gpus, workers


def _grow(setting: _Setting) -> _Finding:
    setting.needs_log()
    gpus, workers = setting.needs_growth()
    task_runners = series.task_runners(setting.run)
    # In the middle of each step, because the published clients were counted late.
    middles = (setting.steps["begin"] + setting.steps["end"]) / 2
    counts = task_runners.to_numpy()[task_runners.index.searchsorted(middles, side="right") - 1]
    clients = setting.steps["clients"].to_numpy()
    agreement = statistics.rank_agreement(clients, counts)
    too_many = int((counts > np.ceil(clients / workers)).sum())
    # What needs a worker is at the server: not the client that makes its input, nor the one that hangs.
    edges = np.append(setting.steps["begin"], setting.steps["end"].iloc[-1])
    needed = np.ceil(series.means_of_steps(series.in_flight(setting.run), edges) / workers).clip(max=gpus)
    too_few = int((counts < needed - _TOO_FEW).sum())
    found = (
        f"rank agreement {_known(agreement, 2)}; up to {counts.max()} of {gpus} task runners with up to "
        f"{clients.max()} clients, of {len(counts)} steps too many in {too_many}, too few in {too_few}"
    )
    note = "The number of task runners never changed." if math.isnan(agreement) else ""
    return _Finding(found, agreement >= RANK_AGREEMENT_AT_LEAST and not too_many + too_few, note)


def _one_cold_start(setting: _Setting) -> _Finding:
    setting.needs_log()
    run = setting.run
    is_cold = run.requests["cold_start"]
    cold = sorted(zip(run.ends[is_cold], run.requests["elapsed"][is_cold], strict=True))
    boots = sorted(run.events["elapsed"][run.events["event"] == "booted"])
    found = f"{len(cold)} cold starts, {len(boots)} boots"
    unmatched = 0
    for boot in boots:
        # Of several at that time, the one that ends first is of no use to a later boot.
        around = (one for one in cold if one[1] - _CLOCKS_APART_S <= boot <= one[0] + _CLOCKS_APART_S)
        if (match := next(around, None)) is None:
            unmatched += 1
        else:
            cold.remove(match)
    if unmatched:
        found += f", {unmatched} of them without one in its time"
    return _Finding(found, not cold and not unmatched)


def _bounded(setting: _Setting) -> _Finding:
    gpus, workers = setting.needs_growth()
    setting.needs_log()
    requests = setting.run.requests
    warm = requests[series.warm(setting.run)]
    medians = warm.groupby("concurrency")["outer_time_ms"].median()
    if len(medians) < _LEVELS_AT_LEAST:
        raise _UnclearError(f"Warm requests were served in too few steps of the ramp: {len(medians)}.")
    second_boot = setting.first_boots.iloc[1] if len(setting.first_boots) > 1 else math.inf
    one_gpu = float(warm["outer_time_ms"][warm["elapsed"] < second_boot].median())
    if math.isnan(one_gpu):
        raise _UnclearError("No warm request was served before the second GPU was booted.")
    slope = statistics.slope(medians.index, medians)
    at_most = one_gpu / (gpus * workers)
    growth = int(medians.index.max() - medians.index.min()) / one_gpu
    found = (
        f"{slope:.3g} ms per client (at most {at_most:.3g}), over the ramp {100 * slope * growth:+.0f} % (at most "
        f"{100 * at_most * growth:+.0f} %) of {one_gpu:.4g} ms with one GPU"
    )
    holds = slope <= at_most
    return _Finding(found, holds, "" if holds else setting.note_if_virtual)


def _in_proportion(setting: _Setting) -> _Finding:
    gpus, workers = setting.needs_growth()
    # The first step is short of requests: the first of them all waits for a boot.
    clients = setting.steps["clients"]
    ramp = setting.steps[clients.between(clients.min(), gpus * workers, inclusive="right")]
    ramp = ramp.sort_values("clients", kind="stable")
    levels = ramp["clients"].nunique()
    if levels < _LEVELS_AT_LEAST:
        raise _UnclearError(f"The ramp has too few steps between its first and as many clients as workers: {levels}.")
    if idle := int((ramp["throughput"] == 0).sum()):
        raise _UnclearError(f"No request was served in {idle} of the {len(ramp)} steps that tell.")
    exponent = statistics.slope(np.log(ramp["clients"]), np.log(ramp["throughput"]))
    each = (ramp["throughput"] / ramp["clients"]).set_axis(ramp["clients"])
    first, last = each.iloc[0], each.iloc[-1]
    note = (
        f"The share of each client is {first:.3g}/s with {each.index[0]} of them and {last:.3g}/s with "
        f"{each.index[-1]} ({last / first - 1:+.0%})."
    )
    holds = exponent >= EXPONENT_AT_LEAST
    found = f"throughput ~ clients^{exponent:.2f}, {2**exponent:.2f} times with twice the clients"
    return _Finding(found, holds, note if holds else f"{note} {setting.note_if_virtual}".strip())


def _all_used(setting: _Setting) -> _Finding:
    setting.needs_log()
    if setting.gpus is None:
        raise _UnclearError("The number of GPUs is not known.")
    used, last_boot = len(setting.first_boots), setting.first_boots.iloc[-1]
    refusals = _refusals(setting.run)
    if refusals.empty:
        if used < setting.gpus:
            raise _UnclearError(f"No request was refused, and {used} of {setting.gpus} GPUs were used.")
        if used == 1:
            raise _UnclearError("No request was refused, and there was one GPU only.")
        return _Finding(f"all {used} GPUs booted by {last_boot:.1f} s, no request refused", holds=True)
    first = float(refusals.min())
    before = int((setting.first_boots <= first).sum())
    found = f"{before} of {setting.gpus} GPUs booted when the first of {len(refusals)} was refused at {first:.1f} s"
    return _Finding(found, before >= setting.gpus)


def _refusals(run: Run) -> "pd.Series[float]":
    """Give when requests were refused, by the server's log; without it, when they came back, which is at once."""
    logged = run.events["elapsed"][run.events["event"] == "rejected"]
    return run.ends[run.requests["status"] == "rejected"] if logged.empty else logged


def _known(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


_CLAIMS: tuple[tuple[str, str, Callable[[_Setting], _Finding]], ...] = (
    (
        "Task runners grow with the clients.",
        f"in the middle of each step: a rank agreement of {RANK_AGREEMENT_AT_LEAST} at least, never more task runners "
        "than clients / workers of one, rounded up, and at most one fewer than the step's mean number of requests in "
        "flight / workers of one, rounded up, as far as there are GPUs",
        _grow,
    ),
    (
        "Each task runner that is booted costs one cold start.",
        f"as many cold starts as boots, exactly, each boot within the time of its own (clocks {_CLOCKS_APART_S:g} s "
        "apart at most)",
        _one_cold_start,
    ),
    (
        "Completion time stays bounded while clients grow.",
        "a slope of the warm medians over the clients of at most the median with one GPU / all workers: a queue "
        "before all GPUs at once, not before one of them",
        _bounded,
    ),
    (
        "Throughput grows in proportion to the clients until the GPUs are used up.",
        f"throughput ~ clients^e with an e of {EXPONENT_AT_LEAST} at least, which is {2**EXPONENT_AT_LEAST:.2f} times "
        "with twice the clients: from the second step on, up to as many clients as there are workers",
        _in_proportion,
    ),
    (
        "Every GPU is used before a request is refused.",
        "all GPUs booted when the first request is refused",
        _all_used,
    ),
)
