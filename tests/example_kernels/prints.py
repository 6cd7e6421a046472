"""A kernel that writes to stdout, even what looks like the server's own lines."""

import os


def call(payload: bytes) -> bytes:
    print("@@@ Booted 99 new workers on GPU 99 at 1.0", flush=True)
    os.write(1, b"@@@ ERROR all workers are full at 1.0\n")
    return payload
