"""A kernel that kills the process that imports it."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)


def call(payload: bytes) -> bytes:
    return payload
