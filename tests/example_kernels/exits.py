"""A kernel that wants to end its process."""

import sys


def call(payload: bytes) -> bytes:
    sys.exit(3)
