#!/usr/bin/env python3
"""Client of the emulated kernel: the real one, held for as long as a client on the emulated host takes besides.

That is the setup of its input, on a host that all clients share, and its own clearing up after the reply
(kaas.emulator). As a script (./cuda-matmul-emulated-client.py 50) it makes one request and prints its times.
"""

import importlib
import time

from kaas import cli
from kaas.emulator import Emulator
from kaas.results import Outcome

_real = importlib.import_module("cuda-matmul-client")
_emulator: Emulator | None = None

check = _real.check


def prepare(arg: str, copy: int) -> None:
    """Make ready to send matrices of `arg` rows.

    Raises:
        UsageError, ConnectionFailed: there is no emulator.
    """
    global _emulator  # noqa: PLW0603 - a client module is one client
    _real.prepare(arg, copy)
    _emulator = _emulator or Emulator()


def run_client(arg: str) -> Outcome:
    """Make one request; return its times in milliseconds, those that are emulated included, and what became of it."""
    prepare(arg, 0)
    setup_ms = _held_for_ms("setup")
    outcome: Outcome = _real.run_client(arg)
    rest_ms = _held_for_ms("rest", *([outcome.worker] if outcome.status == "ok" else []))
    return outcome._replace(
        outer_ms=setup_ms + outcome.outer_ms + rest_ms,
        setup_ms=setup_ms + outcome.setup_ms,
    )


def _held_for_ms(*what: object) -> float:
    assert _emulator is not None
    begun = time.perf_counter()
    _emulator.ask(*what)
    return (time.perf_counter() - begun) * 1000


def cleanup() -> None:
    """Give back what `prepare` took."""
    global _emulator  # noqa: PLW0603
    _real.cleanup()
    if _emulator is not None:
        _emulator.close()
        _emulator = None


if __name__ == "__main__":
    cli.run(lambda: _real.main(run_client))
