"""A kernel whose process dies if the payload says so; otherwise it returns its process id."""

import os
import signal


def call(payload: bytes) -> bytes:
    if payload == b"crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return str(os.getpid()).encode()
