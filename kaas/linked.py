"""Starts a module of ours as a process with a link: a socket pair, whose end tells it that its parent has gone."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kaas import ROOT, SINGLE_THREADED


def start(module: str, *arguments: str, inherits: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a module with the number of its end of the link, and more arguments; return the process and our end.

    Args:
        module: its name.
        arguments: what it is told.
        inherits: descriptors of ours that it has, too.

    Raises:
        OSError: there are no descriptors, or no processes, to be had.
    """
    ours, theirs = _high_socketpair()
    output = sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL
    environment = os.environ | SINGLE_THREADED | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with theirs, contextlib.ExitStack() as on_failure, _may_write_to_terminal():
        on_failure.callback(ours.close)
        process = subprocess.Popen(
            # -P: the folder that the user happens to be in must not shadow a library.
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno(), *inherits],
            stdin=subprocess.DEVNULL,
            stdout=output,  # our own is for events
            stderr=output,
            env=environment,
            # A Ctrl-C at the terminal is the parent's to handle. A session of its own would keep it away, too, but
            # Linux schedules each session as one: workers had to wait for hundreds of milliseconds.
            process_group=0,
        )
        on_failure.pop_all()
    return process, ours


def _high_socketpair() -> tuple[socket.socket, socket.socket]:
    """Make a pair of which the second may be handed to a process whose stdin, stdout and stderr are others.

    Who was started with one of these closed gets its number for the next thing that is opened.
    """
    ours, low = socket.socketpair()
    with low, contextlib.ExitStack() as on_failure:
        on_failure.callback(ours.close)
        theirs = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3))
        on_failure.pop_all()
    return ours, theirs


@contextlib.contextmanager
def _may_write_to_terminal() -> Iterator[None]:
    """Let what is started meanwhile write to the terminal from the background, also where `stty tostop` forbids it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_descriptor(stream: Any) -> bool:
    try:
        return bool(stream.fileno() >= 0)
    except (AttributeError, OSError):
        return False
