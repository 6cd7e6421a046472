"""The server's outside: TCP connections, signals, and the life of the whole thing."""

import asyncio
import errno
import hmac
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from typing import cast

from kaas import events, wire
from kaas.children import raise_descriptor_limit
from kaas.errors import FrameError, UsageError
from kaas.events import Event
from kaas.orders import Orders, ignore_signals
from kaas.server.pool import Pool
from kaas.server.process import Invocation
from kaas.server.settings import Settings
from kaas.wire import Reply, Request

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # it is not to be had on every platform, and not needed
    from asyncio import new_event_loop

log = logging.getLogger("kaas.server")

_BACKLOG = 4096
_LINGER = 5.0
"""Seconds that a client has to take its last replies."""


class ClientConnection(asyncio.Protocol):
    """One client's connection: any number of invocations, several at a time if the client likes."""

    def __init__(self, pool: Pool, token: bytes, message_size: int, connections: "set[ClientConnection]") -> None:
        self._pool = pool
        self._token = token
        self._trusted = not token
        self._refused = False
        self._decoder = wire.request_decoder(message_size)
        self._connections = connections
        self._invocations: set[Invocation] = set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Something came from the client."""
        if self._refused:
            return
        try:
            for request in self._decoder.feed(data):
                self._handle(request)
        except FrameError as error:
            self._refuse("bad_request", str(error), error.request_id)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone, or we have closed."""
        self._transport = None
        self._connections.discard(self)
        for invocation in self._invocations:
            self._pool.abandon(invocation)
        self._invocations.clear()

    def pause_writing(self) -> None:
        """The client does not read its replies: take no more requests from it until it does."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close, once what has been answered is sent."""
        if self._transport is not None:
            self._transport.close()

    def _handle(self, request: Request) -> None:
        if self._refused or self._transport is None or self._transport.is_closing():
            return
        if request.kind == wire.TOKEN:
            self._trusted = not self._token or hmac.compare_digest(request.payload, self._token)
        if not self._trusted:
            self._refuse("unauthorized", "this server wants a token: set KAAS_TOKEN to it", request.id)
        elif request.kind == wire.INVOKE:
            invocation = Invocation(request, self._answer)
            self._invocations.add(invocation)
            self._pool.submit(invocation)
        elif request.kind == wire.STATUS:
            self._send(wire.encode_reply(Reply("ok", json.dumps(self._pool.status()).encode(), request.id)))

    def _refuse(self, status: str, text: str, request_id: int) -> None:
        """Reply, and close when the client has: one that is still sending would not get the reply otherwise."""
        self._refused = True
        self._send(wire.encode_reply(Reply(status, text.encode(), request_id)))
        if self._transport is not None:
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER, self.close)

    def _answer(self, invocation: Invocation, frame: bytes) -> None:
        self._invocations.discard(invocation)
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)


def check_address(settings: Settings) -> None:
    """Raise `UsageError` if a server could not listen where it is told to."""
    _bind(settings.host, settings.port).close()


def serve(settings: Settings) -> None:
    """Listen, serve until SIGTERM or SIGINT, drain, and return when nothing of it is left.

    Raises:
        UsageError: the address is taken or not ours, or the kernel does not load.
        ProcessFailed: the fork server does not start.
    """
    listener = _bind(settings.host, settings.port)
    raise_descriptor_limit()
    if sys.stdout is None:
        raise UsageError("stdout is closed, and the event lines go there")
    with listener, asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_Server(settings, listener).run())
    ignore_signals()


class _Server:
    """Brings connections and pool together. Its main line acts on orders to end."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._pool = Pool(settings, _print_event)
        self._connections: set[ClientConnection] = set()

    async def run(self) -> None:
        orders = Orders(self._settings.supervised)
        order = asyncio.create_task(orders.next())
        starting = asyncio.create_task(self._pool.start())
        await asyncio.wait((order, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await self._serve(order, orders)
        else:
            log.info("%s: ending before the start was complete", order.result())
            starting.cancel()
            await asyncio.wait((starting,))

    async def _serve(self, order: asyncio.Task[str], orders: Orders) -> None:
        settings, token = self._settings, self._settings.token.encode()
        server = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(self._pool, token, settings.message_size, self._connections),
            sock=self._listener,
            backlog=_BACKLOG,
        )
        host, port = self._listener.getsockname()[:2]
        log.info(
            "listening on %s:%d: kernel %s, %d GPUs x %d workers",
            f"[{host}]" if ":" in host else host,
            port,
            settings.kernel.name,
            settings.gpus,
            settings.workers_per_gpu,
        )
        log.info("%s: no new invocations; a second signal ends at once", await order)
        server.close()
        again = asyncio.create_task(orders.next())
        draining = asyncio.create_task(self._pool.drain())
        await asyncio.wait((again, draining), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            log.info("%s: ending at once", again.result())
            self._pool.abort()
            await draining
        again.cancel()
        await self._close_connections()
        log.info("ended")

    async def _close_connections(self) -> None:
        """Close what is open, once the clients have what they were answered, or do not take it."""
        for connection in list(self._connections):
            connection.close()
        limit = time.monotonic() + _LINGER
        while self._connections and time.monotonic() < limit:
            await asyncio.sleep(0.01)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a name that cannot be a host's is a UnicodeError
        raise UsageError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # From here on a second server is refused; clients that come early wait until the loop serves.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"port {port} on {host}: {error.strerror}: {_remedy(error)}") from None
    return listener


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "choose an address of this machine for --host"
    return "choose another --port, or end what uses it"


def _print_event(event: Event) -> None:
    try:
        sys.stdout.write(events.format(event) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        log.warning("stdout is closed; lost: %s", events.format(event))
