"""A kernel that raises what the payload says."""


def call(payload: bytes) -> bytes:
    raise ValueError(payload.decode(errors="surrogateescape"))
