"""A kernel that returns its payload."""


def call(payload: bytes) -> bytes:
    return payload
