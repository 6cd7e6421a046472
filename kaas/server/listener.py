"""The port that clients come to: who may be let listen where, and connections accepted one by one.

Accepted here and not by the event loop's own server: when the descriptors are used up, asyncio's logs each of thousands
of vain tries and uvloop's turns clients away, while here they wait in the system's queue until there is room.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable

from kaas.addresses import socket_addresses
from kaas.errors import UsageError
from kaas.sparing import Sparing

log = logging.getLogger("kaas.server")

_BACKLOG = 4096
_NOT_OURS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_RETRY = 0.1
"""Seconds until accepting is tried again when there is no room."""


def listen(addresses: list[str], port: int, option: str, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Listen on one port of those addresses that this machine has, until the stack is left.

    Args:
        addresses: one at least.
        port: 0 for one that is free on the first of them.
        option: what an error calls the port.
        stack: closes what is open.

    Raises:
        UsageError: the port is taken on one of them, or none of them is ours.
    """
    listeners: list[socket.socket] = []
    why = None
    for address in addresses:
        try:
            listeners.append(stack.enter_context(_listen(address, port)))
        except OSError as error:
            why = UsageError(f"{option} {port} on {address}: {error.strerror}: {_remedy(error)}")
            if error.errno not in _NOT_OURS:
                raise why from None
        else:
            port = listeners[0].getsockname()[1]
    if why is not None and not listeners:
        raise why
    return listeners


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


def _listen(address: str, port: int) -> socket.socket:
    family, at = socket_addresses(address, port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        # From here on a second server is refused; clients that come early wait until the loop serves.
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _remedy(error: OSError) -> str:
    if error.errno in _NOT_OURS:
        return "choose an address of this machine for --host"
    return "choose another one, or end what uses it"
