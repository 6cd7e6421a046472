"""The client processes of a run, as the load generator sees them: prepared, begun, ended.

Of a client that dies the request is told that it was in; the ramp, which counts those that are there, has another one
started.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path

from kaas.children import ForkServer, describe
from kaas.errors import ProcessFailed
from kaas.forkserver import Config
from kaas.load.board import Board, Request
from kaas.load.clients import FAILED, READY


class _Client:
    """Our end of one client process."""

    def __init__(self, copy: int, child: int, link: socket.socket) -> None:
        self.copy = copy
        self.child = child
        self.begun = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.setblocking(False)
        self._link = link
        self._said = b""
        asyncio.get_running_loop().add_reader(link.fileno(), self._read)

    def begin(self) -> None:
        """Let it send requests."""
        self.begun = True
        with contextlib.suppress(OSError):
            self._link.sendall(b"\n")

    def finish(self) -> None:
        """Let it end after the request that it is in."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def ended(self, code: int | None) -> str:
        """Its process has ended, or nobody can tell any more; say what went wrong, if anything did.

        Closing the link ends the process, should it still be there.
        """
        self._read()
        self._close()
        said = self._said.removeprefix(READY).decode(errors="replace").strip()
        problem = "" if code == 0 else said or describe(code)
        if not self.ready.done():
            self.ready.set_exception(ProcessFailed(f"client {self.copy} cannot be prepared: {problem}"))
            self.ready.exception()  # which nobody may be waiting for any more
        return problem

    def _read(self) -> None:
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._said += data
        if not data:
            self._close()
        elif self._said.startswith(READY) and not self.ready.done():
            self.ready.set_result(None)

    def _close(self) -> None:
        if self._link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._link.close()


class Crew:
    """All client processes of one run.

    Args:
        module: path of the client module.
        scratch: folder of this run, removed with its last client.
        most: how many clients there may be at once.
        config: what each client is told (kaas.load.clients).
        environment: variables for the client module; KAAS_RUN names the run's shared memory, removed with the last
            client, too.
        kill_after: seconds that clients have to end in order.
        problem: takes a line about a client that died.
        unfinished: takes the number of a client that was killed, the request that it was in, and how it ended.

    Raises:
        ProcessFailed: there is no room in `scratch`.
    """

    def __init__(
        self,
        module: Path,
        scratch: Path,
        most: int,
        config: Config,
        environment: dict[str, str],
        *,
        kill_after: float,
        problem: Callable[[str], None],
        unfinished: Callable[[int, Request, str], None],
    ) -> None:
        try:
            self._board = Board.create(scratch / "board", most)
        except OSError as error:
            raise ProcessFailed(f"no room for what the clients share, in {scratch}: {error.strerror}") from None
        self._config = config | {"board": str(scratch / "board")}
        self._problem = problem
        self._unfinished = unfinished
        self._forkserver = ForkServer(
            "kaas.load.clients",
            {"client": str(module), "environment": environment, "scratch": str(scratch)},
            self._ended,
            kill_after,
        )
        self._clients: dict[int, _Client] = {}
        self._finishing = False
        self.failure = ""  # why the run cannot go on, once a client has found that
        self._gone = asyncio.Event()
        self._gone.set()

    async def start(self) -> None:
        """Import the client module, for all clients.

        Raises:
            ProcessFailed: it cannot be imported.
        """
        await self._forkserver.start()

    async def prepare(self, number: int) -> None:
        """Start `number` more clients and wait until they are prepared.

        Raises:
            ProcessFailed: one cannot be.
        """
        await asyncio.gather(*(client.ready for client in [self._spawn() for _ in range(number)]))

    def begin(self) -> None:
        """Let all that are prepared send requests, from now on."""
        prepared = [client for client in self._clients.values() if not client.begun]
        self._board.running += len(prepared)
        for client in prepared:
            client.begin()

    def finish(self) -> None:
        """Let all end, after the requests that they are in."""
        self._finishing = True
        for client in self._clients.values():
            client.finish()

    async def wait(self, limit: float) -> str:
        """Wait until all have ended, `limit` seconds at most; then those that have not are killed, and it is said."""
        try:
            await asyncio.wait_for(self._gone.wait(), limit)
        except TimeoutError:
            self._problem(f"{len(self)} clients did not end within {limit:g} s and are killed")
        return ""

    def kill(self) -> None:
        """Kill those that are still there."""
        self._finishing = True
        for client in self._clients.values():
            self._forkserver.kill(client.child)

    async def close(self) -> None:
        """Wait until nothing of it is left."""
        await self._forkserver.close()

    def __len__(self) -> int:
        return len(self._clients)

    def _spawn(self) -> _Client:
        taken = {client.copy for client in self._clients.values()}
        copy = next(number for number in count() if number not in taken)
        try:
            child, link = self._forkserver.spawn(self._config | {"copy": copy})
        except OSError as error:
            raise ProcessFailed(f"client {copy} cannot be started: {error.strerror}") from None
        client = self._clients[child] = _Client(copy, child, link)
        self._gone.clear()
        return client

    def _ended(self, child: int, code: int | None) -> None:
        client = self._clients.pop(child)
        problem = client.ended(code)
        if client.begun:
            self._board.running -= 1
            # One that is not known to have ended (its fork server has) writes its row itself.
            if code not in (None, FAILED) and (request := self._board.request(client.copy)) is not None:
                self._board.finish(client.copy)
                self._unfinished(client.copy, request, describe(code))
            if code == FAILED:
                self.failure = f"client {client.copy} cannot go on ({problem})"
            elif not self._finishing:
                self._problem(f"client {client.copy} died ({problem or 'it ended by itself'})")
        if not self._clients:
            self._gone.set()
