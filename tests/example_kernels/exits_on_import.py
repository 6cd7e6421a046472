"""A kernel that ends the process that imports it."""

import sys

sys.exit("this kernel wants another machine")


def call(payload: bytes) -> bytes:
    return payload
