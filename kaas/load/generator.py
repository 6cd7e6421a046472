"""Runs the experiment's load: starts clients on the ramp's schedule, follows their rows, and ends them in order.

The clients write their rows themselves (kaas.load.clients); what is shown here is read back from that file.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kaas import machine, results, segments
from kaas.children import raise_descriptor_limit
from kaas.client import Connection
from kaas.errors import ConnectionFailed, KaasError, Refused, ResultsError, ServerNotReady
from kaas.load import clients
from kaas.load.board import Request
from kaas.load.crew import Crew
from kaas.load.display import Display, Now, summary
from kaas.load.ramp import Ramp
from kaas.load.tally import Tally
from kaas.orders import Orders, ignore_signals
from kaas.results import RowReader, RowWriter, RunFiles

_TICK = 0.25
_STATUS_EVERY = 1.0
_SERVER_GONE_AFTER = 10.0


@dataclass(frozen=True)
class Settings:
    """What a run is told; times in seconds. `server` is None if the client module needs no KaaS server."""

    client: Path
    input: str
    files: RunFiles
    parameters: dict[str, object]
    ramp: Ramp
    server: str | None
    backoff: float = 0.1
    ready_timeout: float = 60.0
    finish_timeout: float = 60.0
    supervised: bool = False


class Generator:
    """One run of the load generator."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._display = Display(console, settings.ramp)
        self._tally = Tally()
        self._orders = Orders(settings.supervised)
        self._ordered = False
        self._task_runners: int | None = None
        self._rows: RowReader | None = None
        self._last: dict[int, float] = {}  # of each client, when the request of its latest row began
        self._begun = 0.0
        self._machine: dict[str, str] = {}  # how it was used during the ramp

    async def run(self) -> int:
        """Run the load to its end; return the exit code.

        That is 130 if it was told to end early, and 1 if the server was gone, products were wrong, none was served, or
        something could not be written.

        Raises:
            KaasError: it could not begin, or no more clients could be prepared; the rows that there are stay.
        """
        results.check_no_earlier_run(self._settings.files.requests)
        with tempfile.TemporaryDirectory(prefix="kaas-", ignore_cleanup_errors=True) as scratch:
            crew = self._crew(Path(scratch))
            ended = ""
            try:
                ended = await self._unless_ordered(self._load(crew))
                code = await self._end(crew, ended)
            except KaasError as error:
                ended = str(error)
                raise
            finally:
                crew.kill()
                await crew.close()
                described = self._describe_end(ended or "at the end of the ramp")
            return code if described else code or 1

    def _crew(self, scratch: Path) -> Crew:
        settings = self._settings
        environment = {"KAAS_SCRATCH": str(scratch), "KAAS_RUN": segments.draw_run()}
        if settings.server is not None:
            environment["KAAS_ADDRESS"] = settings.server
        config = {
            "input": settings.input,
            "backoff": settings.backoff,
            "rows": str(settings.files.requests.resolve()),
        }
        return Crew(
            settings.client,
            scratch,
            settings.ramp.max_clients,
            config,
            environment,
            kill_after=settings.finish_timeout,
            problem=self._display.say,
            unfinished=self._finish,
        )

    # From the start to the end of the ramp

    async def _load(self, crew: Crew) -> str:
        """Run the ramp; return why it ended early, if it did."""
        settings, ramp = self._settings, self._settings.ramp
        parameters = settings.parameters
        if settings.server is not None:
            status = await self._wait_for_server(Connection(settings.server))
            parameters = parameters | _of_server(status)
        await crew.start()
        await crew.prepare(ramp.min_clients)
        results.create_requests(settings.files.requests)
        results.begin_description(settings.files.description, settings.files.requests, parameters, machine.describe())
        self._rows = RowReader(settings.files.requests)
        self._begun = time.monotonic()
        crew.begin()
        # What a script has started is all of this run; by hand, who is to say which server is ours?
        use = machine.CpuUse(os.getppid()) if settings.supervised else None
        watching = asyncio.create_task(self._watch_server())
        try:
            with self._display:
                return await self._follow_ramp(crew, watching)
        finally:
            watching.cancel()
            self._machine = use.facts() if use else {}

    async def _follow_ramp(self, crew: Crew, watching: asyncio.Task[str]) -> str:
        while not (pace := self._settings.ramp.pace(self._elapsed(), len(crew))).done:
            if pace.start:
                await crew.prepare(pace.start)
                crew.begin()
            self._show(len(crew))
            await asyncio.wait((watching,), timeout=min(pace.wait, _TICK))
            if watching.done():
                return watching.result()
            if crew.failure:
                return crew.failure
        return ""

    async def _wait_for_server(self, connection: Connection) -> dict[str, Any]:
        limit = self._settings.ready_timeout
        deadline = time.monotonic() + limit
        with connection:
            while True:
                try:
                    return await asyncio.to_thread(connection.status, 1.0)
                except ConnectionFailed as error:
                    if time.monotonic() >= deadline:
                        raise ServerNotReady(
                            f"no server is ready after {limit:g} s ({error}): start gpu-server-scaling.py, or say with "
                            "--server where it is"
                        ) from None
                    await asyncio.sleep(0.05)

    async def _watch_server(self) -> str:
        """Ask for the number of task runners, every second; return if the server is gone for good."""
        if self._settings.server is None:
            await asyncio.Event().wait()
        last = time.monotonic()
        with Connection(self._settings.server) as connection:
            while True:
                try:
                    status = await asyncio.to_thread(connection.status, 2.0)
                except ConnectionFailed as error:
                    self._task_runners = None
                    if time.monotonic() - last > _SERVER_GONE_AFTER:
                        return f"the server has been gone for {_SERVER_GONE_AFTER:g} s ({error})"
                except Refused as error:
                    return str(error)
                else:
                    self._task_runners = status["task_runners"]
                    last = time.monotonic()
                await asyncio.sleep(_STATUS_EVERY)

    # The end

    async def _end(self, crew: Crew, early: str) -> int:
        if early:
            self._display.say(f"{early}: ending in order, a signal ends at once; the data stay")
        crew.finish()
        at_once = await self._unless_ordered(crew.wait(self._settings.finish_timeout))
        if at_once:
            self._display.say(f"{at_once}: ending at once; the data stay")
        crew.kill()
        await crew.close()
        seconds = self._elapsed()
        self._read_rows()
        if self._rows is not None:
            self._console.print(summary(self._tally, seconds))
        wrong, served = self._tally.by_status["wrong_result"], self._tally.by_status["ok"]
        if wrong:
            self._display.say(f"{wrong} products were wrong: the kernel does not compute what it should")
        if not served:
            self._display.say("no request was served")
        for status, reason in self._tally.reasons():
            self._display.say(f"{status}, most often: {reason}")
        return 130 if self._ordered else 0 if served and not wrong and not early else 1

    def _describe_end(self, how: str) -> bool:
        """Finish the description, if there is a run to describe; tell whether that could be written."""
        if self._rows is not None:
            self._read_rows()
            self._rows.close()
            try:
                results.end_description(
                    self._settings.files.description, self._elapsed(), how, self._tally.by_status, self._machine
                )
            except ResultsError as error:
                self._display.say(str(error))
                return False
        return True

    # Small things

    async def _unless_ordered(self, work: Coroutine[Any, Any, str]) -> str:
        """Do something to its end, or until an order to end comes; return its result, or the order."""
        doing, order = asyncio.create_task(work), asyncio.create_task(self._orders.next())
        await asyncio.wait((doing, order), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            order.cancel()
            return doing.result()
        self._ordered = True
        doing.cancel()
        await asyncio.wait((doing,))
        return order.result()

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun

    def _show(self, running: int) -> None:
        self._read_rows()
        self._display.update(Now(self._elapsed(), running, self._task_runners), self._tally)

    def _read_rows(self) -> None:
        if self._rows is not None:
            for row in self._rows.new_rows():
                self._tally.add(row, self._elapsed())
                self._last[row.copy] = row.timestamp

    def _finish(self, copy: int, request: Request, how: str) -> None:
        """Write the row of a request whose client was killed, unless to write it was the last thing that it did."""
        self._read_rows()
        if self._last.get(copy) == request.timestamp:
            return
        try:
            with contextlib.closing(RowWriter(self._settings.files.requests)) as rows:
                rows.append(clients.failure(copy, request, f"the client {how}"))
        except ResultsError as error:
            self._display.say(str(error))


def _of_server(status: dict[str, Any]) -> dict[str, object]:
    """Make parameters of what the server says of itself."""
    own = {"Kernel": status["kernel"], "number of GPUs": status["gpus"], "Workers per GPU": status["workers_per_gpu"]}
    return {f"Server {name[0].lower()}{name[1:]}": value for name, value in (own | status["settings"]).items()}


def generate(settings: Settings) -> int:
    """Run the load generator; see `Generator.run`."""
    raise_descriptor_limit()
    code = asyncio.run(_run(settings))
    ignore_signals()
    return code


async def _run(settings: Settings) -> int:
    return await Generator(settings, Console()).run()
