"""The process in charge of this one: a program that a script starts ends when that script has ended, however it did.

The script says who it is by its number. That alone would be no identity, but it is only compared with the numbers of
this process's own parents, and an adopted child's parent is somebody else. The standard library only: scripts/ use
it before the libraries are installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from kaas import processes

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def end_with_parent() -> None:
    """Get SIGTERM when the parent process ends (Linux), from now on: of one that has ended, nothing is heard."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of those descendants whose own has ended, instead of process 1 (Linux); they must be reaped."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_gone(supervisor: int) -> bool:
    """Tell whether a process is no parent of this one any more, nor a parent's parent: Python may be a wrapper."""
    process = os.getppid()
    while process != supervisor:
        if process <= 1:
            return True
        process = processes.parent_of(process)
    return False


def is_ignored(number: signal.Signals) -> bool:
    """Tell whether a signal is ignored, as under nohup: so it must stay."""
    return signal.getsignal(number) == signal.SIG_IGN


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
