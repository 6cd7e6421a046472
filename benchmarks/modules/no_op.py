"""A kernel that does nothing: it returns its payload."""


def call(payload: bytes) -> bytes:
    """Serve one invocation."""
    return payload
