"""One client's connection as the server sees it: frames in, replies out, and the token shown before anything else."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Iterator
from typing import cast

from kaas import transport, wire
from kaas.decoder import LARGE
from kaas.errors import FrameError
from kaas.line import Line
from kaas.passing import Passing, Turns
from kaas.pool.invocations import Invocation
from kaas.pool.pool import Pool
from kaas.pool.status import status
from kaas.sparing import Sparing
from kaas.wire import Pieces, Reply, RequestFrame

log = logging.getLogger("kaas.server")

LINGER = 5.0
"""Seconds that a client has to take its last replies."""
_LINGER_OF_STRANGERS = 0.5
"""Seconds that one without the token has to take that it is refused."""
_STRANGERS = 4
"""One of so many connections may be a stranger's: one that has shown no token."""
_MOST_TOKEN = 4096
"""Bytes that a payload may have before the token was shown."""
_PATIENCE = 10.0
"""Seconds in which the token must be shown."""
_WANTED = "this server wants a token: set KAAS_TOKEN to it"


class Connections(set["ClientConnection"]):
    """The connections that are open. Strangers have a part of them only, and must not keep out who has the token.

    Args:
        most: how many there may be.
        line: of their large requests.
    """

    def __init__(self, most: int, line: Line) -> None:
        super().__init__()
        self.line = line
        self._most_strangers = max(most // _STRANGERS, 1)
        self._strangers: dict[ClientConnection, None] = {}  # oldest first
        self._many = Sparing(log, time.monotonic, 60.0)

    def add_stranger(self, connection: "ClientConnection") -> None:
        """Take note of one that has shown no token yet; the oldest has to go if there are too many."""
        self._strangers[connection] = None
        if len(self._strangers) > self._most_strangers:
            self._many.warning("over %d connections show no token: the oldest is closed", self._most_strangers)
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.abort()

    def discard_stranger(self, connection: "ClientConnection") -> None:
        """It has shown its token, or is gone."""
        self._strangers.pop(connection, None)


class ClientConnection(asyncio.BufferedProtocol):
    """One client's connection: any number of invocations, several at a time if the client likes."""

    def __init__(self, pool: Pool, token: bytes, message_size: int, connections: Connections) -> None:
        self._pool = pool
        self._token = token
        self._trusted = not token
        self._refused = False
        self._held = False  # no more requests are taken: it is refused, or does not read its replies
        self._waits = False  # for somebody who takes a large request, or can take more of it
        self._rest: Iterator[RequestFrame] = iter(())  # what has come and is held
        self._status = b""  # answers all queries of one piece of data
        self._message_size = message_size
        self._decoder = wire.request_frames(max(_MOST_TOKEN, len(token)) if token else message_size)
        self._decoder.large = self._decoder.limit + 1 if token else LARGE  # what is no token yet is taken whole
        self.get_buffer = self._decoder.buffer  # type: ignore[method-assign] # asked for at every read
        self._connections = connections
        self._invocations: set[Invocation] = set()
        self._turns: Turns | None = None  # once there was a large reply
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        if not self._trusted:
            self._connections.add_stranger(self)
            late = f"{_WANTED}, and show it within {_PATIENCE:g} s"
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE, self._refuse, "unauthorized", late, 0)

    def buffer_updated(self, nbytes: int) -> None:
        """Something has come from the client, or may be handled now (0 bytes)."""
        if self._refused:
            return
        self._status = b""
        try:
            requests = self._decoder.received(nbytes) if nbytes else self._rest
            for request in requests:
                self._handle(request)
                if self._held:
                    self._rest = requests
                    return
        except FrameError as error:
            if self._trusted:
                self._refuse("bad_request", str(error), error.request_id)
            else:
                self._refuse("unauthorized", _WANTED, error.request_id)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone, or we have closed."""
        self._transport = None
        self._connections.discard(self)
        self._connections.discard_stranger(self)
        self._rest = iter(())
        self._stop_waiting()
        self._abandon()

    def pause_writing(self) -> None:
        """The client does not read its replies: take no more requests from it until it does."""
        self._held = True
        self._read()
        if self._turns is not None:
            self._turns.pause()

    def resume_writing(self) -> None:
        """It reads again."""
        self._held = self._refused
        self.buffer_updated(0)
        self._read()
        if self._turns is not None and not self._held:
            self._turns.resume()

    def pause_reading(self) -> None:
        """Who takes a large request can take no more (passing.Source)."""
        self._waits = True
        self._read()

    def resume_reading(self) -> None:
        """It takes more, or nobody does: then it is read all the same."""
        self._waits = False
        self._read()

    def close(self) -> None:
        """Close, once what has been answered is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever has not been sent."""
        if self._transport is not None:
            self._transport.abort()

    def _handle(self, request: RequestFrame) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if request.kind == wire.TOKEN:
            self._trusted = not self._token or hmac.compare_digest(request.payload, self._token)
            self._decoder.limit, self._decoder.large = self._message_size, LARGE
            self._stop_waiting()
            if self._trusted:
                self._connections.discard_stranger(self)
        if not self._trusted:
            self._refuse("unauthorized", _WANTED, request.id)
        elif request.kind == wire.INVOKE:
            invocation = Invocation(request, self._answer)
            self._invocations.add(invocation)
            if request.rest is not None:
                request.rest.come_from(self, self._connections.line)
            self._pool.submit(invocation)
        elif request.kind == wire.STATUS:
            if not self._status:
                self._status = json.dumps(status(self._pool) | {"shared_memory": transport.place()}).encode()
            reply = wire.encode_reply(Reply("ok", self._status, request.id))
            if self._turns is None:
                self._transport.write(reply)
            else:
                self._write_in_turn(self._turns, [reply])

    def _refuse(self, status: str, text: str, request_id: int) -> None:
        """Reply, and close when the client has: one that is still sending would not get the reply otherwise."""
        self._refused = self._held = True
        self._stop_waiting()
        self._abandon()
        self._pool.account[status] += 1
        if self._transport is None:
            return
        self._transport.write(wire.encode_reply(Reply(status, text.encode(), request_id)))
        self._pool.account["replies"] += 1
        if not self._transport.is_closing():
            self._transport.write_eof()
            linger = _LINGER_OF_STRANGERS if status == "unauthorized" else LINGER
            self._patience = asyncio.get_running_loop().call_later(linger, self.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def _abandon(self) -> None:
        for invocation in list(self._invocations):
            self._pool.abandon(invocation)
        self._invocations.clear()

    def _answer(self, invocation: Invocation, frame: Pieces) -> None:
        rest = invocation.reply
        if rest is not None and rest.left:
            if self._transport is not None:
                rest.cut = self.abort
                self._turns = self._turns or Turns(self._transport, full=self._held)
                self._write_in_turn(self._turns, frame, rest)
            return
        self._invocations.discard(invocation)
        if self._transport is not None:
            if self._turns is None:
                for piece in frame:
                    self._transport.write(piece)
            elif rest is None:
                self._write_in_turn(self._turns, frame)
            else:
                self._turns.has_passed()
                self._read()
            self._pool.account["replies"] += 1

    def _write_in_turn(self, turns: Turns, frame: Pieces, rest: Passing | None = None) -> None:
        turns.write(frame, rest)
        self._read()

    def _read(self) -> None:
        """Read what the client sends, unless it is to be answered first, or nobody can take what it sends."""
        if self._transport is not None:
            crowded = self._turns is not None and self._turns.crowded
            if not self._refused and (self._waits or self._held or crowded):
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
