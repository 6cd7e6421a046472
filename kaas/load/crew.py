"""The client processes of a run, as the load generator sees them: prepared, begun, ended; and told what to send.

Of a client that dies the request is told that it was in; who counts those that are there has another one started, also
of one that dies while it is prepared, but not for ever. In an open loop each client that is free has the next arrival,
due or not: so it is sent in time whenever a client is free.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from kaas.children import ForkServer, describe
from kaas.errors import ProcessFailed
from kaas.forkserver import Config
from kaas.load.board import Board, Request
from kaas.load.due import Due
from kaas.load.linked_client import LinkedClient

_TRIES = 5
"""Clients of one number in a row that may end while they are prepared, without a word, before the run is given up."""


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
        first: the number of the first client.
        stride: from one client's number to the next one's.

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
        first: int = 0,
        stride: int = 1,
    ) -> None:
        try:
            self._board = Board.create(scratch / "board", most)
        except OSError as error:
            raise ProcessFailed(f"no room for what the clients share, in {scratch}: {error.strerror}") from None
        self._most = most
        self._config = config | {"board": str(scratch / "board")}
        self._problem = problem
        self._unfinished = unfinished
        self._forkserver = ForkServer(
            "kaas.load.clients",
            {"client": str(module), "environment": environment, "scratch": str(scratch)},
            self._ended,
            kill_after,
            kill_orphans=True,  # else two clients with one number ran side by side for a while
        )
        self._first, self._stride = first, stride
        self._clients: dict[int, LinkedClient] = {}
        self._wanted = 0
        self._unprepared: Counter[int] = Counter()  # of each client's number, those in a row
        self.elsewhere = 0  # clients of the run that send requests on other machines
        self._due: Due | None = None
        self.finishing = self._killing = False
        self.disorderly: Counter[str] = Counter()  # what kept clients from ending in order, and how many of them
        self.failure = ""  # why the run cannot go on, once a client has found that
        self.changed = asyncio.Event()  # set when a client has said something, or has ended
        self._gone = asyncio.Event()
        self._gone.set()

    async def start(self) -> None:
        """Import the client module, for all clients.

        Raises:
            ProcessFailed: it cannot be imported.
        """
        await self._forkserver.start()

    def have(self, number: int) -> None:
        """Start clients until `number` are there, prepared or not; they are prepared in their own time.

        Raises:
            ProcessFailed: no process can be started.
        """
        self._wanted = number
        staying = sum(not client.leaving for client in self._clients.values())
        for _ in range(min(number - staying, self._most - len(self._clients))):
            self._spawn()

    async def prepared(self) -> None:
        """Wait until all that are wanted are prepared.

        Raises:
            ProcessFailed: one cannot be.
        """
        while not self.failure and self.ready < self._wanted:
            self.changed.clear()
            self.have(self._wanted)
            await self.changed.wait()
        if self.failure:
            raise ProcessFailed(self.failure)

    def begin(self, number: int) -> None:
        """Have `number` clients run: let prepared ones begin, or those that began last end after their requests."""
        idle = [client for client in self._clients.values() if client.ready and not client.begun]
        beginning = idle[: max(number - self.running, 0)]
        leaving = [client for client in self._clients.values() if client.runs][number:]
        self._board.running = self.running + len(beginning) - len(leaving) + self.elsewhere
        for client in beginning:
            client.begin()
            self._feed(client)
        for client in leaving:
            client.leaving = True
            client.finish()

    def send(self, due: Due) -> None:
        """Have the clients send what arrives, from now on."""
        self._due = due

    @property
    def drained(self) -> bool:
        """Whether all that arrives has been sent and answered; in a closed loop nothing arrives."""
        return self._due is None or (self._due.is_empty and all(one.due is None for one in self._clients.values()))

    def unsent(self, now: float) -> Iterator[float]:
        """Give what was due by now (`time.monotonic`) and was not sent, once no client is left."""
        return iter(()) if self._due is None else self._due.until(now)

    @property
    def ready(self) -> int:
        """How many are prepared, those that run included."""
        return sum(client.ready for client in self._clients.values())

    @property
    def running(self) -> int:
        """How many clients send requests."""
        return sum(client.runs for client in self._clients.values())

    @property
    def sending(self) -> list[int]:
        """The numbers of those, and of those that end after the requests that they are in."""
        return [client.copy for client in self._clients.values() if client.begun]

    def facts(self) -> dict[str, str]:
        """Say nothing of where the clients were: here."""
        return {}

    def finish(self) -> None:
        """Let all end, after the requests that they are in."""
        self.finishing = True
        for client in self._clients.values():
            client.finish()

    async def wait(self, limit: float) -> str:
        """Wait until all have ended, `limit` seconds at most; then those that have not are killed, and it is said."""
        try:
            await asyncio.wait_for(self._gone.wait(), limit)
        except TimeoutError:
            self._problem(f"{len(self)} clients did not end within {limit:g} s and are killed")
            self.disorderly[killed_after(limit)] += len(self)
        return ""

    def kill(self) -> None:
        """Kill those that are still there."""
        self.finishing = self._killing = True
        for client in self._clients.values():
            self._forkserver.kill(client.child)

    async def close(self) -> None:
        """Wait until nothing of it is left."""
        await self._forkserver.close()

    def __len__(self) -> int:
        return len(self._clients)

    def _spawn(self) -> LinkedClient:
        taken = {client.place for client in self._clients.values()}
        place = next(number for number in count() if number not in taken)
        copy = self._first + place * self._stride
        try:
            child, link = self._forkserver.spawn(self._config | {"copy": copy, "place": place})
        except OSError as error:
            raise ProcessFailed(f"client {copy} cannot be started: {error.strerror}") from None
        client = self._clients[child] = LinkedClient((copy, place, child), link, self.changed.set, self._feed)
        self._gone.clear()
        return client

    def _feed(self, client: LinkedClient) -> None:
        """Give a client that is free the next arrival."""
        if self._due is None or self.finishing:
            return
        if (due := self._due.take()) is not None:
            client.send(due)
        elif self.drained:
            self.changed.set()

    def _ended(self, child: int, code: int | None) -> None:
        client = self._clients.pop(child)
        client.ended()
        problem = client.complaint or ("it ended by itself" if code == 0 else describe(code))
        request = None
        if client.ready:
            del self._unprepared[client.copy]
        if client.begun:
            self._board.running = self.running + self.elsewhere
            request = self._board.request(client.place)
            # One that says that it cannot go on may have no room for its rows; nor would there be for ours.
            if not client.complaint and request is not None:
                self._unfinished(client.copy, request, describe(code))
            self._take_back(client, request)
            self._board.finish(client.place)
        if self.finishing or client.leaving:
            # Of one that was in a request its row tells, and of those that had to be killed who had them killed.
            if not self._killing and (client.complaint or (code != 0 and request is None)):
                self._problem(f"client {client.copy} ended by an error ({problem})")
                self.disorderly[problem] += 1
        elif client.complaint or self._is_hopeless(client):  # another one may do no better
            doing = "cannot go on" if client.begun else "cannot be prepared"
            self.failure = self.failure or f"client {client.copy} {doing} ({problem})"
        else:
            self._problem(f"client {client.copy} died{'' if client.ready else ' while it was prepared'} ({problem})")
        if not self._clients:
            self._gone.set()
        self.changed.set()

    def _is_hopeless(self, client: LinkedClient) -> bool:
        """Tell whether too many clients of one number have ended before they were ready, of which this is the last."""
        self._unprepared[client.copy] += not client.ready
        return self._unprepared[client.copy] >= _TRIES

    def _take_back(self, client: LinkedClient, request: Request | None) -> None:
        """Have another client send what one was told to that has ended before it began."""
        if self._due is not None and client.due is not None and (request is None or request.due != client.due):
            self._due.give_back(client.due)
            for other in self._clients.values():
                if other.begun and other.due is None:
                    self._feed(other)


def killed_after(limit: float) -> str:
    """Say of clients that they did not end within `limit` seconds."""
    return f"killed after {limit:g} s"
