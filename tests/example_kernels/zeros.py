"""A kernel that returns as many bytes as the payload says."""


def call(payload: bytes) -> bytes:
    return bytes(int(payload))
