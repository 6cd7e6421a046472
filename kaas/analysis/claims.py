"""The paper's claims on autoscaling as checks: what is expected, with its tolerance, what was found, and the verdict.

The claims are those of Pfandzelter et al., "Kernel-as-a-Service", Middleware '23, and what follows from its rule of
placement. Their words give what is counted; how much is enough was chosen here, with the published data known, so this
says what they show, and not that it was foretold. The limits are far from what those data have: each stands beside what
was found, with its uncertainty. Where a run does not tell, no verdict is forced on it. How each claim is judged stands
in growth_judges and boot_judges.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import pandas as pd

from kaas.analysis import boot_judges, booted, growth_judges, judging, replay, runs
from kaas.analysis.judging import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, NOT_TESTABLE, Finding, UnclearError
from kaas.analysis.runs import Run
from kaas.analysis.setting import Setting, setting_of
from kaas.analysis.validity.repeats import alike

__all__ = ["CANNOT_BE_TOLD", "DOES_NOT_HOLD", "HOLDS", "HOW_TO_READ", "Claim", "check", "check_run"]

HOW_TO_READ = (
    "Each line is one claim of the paper: what would have to be found for it to hold, what was found, and the "
    "verdict. The verdict is open where the files do not tell, or where this machine could not show it. With several "
    "repeats, the first line of a claim judges all of them together: what was counted must be right in each repeat, "
    "what was measured must be right on average. The limits in brackets hold the truth with 90 % confidence (it is "
    "beyond either of them with 5 %). They come from how much the repeats differ; of one repeat alone, from how much "
    "its points scatter about their line."
)


class Claim(NamedTuple):
    """One claim put to one run, or to the repeats of an experiment."""

    claim: str
    expected: str
    found: str
    verdict: str
    note: str


def check(found: Sequence[Run]) -> pd.DataFrame:
    """Put each claim to each run: rows in the order of the claims (index: claim and task).

    Before the repeats of an experiment, if there are several, stands the verdict on all of them; its `task` is the
    experiment and how many they are. Columns: `expected`, `found`, `verdict` (HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD or
    NOT_TESTABLE) and `note`, all of them words.
    """
    rows: list[tuple[str, ...]] = []
    experiments = runs.by_experiment(found)
    judged = {run.task: _judged(run) for run in found}
    for number, (claim, expected, _) in enumerate(_CLAIMS):
        for experiment, repeats in experiments.items():
            each = [judged[run.task][number] for run in alike(repeats).pooled]
            if len(each) > 1:
                rows.append((f"{experiment}, {len(each)} repeats", claim, expected, *_together(each)))
            rows += [(run.task, claim, expected, *_alone(judged[run.task][number])) for run in repeats]
    return pd.DataFrame(rows, columns=["task", *Claim._fields]).set_index(["claim", "task"])


def check_run(run: Run) -> list[Claim]:
    """Put each claim to one run."""
    told = zip(_CLAIMS, _judged(run), strict=True)
    return [Claim(claim, expected, *_alone(finding)) for (claim, expected, _), finding in told]


@lru_cache(32)  # for the table in the page, and for the one on disk
def _judged(run: Run) -> list[Finding | UnclearError]:
    return [_judge(number, setting_of(run)) for number in range(len(_CLAIMS))]


def _judge(number: int, setting: Setting) -> Finding | UnclearError:
    try:
        setting.can_be_judged()
        return _CLAIMS[number][2](setting)
    except UnclearError as reason:
        return reason


def _alone(finding: Finding | UnclearError) -> tuple[str, str, str]:
    if isinstance(finding, UnclearError):
        return "", finding.verdict, str(finding)
    return finding.found, finding.verdict, finding.note


def _together(each: Sequence[Finding | UnclearError]) -> tuple[str, str, str]:
    telling = [finding for finding in each if isinstance(finding, Finding)]
    if not telling:
        silent_ones = {finding.verdict: str(finding) for finding in each if isinstance(finding, UnclearError)}
        if list(silent_ones) == [NOT_TESTABLE]:
            return "", NOT_TESTABLE, silent_ones[NOT_TESTABLE]
        return "", CANNOT_BE_TOLD, "None of the repeats tells."
    silent = len(each) - len(telling)
    note = f"{silent} of {len(each)} repeats {'does' if silent == 1 else 'do'} not tell." if silent else ""
    return *judging.over_repeats(telling), note


_CLAIMS: tuple[tuple[str, str, Callable[[Setting], Finding]], ...] = (
    (
        "Task runners grow with the clients.",
        "in the middle of each step: never more task runners than clients / workers of one, rounded up, and at most "
        "one fewer than the step's mean number of requests in flight / workers of one, rounded up, as far as there are "
        "GPUs",
        growth_judges.task_runners,
    ),
    (
        "Each task runner that is booted costs one cold start.",
        f"as many cold starts as boots, exactly, each boot within the time of its own (clocks "
        f"{booted.CLOCKS_APART_S:g} s apart at most)",
        boot_judges.one_cold_start,
    ),
    (
        "Completion time stays bounded while clients grow.",
        "time at the server (completion time less the client's setup): a slope over the clients of at most its "
        "median with one GPU / all workers, a queue before all GPUs at once and not before one of them; what is "
        f"neither setup nor kernel grows over the ramp by at most {growth_judges.REST_GROWS:.0%} of the completion "
        f"time with one GPU; and at most {growth_judges.STRAGGLERS:.1%} of the requests take longer there than those "
        "of all workers of a GPU in turn",
        growth_judges.bounded,
    ),
    (
        "Throughput grows with the clients until the GPUs are used up.",
        f"throughput ~ clients^e with an e of more than {growth_judges.EXPONENT_AT_LEAST}, which is nearer to in "
        "proportion (1) than to not at all (0), from the second step on: up to as many clients as there are workers, "
        "and until the last GPU was booted",
        growth_judges.throughput,
    ),
    (
        "Every GPU is used before a request is refused.",
        "all GPUs booted when the first request is refused, and nine tenths of the places taken (by the replay) "
        "within a second of nine of ten refusals",
        boot_judges.all_used,
    ),
    (
        "Every boot was needed, and none came late.",
        "by the run's own arrivals and ends: at each boot all places of the booted GPUs are taken (one may lack), "
        "before it never more are needed (but one), and GPUs come in the order of their numbers; a place is held "
        f"until the kernel has ended and {replay.HELD_OF_THE_REST:.0%} of what remains of the request is over",
        boot_judges.needed,
    ),
    (
        "Each GPU works from its boot on, and not before.",
        f"a mean utilization before its boot of at most {boot_judges.IDLE_BEFORE:.0%} of that after it, which is not 0",
        boot_judges.works,
    ),
    (
        "The kernels of one GPU run one after the other.",
        "from the end of one kernel to that of the next, where both requests were there: 95 % of these times are at "
        f"least {boot_judges.SHORTEST_GAP:.0%} of their median",
        boot_judges.serial,
    ),
)
NAMES = {claim: judge.__name__ for claim, _, judge in _CLAIMS}
"""What each claim is called where programs read it: a test holds these names still."""
