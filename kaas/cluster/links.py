"""The link port, where agents and workers connect from their nodes, each with a secret that was drawn for it.

A secret is good once, and until it is forgotten. Who says another one, or none in time, is turned away and counted.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from kaas import addresses
from kaas.acceptor import Acceptor
from kaas.errors import ProcessFailed
from kaas.listening import listen_on_all
from kaas.sparing import Sparing

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""As addresses.socket_addresses gives it."""

log = logging.getLogger("kaas.cluster")

_LENGTH = 32
"""Bytes of a secret."""
_PATIENCE = 10.0
"""Seconds in which a connection must have said its secret."""
_MOST_UNKNOWN = 1000
"""Connections that may be about to say it; more wait."""
_SILENCE = 8
"""Seconds after which a connection whose other end says nothing, not even that it has got what we sent, is lost."""


def watch_over(link: socket.socket) -> None:
    """Have a connection's end be noticed, also if its other end vanishes without a word; delay nothing on it."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE // 2),
        ("TCP_KEEPALIVE", _SILENCE // 2),  # what macOS calls the same
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", _SILENCE // 2),
        ("TCP_USER_TIMEOUT", 1000 * _SILENCE),
    ):
        if option := getattr(socket, name, None):
            link.setsockopt(socket.IPPROTO_TCP, option, value)


async def connect(port: Address, secret: str) -> socket.socket:
    """Connect to a link port, and say a secret.

    Raises:
        OSError: it cannot be reached, or not in time.
    """
    family, at = port
    loop = asyncio.get_running_loop()
    link = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(link.close)
        watch_over(link)
        link.setblocking(False)
        async with asyncio.timeout(_PATIENCE):
            await loop.sock_connect(link, at)
            await loop.sock_sendall(link, bytes.fromhex(secret))
        on_failure.pop_all()
    return link


async def connect_agent(at: dict[str, Any]) -> socket.socket:
    """Make an agent's own link: `at` has its `host`, `port` and `secret`.

    Raises:
        ProcessFailed: it cannot be made.
    """
    try:
        return await connect(addresses.socket_addresses(at["host"], at["port"])[0], at["secret"])
    except OSError as error:
        why = error.strerror or "no answer"
        raise ProcessFailed(f"it cannot reach {at['host']} port {at['port']}: {why}") from None


class LinkPort:
    """Listens from `listen` to `close`."""

    def __init__(self) -> None:
        self.refused = 0
        self.unknown: set[asyncio.Protocol] = set()  # connections that have not said their secret
        self.turned_away = Sparing(log, time.monotonic)
        self._expected: dict[bytes, Callable[[], asyncio.BaseProtocol]] = {}  # by their digests: looked up in any time
        self._open = contextlib.ExitStack()
        self._acceptor: Acceptor | None = None

    def listen(self, hosts: list[str], port: int = 0) -> int:
        """Listen on a port of these addresses, 0 for any free one; return it.

        Raises:
            UsageError: they are not ours, or the port is taken.
        """
        listeners = listen_on_all(hosts, port, "--link-port", self._open, "--link-host")
        self._acceptor = Acceptor(listeners, lambda: _Unknown(self), lambda: len(self.unknown), _MOST_UNKNOWN)
        return cast("int", listeners[0].getsockname()[1])

    def expect(self, protocol: Callable[[], asyncio.BaseProtocol]) -> str:
        """Draw a secret; whoever says it gets this protocol."""
        secret = secrets.token_bytes(_LENGTH)
        self._expected[_digest(secret)] = protocol
        return secret.hex()

    def forget(self, secret: str) -> None:
        """Nobody is to say it (again)."""
        self._expected.pop(_digest(bytes.fromhex(secret)), None)

    def take(self, secret: bytes) -> asyncio.BaseProtocol | None:
        """Tell whom a secret stands for, from now on for nobody."""
        protocol = self._expected.pop(_digest(secret), None)
        return protocol() if protocol is not None else None

    def close(self) -> None:
        """Let nobody in any more."""
        if self._acceptor is not None:
            self._acceptor.close()
        self._open.close()


class _Unknown(asyncio.Protocol):
    """A connection that has not said its secret."""

    def __init__(self, port: LinkPort) -> None:
        self._port = port
        self._said = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._port.unknown.add(self)
        self._deadline = asyncio.get_running_loop().call_later(_PATIENCE, self._refuse)
        link = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may have ended
            watch_over(link)

    def data_received(self, data: bytes) -> None:
        self._said += data
        if len(self._said) < _LENGTH or self._transport is None:
            return
        protocol = self._port.take(self._said[:_LENGTH])
        if protocol is None:
            self._refuse()
            return
        self._leave()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        _pass_on(self._said[_LENGTH:], protocol)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._port.unknown:
            self._refuse()

    def _refuse(self) -> None:
        assert self._transport is not None
        self._leave()
        self._port.refused += 1
        self._port.turned_away.warning("link port: a connection without a secret that we wait for was closed")
        self._transport.abort()

    def _leave(self) -> None:
        self._port.unknown.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()


def _pass_on(data: bytes, protocol: asyncio.BaseProtocol) -> None:
    """Give a protocol what has come before it was there."""
    if not isinstance(protocol, asyncio.BufferedProtocol):
        if data:
            cast("asyncio.Protocol", protocol).data_received(data)
        return
    while data:
        room = protocol.get_buffer(len(data))
        some = min(len(room), len(data))  # type: ignore[arg-type] # a buffer has a length
        memoryview(room)[:some] = data[:some]
        protocol.buffer_updated(some)
        data = data[some:]


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
