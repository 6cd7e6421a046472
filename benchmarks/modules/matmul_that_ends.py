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
_begun: set[int] = set()  # processes; a thread made before a fork cannot be started after it, from Python 3.13 on


def run_client(arg: str) -> Outcome:
    """Make one request, or raise SystemExit."""
    if os.getpid() not in _begun:
        _begun.add(os.getpid())
        end = threading.Timer(random.expovariate(1 / _MEAN_SECONDS), os._exit, (1,))
        end.daemon = True
        end.start()
    if random.randrange(_ONE_RAISES_IN) == 0:
        sys.exit(1)
    outcome: Outcome = _client.run_client(arg)
    return outcome
