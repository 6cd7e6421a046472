"""A kernel whose import waits for the file that SLOW_IMPORT_GATE names; returns its process id."""

import os
import time
from pathlib import Path

_gate = Path(os.environ["SLOW_IMPORT_GATE"])
while not _gate.exists():
    time.sleep(0.005)


def call(payload: bytes) -> bytes:
    return str(os.getpid()).encode()
