"""Connections accepted one by one, as many as there is room for.

Here and not by the event loop's own server: when the descriptors are used up, asyncio's logs each of thousands of vain
tries and uvloop's turns clients away, while here they wait in the system's queue until there is room.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable

from kaas.sparing import Sparing

log = logging.getLogger("kaas.acceptor")

_RETRY = 0.1
"""Seconds until accepting is tried again when there is no room."""


class Acceptor:
    """Accepts connections while it is open. Needs a running asyncio loop.

    Args:
        listeners: where; they are closed with this.
        protocol: makes the protocol of a connection.
        count: tells how many connections there are.
        most: how many there may be; more wait in the system's queue.
    """

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        protocol: Callable[[], asyncio.BaseProtocol],
        count: Callable[[], int],
        most: int,
    ) -> None:
        self._listeners = listeners
        self._protocol = protocol
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._full = Sparing(log, time.monotonic, 60.0)
        self._most = most
        self._open()

    def close(self) -> None:
        """Accept no more: who comes now is refused."""
        self._shut()
        if self._retry is not None:
            self._retry.cancel()
        for listener in self._listeners:
            listener.close()

    def _open(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _shut(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one; the loop calls again while there are more, and asks what it has besides in between."""
        if self._open_now() >= self._most:
            self._wait("that is all that there is room for")
            return
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone already
            return
        except OSError as error:
            self._wait(error.strerror)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _open_now(self) -> int:
        return self._count() + len(self._connecting)

    def _wait(self, why: str | None) -> None:
        self._full.warning(
            "%d connections are open: more have to wait until some are closed: %s", self._open_now(), why
        )
        self._shut()
        self._retry = self._loop.call_later(_RETRY, self._open)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            # A client whose machine is gone without a word must not keep its place for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # it has gone already
            connection.close()
            log.debug("a connection was not to be had: %s", error)
