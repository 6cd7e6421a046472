"""Lines of JSON over a connection, either way: how server, bridge and agents tell each other what to do."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

Message = dict[str, Any]

LONGEST = 1024 * 1024
"""Bytes of a line; what sends a longer one is none of ours."""


class Lines(asyncio.Protocol):
    """One end of such a connection.

    Args:
        told: called with each message.
        ended: called once, when the connection has ended.
    """

    def __init__(self, told: Callable[[Message], None], ended: Callable[[], None]) -> None:
        self._told = told
        self._ended = ended
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is there, and has not ended."""
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Send a message, unless the connection has ended."""
        if self._transport is not None:  # else nobody is there to be told
            self._transport.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """End the connection, when what was sent has left."""
        if self._transport is not None:
            self._transport.close()

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Some of it has come."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        try:
            for line in lines:
                self._told(json.loads(line))
        except ValueError:
            self._abort()
        if len(self._pending) > LONGEST:
            self._abort()

    def connection_lost(self, error: Exception | None) -> None:
        """It has ended."""
        self._transport = None
        self._ended()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
