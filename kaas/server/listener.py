"""The port that clients come to: who may be let listen where, and connections accepted one by one.

Accepted here and not by the event loop's own server: when the descriptors are used up, asyncio's logs each of thousands
of vain tries and uvloop's turns clients away, while here they wait in the system's queue until there is room.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from kaas.errors import UsageError
from kaas.sparing import Sparing

log = logging.getLogger("kaas.server")

_BACKLOG = 4096
_NOT_OURS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_RETRY = 0.1
"""Seconds until accepting is tried again when there is no room."""
_RESERVE = 64
"""Descriptors that clients leave to the rest of the server, besides two for each worker."""


def most_connections(others: int) -> int:
    """Tell how many connections of clients the descriptors allow, where `others` are kept for something else."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(descriptors - _RESERVE - others, descriptors // 2)


def resolve(host: str) -> list[str]:
    """Give the addresses that a name or address stands for, as numbers.

    Raises:
        UsageError: it stands for nothing.
    """
    return list(dict.fromkeys(address[0] for _, address in _resolve(host, 0)))


def is_loopback(host: str) -> bool:
    """Tell whether everything that a name or address stands for is this machine only.

    Raises:
        UsageError: it stands for nothing.
    """
    return all(ipaddress.ip_address(address).is_loopback for address in resolve(host))


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


def name(listeners: Iterable[socket.socket]) -> str:
    """Write where they listen as `host:port`."""
    places = (listener.getsockname() for listener in listeners)
    return " and ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in places)


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
    family, at = _resolve(address, port)[0]
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


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name that cannot be a host's is a UnicodeError
        raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    return [(family, address) for family, *_, address in found]


def _remedy(error: OSError) -> str:
    if error.errno in _NOT_OURS:
        return "choose an address of this machine for --host"
    return "choose another one, or end what uses it"
