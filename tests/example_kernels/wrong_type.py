"""A kernel that returns text where bytes are due."""


def call(payload: bytes) -> str:
    return "text"
