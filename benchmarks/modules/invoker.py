"""A client module that has a kernel called with 64 bytes, and does nothing else."""

import time

from kaas.client import Connection
from kaas.outcome import Outcome

_MESSAGE, _TIMEOUT = bytes(64), 600.0
_kaas = Connection()


def run_client(arg: str) -> Outcome:
    """Make one request."""
    begun = time.perf_counter()
    reply = _kaas.invoke(_MESSAGE, _TIMEOUT)
    return Outcome(
        (time.perf_counter() - begun) * 1000,
        reply.kernel_ns / 1e6,
        0.0,
        reply.cold_start,
        status=reply.status,
        waited_for_boot=reply.waited_for_boot,
        gpu=reply.gpu,
        worker=reply.worker,
        queued_ms=reply.queued_ns / 1e6,
        kernel_ms=reply.kernel_ns / 1e6,
        error=reply.error,
    )
