"""Whether a run was what it should be, by what is known at its end. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from kaas.load.tally import SERVED, Tally

NOT_AS_IT_SHOULD_BE = 3
"""Exit code of a run that came to its end, and of which too much failed or came late."""


class Verdict(NamedTuple):
    """A run's exit code, and what went wrong in one line; it may say what was allowed to."""

    code: int
    what: str


def judge(tally: Tally, max_failed: int, *, early: str, hopeless: bool, late: Sequence[str], disorder: str) -> Verdict:
    """Judge a run that nobody has told to end.

    Args:
        tally: its requests.
        max_failed: how many of them may have failed.
        early: why it ended early, if it did.
        hopeless: whether that was because nothing could come of it.
        late: the steps whose clients came late.
        disorder: what kept clients from ending in order, if anything did.
    """
    served, failed = tally.by_status[SERVED], tally.failed
    what = []
    if early and not (hopeless and failed):  # else the failures say it
        what.append(early)
    if not served:
        what.append("no request was served")
    if failed:
        what.append(f"{failed} of {tally.by_status.total()} requests failed: {tally.failures()}")
    if late:
        what.append(f"steps whose clients came late: {len(late)}")
    if disorder:
        what.append(f"clients that did not end in order: {disorder}")
    code = 0
    if (early and not hopeless) or (failed <= max_failed and not served):
        code = 1
    elif failed > max_failed or late or hopeless or disorder:
        code = NOT_AS_IT_SHOULD_BE
    return Verdict(code, "; ".join(what))


def in_words(disorderly: Counter[str]) -> str:
    """Say how many clients did not end in order, and what kept them from it most often; nothing if all did."""
    return f"{disorderly.total()}, most often: {disorderly.most_common(1)[0][0]}" if disorderly else ""
