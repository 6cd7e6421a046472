"""Starts a program that starts another in the background and ends at once, as daemons do."""

import subprocess


def call(payload: bytes) -> bytes:
    """Return the payload; what was started outlives the call a little."""
    subprocess.run(["sh", "-c", "(setsid sh -c 'sleep 0.1' &)"], check=True)
    return payload
