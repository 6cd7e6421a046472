"""The client cuda-matmul-client.py, whose process ends with exit code 1 after a second or so, whatever it is doing."""

import os
import random
import sys
import threading

from kaas import ROOT, kernels
from kaas.outcome import Outcome

_MEAN_SECONDS = 1.0
_ONE_RAISES_IN = 20

_client = kernels.load(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)
prepare, cleanup = _client.prepare, _client.cleanup
_end = threading.Timer(0.0, os._exit, (1,))


def run_client(arg: str) -> Outcome:
    """Make one request, or raise SystemExit."""
    if not _end.ident:
        _end.interval = random.expovariate(1 / _MEAN_SECONDS)
        _end.daemon = True
        _end.start()
    if random.randrange(_ONE_RAISES_IN) == 0:
        sys.exit(1)
    outcome: Outcome = _client.run_client(arg)
    return outcome
