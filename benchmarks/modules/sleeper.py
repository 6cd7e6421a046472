"""A client module that makes no request: it sleeps for a while, `arg` milliseconds."""

import time


def run_client(arg: str) -> tuple[float, float, float, bool]:
    """Sleep; return the times that a client returns."""
    time.sleep(float(arg) / 1000)
    return float(arg), 0.0, 0.0, False
