"""The load generator's agent on a node (cluster.agent): the crew of the clients there, told what to do from afar.

    {"have": clients, "begin": clients, "elsewhere": clients on other nodes that send requests}    to it
    {"finish": true}    {"kill": true}    to it
    {"state": {"there": clients, "ready": of these, "running": of these, "sending": [numbers], "failure": text,
               "disorderly": {text: clients}}}
                                 from it, as it changes; "sending" are those that run, and those in their last request,
                                 "disorderly" tells what kept clients from ending in order
    {"rows": [line, ...]}    from it: rows of requests, stamped by its own `time.monotonic`

The clients write their rows to a file there, as on the load generator's own machine; what is new in it is sent along.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from kaas import ROOT, leftovers, results
from kaas.cluster.agent import Agent
from kaas.cluster.lines import Message
from kaas.errors import KaasError, UsageError
from kaas.leftovers import Scratch
from kaas.load import clients
from kaas.load.board import Request
from kaas.load.crew import Crew
from kaas.results import RowWriter

_EVERY = 0.05
"""Seconds between two looks at the rows: what is shown of a step is read when it is over."""
_MOST = 256 * 1024
"""Letters of rows in one message."""
_MONOTONIC = 0.0, 0.0
"""A clock.Clock that tells what `time.monotonic` does."""


async def serve(at: dict[str, Any]) -> None:
    """Be the agent, to the end of its link (cluster.actor)."""
    await _Agent().run(at)


class _Agent(Agent):
    def __init__(self) -> None:
        super().__init__()
        self._crew: Crew | None = None
        self._wanted: Message = {"have": 0, "begin": 0, "elsewhere": 0}
        self._state: dict[str, Any] = {}
        self._rows = Path()
        self._read = 0  # bytes of the rows' file
        self._last: dict[int, float] = {}  # of each client, when the request of its latest row began

    async def work(self, orders: dict[str, Any]) -> None:
        """Have clients, as many as is said, until the end of the link.

        Args:
            orders: the `client` module, as nodes find it; `input` and `backoff`; how many there may be at `most`;
                `environment`; `kill_after` seconds; `first` client's number, and the `stride` to the next one's.

        Raises:
            UsageError: the client module is not there.
            ProcessFailed: it cannot be imported, or there is no process to be had.
        """
        module = ROOT / orders["client"]
        if not module.is_file():
            raise UsageError(f"it has no {orders['client']}: a client module outside the project must be there, too")
        if removed := await asyncio.to_thread(leftovers.sweep):
            self.say(removed)
        with contextlib.closing(Scratch()) as scratch:
            self._rows = scratch.folder / "rows.csv"
            results.create_requests(self._rows)
            self._crew = crew = self._new_crew(module, scratch, orders)
            try:
                await crew.start()
                await self._follow(crew)
            finally:
                crew.kill()
                await crew.close()
                self._send_rows()

    def told(self, message: Message) -> None:
        """Note what is wanted, or have the clients end."""
        if self._crew is None:
            return
        if "have" in message:
            self._wanted = message
        elif "finish" in message:
            self._crew.finish()
        else:
            self._crew.kill()
        self._crew.changed.set()

    def _new_crew(self, module: Path, scratch: Scratch, orders: dict[str, Any]) -> Crew:
        config = {
            "input": orders["input"],
            "backoff": orders["backoff"],
            "open_loop": False,
            "clock": _MONOTONIC,
            "rows": str(self._rows),
        }
        return Crew(
            module,
            scratch.folder,
            orders["most"],
            config,
            orders["environment"] | {"KAAS_SCRATCH": str(scratch.folder), "KAAS_RUN": scratch.run},
            kill_after=orders["kill_after"],
            problem=self.say,
            unfinished=self._finish,
            first=orders["first"],
            stride=orders["stride"],
        )

    async def _follow(self, crew: Crew) -> None:
        over = asyncio.create_task(self.over.wait())
        while not over.done():
            crew.changed.clear()
            if not (crew.finishing or crew.failure):
                crew.elsewhere = self._wanted["elsewhere"]
                try:
                    crew.have(self._wanted["have"])
                except KaasError as error:
                    crew.failure = str(error)
                crew.begin(self._wanted["begin"])
            self._send_rows()
            state = {
                "there": len(crew),
                "ready": crew.ready,
                "running": crew.running,
                "sending": crew.sending,
                "failure": crew.failure,
                "disorderly": dict(crew.disorderly),
            }
            if state != self._state:
                self._state = state
                self.link.send({"state": state})
            changed = asyncio.create_task(crew.changed.wait())
            await asyncio.wait((over, changed), timeout=_EVERY, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        over.cancel()

    def _send_rows(self) -> None:
        """Send the rows that have become complete since the last time."""
        with self._rows.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        lines = complete.decode(errors="replace").split("\n")[not self._read :]  # without the header
        self._read += len(complete)
        part, size = [], 0
        for line in filter(None, lines):
            cells = line.split(",", 6)
            self._last[int(cells[5])] = float(cells[0])
            part.append(line)
            size += len(line)
            if size > _MOST:
                self.link.send({"rows": part})
                part, size = [], 0
        if part:
            self.link.send({"rows": part})

    def _finish(self, copy: int, request: Request, how: str) -> None:
        """Write the row of a request whose client was killed, unless to write it was the last thing that it did."""
        self._send_rows()
        if self._last.get(copy) != request.timestamp:
            try:
                with contextlib.closing(RowWriter(self._rows)) as rows:
                    rows.append(clients.failure(copy, request, f"the client {how}"))
            except KaasError as error:
                self.say(str(error))
