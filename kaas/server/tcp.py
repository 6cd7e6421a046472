"""The life of the whole server: it listens, serves, takes orders to end, and drains."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kaas import addresses, descriptors
from kaas.acceptor import Acceptor
from kaas.clock import Clock
from kaas.errors import ProcessFailed, UsageError
from kaas.events import Printer
from kaas.orders import Orders, ignore_signals
from kaas.policy import named
from kaas.pool.nodes import Nodes
from kaas.pool.pool import Pool
from kaas.pool.settings import Settings
from kaas.pool.status import status
from kaas.server import listener
from kaas.server.connection import LINGER, ClientConnection, Connections
from kaas.server.engines.local import LocalEngine

if TYPE_CHECKING:  # who wants no metrics, or no Ray, does not pay for them
    from kaas.server.engines.ray.engine import RayEngine
    from kaas.server.metrics import Metrics

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # it is not to be had on every platform, and not needed
    from asyncio import new_event_loop

log = logging.getLogger("kaas.server")


def serve(settings: Settings) -> None:
    """Listen, serve until SIGTERM or SIGINT, drain, and return when nothing of it is left.

    Raises:
        UsageError: an address is taken, not ours, or open to others without a token; or the kernel does not load.
        ProcessFailed: the fork server does not start.
    """
    descriptors.raise_limit()
    if sys.stdout is None:
        raise UsageError("stdout is closed, and the event lines go there")
    with contextlib.ExitStack() as stack:
        clients, scrapes = listener.listen(settings, stack)
        printer = Printer(Clock.of_run().at)
        stack.callback(printer.close)
        runner = stack.enter_context(asyncio.Runner(loop_factory=new_event_loop))
        runner.run(_Server(settings, runner.get_loop(), printer, clients, scrapes).run())
    ignore_signals()


class _Server:
    """Brings connections and pool together. Its main line acts on orders to end."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        printer: Printer,
        clients: list[socket.socket],
        scrapes: list[socket.socket],
    ) -> None:
        self._settings = settings
        self._listeners = clients
        self._metrics = _new_metrics(scrapes) if scrapes else None
        self._failure = ""  # of the engine, in mid-run
        self._orders: Orders | None = None
        policy = named(settings.policy, settings.max_queue if settings.when_full == "queue" else 0)
        observe = self._metrics.observe if self._metrics is not None else None
        engine = self._engine = _new_engine(settings, self._failed)
        pooled = settings if isinstance(engine, LocalEngine) else replace(settings, gpus=0)  # it tells which there are
        self._pool = Pool(pooled, engine, policy, printer.print, loop=loop, clock=time.monotonic, observe=observe)
        if not isinstance(engine, LocalEngine):
            engine.roster, self._pool.about_engine = Nodes(self._pool), engine.status
        self._most = descriptors.most_connections(2 * settings.gpus * settings.workers_per_gpu)
        self._connections = Connections(self._most, engine.line)

    async def run(self) -> None:
        self._orders = orders = Orders(self._settings.supervised)
        order = asyncio.create_task(orders.next())
        starting = asyncio.create_task(self._engine.start())
        await asyncio.wait((order, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await self._serve(order, orders)
        else:
            log.info("%s: ending before the start was complete", order.result())
            starting.cancel()
            await asyncio.wait((starting,))

    async def _serve(self, order: asyncio.Task[str], orders: Orders) -> None:
        settings, token = self._settings, os.fsencode(self._settings.token)
        if self._metrics is not None:
            try:
                await self._metrics.serve(lambda: status(self._pool))
            except BaseException:
                await self._engine.close()
                raise
        acceptor = Acceptor(
            self._listeners,
            lambda: ClientConnection(self._pool, token, settings.message_size, self._connections),
            lambda: len(self._connections),
            self._most,
        )
        if not all(addresses.is_loopback(each.getsockname()[0]) for each in self._listeners):
            safety = "who shows the token" if token else "ANYBODY, for there is no KAAS_TOKEN"
            log.warning("listening beyond this machine: its kernel may be called by %s", safety)
        log.info(
            "listening on %s: kernel %s, %d GPUs x %d workers",
            addresses.written(self._listeners),
            settings.kernel.name,
            self._pool.placement.gpus,
            settings.workers_per_gpu,
        )
        log.info("%s: no new invocations; a second signal ends at once", await order)
        acceptor.close()
        again = asyncio.create_task(orders.next())
        draining = asyncio.create_task(self._pool.drain())
        await asyncio.wait((again, draining), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            log.info("%s: ending at once", again.result())
            self._pool.abort()
            await draining
        again.cancel()
        await self._close_connections()
        if self._metrics is not None:
            self._metrics.close()
        log.info("%s", self._pool.account)
        log.info("ended")
        if self._failure:
            raise ProcessFailed(self._failure)

    def _failed(self, why: str) -> None:
        self._failure = why
        assert self._orders is not None
        self._orders.give("the engine is lost")

    async def _close_connections(self) -> None:
        """Close what is open, once the clients have what they were answered, or do not take it."""
        for connection in list(self._connections):
            connection.close()
        limit = time.monotonic() + LINGER
        while self._connections and time.monotonic() < limit:
            await asyncio.sleep(0.01)


def _new_engine(settings: Settings, failed: Callable[[str], None]) -> "LocalEngine | RayEngine":
    if settings.engine == "local":
        return LocalEngine(settings)
    from kaas.server.engines.ray.engine import RayEngine  # noqa: PLC0415 - see above

    return RayEngine(settings, failed)


def _new_metrics(scrapes: list[socket.socket]) -> "Metrics":
    from kaas.server.metrics import Metrics  # noqa: PLC0415 - see above

    return Metrics(scrapes)
