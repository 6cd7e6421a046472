"""A kernel that keeps its worker busy until the file appears that the payload names; returns its process id."""

import os
import time
from pathlib import Path


def call(payload: bytes) -> bytes:
    gate = Path(payload.decode())
    while not gate.exists():
        time.sleep(0.005)
    return str(os.getpid()).encode()
