"""A kernel that does what the payload says, a deed and what belongs to it; then it returns its process id."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_LINE = b"x" * (1024 * 1024 - 1) + b"\n"


def call(payload: bytes) -> bytes | str:
    deed, _, rest = payload.decode().partition(" ")
    returned = _DEEDS[deed](rest) if deed in _DEEDS else None
    return str(os.getpid()).encode() if returned is None else returned


def _wait(gate: str) -> None:
    while not Path(gate).exists():
        time.sleep(0.002)


def _hang(_: str) -> None:
    while True:
        time.sleep(3600)


def _ignore_signals_and_hang(_: str) -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    _hang("")


def _raise(text: str) -> None:
    raise ValueError(text)


def _exit(_: str) -> None:
    sys.exit(3)


def _exit_at_once(_: str) -> None:
    os._exit(3)


def _signal(number: str) -> None:
    os.kill(os.getpid(), int(number))


def _change_group(_: str) -> None:
    os.setpgid(0, os.getpgid(os.getppid()))
    _hang("")


def _raise_speechless(_: str) -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise SpeechlessError


def _crash(_: str) -> None:
    ctypes.string_at(0)


def _text(_: str) -> str:
    return "text"


def _zeros(number: str) -> bytes:
    return bytes(int(number))


def _print(megabytes: str) -> None:
    for _ in range(int(megabytes)):
        sys.stdout.buffer.write(_LINE)
    sys.stdout.flush()


def _fork(_: str) -> None:
    os.fork()  # both processes come back from this call


def _fork_and_keep(_: str) -> bytes:
    child = os.fork()
    if not child:
        _hang("")
    return str(child).encode()


_DEEDS: dict[str, Callable[[str], bytes | str | None]] = {
    "wait": _wait,
    "hang": _hang,
    "ignore-signals-and-hang": _ignore_signals_and_hang,
    "change-group": _change_group,
    "raise": _raise,
    "raise-speechless": _raise_speechless,
    "exit": _exit,
    "exit-at-once": _exit_at_once,
    "segfault": _crash,
    "signal": _signal,
    "text": _text,
    "zeros": _zeros,
    "print": _print,
    "fork": _fork,
    "fork-and-keep": _fork_and_keep,
}
