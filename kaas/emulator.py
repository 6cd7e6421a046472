"""What plays GPUs and the clients' host in a rehearsal: the emulator, as kernel, client, monitor and load talk to it.

It is a process of its own (`./simulate.py emulate`), which lets everything take as long as a model says
(kaas.simulation.emulator). Each process that asks has a connection of its own, a Unix socket, says by a line what it
asks for, and waits for the line that is the answer. What it asked for is taken back when its connection ends, however
that came.

    asked         answered
    worker N G S  ready                 it has booted, as worker N on GPU G that was started S seconds ago
    call          measured, released    upload, kernel and download are over; so is what keeps its place besides
    setup         over                  a client has set up its input
    rest N        over                  a client that worker N has served has cleared up; without N, one was refused
    samples       [percent, ...]        the utilization of each GPU
    about         {name: value, ...}    for the description of a run

Nothing that is done with an emulator is measured, and every file has to say so. So where KAAS_EMULATOR names one, time
stamps are of the year 2000 (kaas.clock), and the machine's name begins with EMULATED.
"""

import contextlib
import json
import os
import socket
from typing import Any

from kaas.errors import ConnectionFailed, UsageError

VARIABLE = "KAAS_EMULATOR"
NOT_MEASURED = "Not measured"
"""The name in a description whose value says how what looks like a measurement was made (kaas.analysis.run)."""
_LIMIT = 10.0
"""Seconds for what is answered at once."""


class Emulator:
    """A connection to the emulator that KAAS_EMULATOR names.

    Raises:
        UsageError: it names none.
        ConnectionFailed: nobody listens there.
    """

    def __init__(self) -> None:
        path = os.environ.get(VARIABLE, "")
        if not path:
            raise UsageError(
                f"there is no emulator: ./autoscale-cpu.sh --rehearse-paper starts one, and so does ./simulate.py "
                f"emulate, which says what to set {VARIABLE} to"
            )
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ConnectionFailed(f"no emulator is at {path} ({VARIABLE}): {error.strerror or error}") from None
        self._answers = self._socket.makefile("rb")

    def ask(self, *words: object) -> str:
        """Ask for something, and wait until it is there; raises what `wait` does."""
        self.tell(*words)
        return self.wait()

    def tell(self, *words: object) -> None:
        """Ask for something that is waited for later."""
        with contextlib.suppress(OSError):  # the wait tells
            self._socket.sendall(f"{' '.join(map(str, words))}\n".encode())

    def wait(self) -> str:
        """Wait for an answer.

        Raises:
            UsageError: it cannot be.
            ConnectionFailed: the emulator has ended.
        """
        line = b""
        with contextlib.suppress(OSError):
            line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionFailed(f"the emulator ({VARIABLE}) has ended, or does not answer")
        if line.startswith(b"error: "):
            raise UsageError(line[:-1].decode().removeprefix("error: "))
        return line[:-1].decode()

    def samples(self) -> list[float]:
        """Tell the utilization of each GPU, in percent."""
        found: list[float] = self._at_once("samples")
        return found

    def about(self) -> dict[str, str]:
        """Give what the description of a run has to say of it."""
        found: dict[str, str] = self._at_once("about")
        return found

    def close(self) -> None:
        """Take back what was asked for."""
        self._answers.close()
        self._socket.close()

    def _at_once(self, what: str) -> Any:
        self._socket.settimeout(_LIMIT)
        try:
            return json.loads(self.ask(what))
        finally:
            self._socket.settimeout(None)


def facts() -> dict[str, str]:
    """Give what the description of a run has to say of the emulator, if there is one; raises what `Emulator` does."""
    if not os.environ.get(VARIABLE):
        return {}
    with contextlib.closing(Emulator()) as emulator:
        return emulator.about()


def mark() -> str:
    """Say by what everything here is emulated, if there is an emulator; raises what `Emulator` does."""
    told = facts()
    return f"EMULATED (calibration {told['Calibration']}, time scale {told['Time scale']})" if told else ""
