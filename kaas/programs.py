"""Runs another program with a limit, and gives what it said.

The standard library only, and nothing of `kaas`: scripts/ use it before the libraries are installed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, NamedTuple

NOT_FOUND = 127
LATE = 124
"""Exit codes, as shells and `timeout` give them: there is no such program; it took too long and was killed."""
_KILL_LIMIT = 5.0
"""Seconds after which a killed program is no longer waited for: one that hangs in its driver does not end."""


class Answer(NamedTuple):
    """A program's exit code, and what it wrote to stdout and to stderr."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that it wrote, in one line."""
        return " ".join(f"{self.out}\n{self.err}".split())


def environment() -> dict[str, str]:
    """Give the environment for a program that does not talk to the server: without the token."""
    return {name: value for name, value in os.environ.items() if name != "KAAS_TOKEN"}


def run(*command: str, limit: float, told: str = "", env: Mapping[str, str] | None = None) -> Answer:
    """Run a program to its end.

    Args:
        command: its name or path, and its arguments.
        limit: seconds after which it is killed; what it had said by then is kept.
        told: what it reads from stdin.
        env: its environment; `environment()` without it.
    """
    path = shutil.which(command[0])
    if path is None:
        return Answer(NOT_FOUND, "", f"{command[0]} is not on PATH")
    with _scratch() as read, _scratch() as out, _scratch() as err:
        read.write(told.encode())
        read.seek(0)
        try:
            process = subprocess.Popen(
                [path, *command[1:]],
                stdin=read,
                stdout=out,
                stderr=err,
                env=environment() if env is None else env,
            )
        except OSError as error:
            return Answer(NOT_FOUND, "", f"{command[0]}: {error.strerror}")
        try:
            _wait(process, limit)
            code, late = process.returncode, ""
        except subprocess.TimeoutExpired:
            code, late = LATE, f"{command[0]} took over {limit:g} s and was killed"
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_LIMIT)
        return Answer(code, _read(out), _read(err) + late)


def _wait(process: subprocess.Popen[bytes], limit: float) -> None:
    """Wait as `Popen.wait` does, which looks only now and then; on Linux the system tells at once."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # an old kernel tells of no process
            descriptor = os.pidfd_open(process.pid)
            try:
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(limit * 1000)
                limit = 0.0
            finally:
                os.close(descriptor)
    process.wait(limit)


def _scratch() -> IO[bytes]:
    # Neither a pipe, which a daemon that is started would hold open, nor a file where the disk may be full.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.fdopen(os.memfd_create("answer"), "w+b")
    return tempfile.TemporaryFile()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
