"""A program that prints lines again and again: what has arrived is taken, and it is started again if it ends."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from kaas import nvidia, programs

_LONGEST_PAUSE_S = 10.0
_TIME_TO_END_S = 1.0
_CHUNK = 64 * 1024


class Ended(NamedTuple):
    """How a program ended: in words, and whether it had been started again, and has given samples for a moment only."""

    how: str
    soon_again: bool


class Stream:
    """The lines of one running program.

    Args:
        command: how it is started.
        patience_s: seconds without a word after which it is taken to hang. Until it is of use for the first time it has
            `nvidia.PATIENCE` at least: a driver may have to set up every GPU first. While it is of use for no longer
            than this, the pauses before it is started again grow.
    """

    def __init__(self, command: Sequence[str], patience_s: float) -> None:
        self._command = command
        self._patience_s = patience_s
        self._pause_s = self._due = 0.0
        self._heard = 0.0
        self._of_use_since: float | None = None
        self._was_started_again = False
        self._rest = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def output(self) -> int | None:
        """The descriptor of its output; None while it does not run."""
        return self._process.stdout.fileno() if self._process and self._process.stdout else None

    def take(self, is_readable: bool) -> tuple[list[str], Ended | None]:
        """Give the lines that are complete by now, and how it ended if it did; start it again when that is due."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._was_started_again = True
                try:
                    self._start()
                except OSError as error:
                    return [], self._end(f"cannot be started ({error.strerror})")
            return [], None
        if not is_readable:
            patience_s = self._patience_s if self._of_use_since is not None else max(self._patience_s, nvidia.PATIENCE)
            silent_s = now - self._heard
            return [], self._end(f"said nothing for {silent_s:.0f} s and was killed") if silent_s > patience_s else None
        assert self.output is not None
        data, self._heard = os.read(self.output, _CHUNK), now
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TIME_TO_END_S)
            code = self._process.poll()
            how = "closed its output and was killed" if code is None else f"ended with exit code {code}"
            return [], self._end(how)  # what there is of a last line may be torn
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines], None

    def be_of_use(self) -> None:
        """Be told that what was taken is what it is for."""
        if self._of_use_since is None:
            self._of_use_since = self._heard

    def close(self) -> None:
        """End it for good."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _start(self) -> None:
        self._heard, self._of_use_since, self._rest = time.monotonic(), None, b""
        self._process = subprocess.Popen(
            self._command,
            env=programs.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A Ctrl-C at the terminal must not end it before the run is over.
            start_new_session=True,
        )

    def _end(self, how: str) -> Ended:
        self.close()
        soon = self._of_use_since is None or self._heard - self._of_use_since < self._patience_s
        if not soon:
            self._pause_s = 0.0
        self._due = time.monotonic() + self._pause_s
        self._pause_s = min(max(2 * self._pause_s, 0.1), _LONGEST_PAUSE_S)
        return Ended(how, soon and self._was_started_again)
