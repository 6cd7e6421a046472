"""Runs the experiment's load: starts clients on the ramp's schedule, follows their rows, and ends them in order.

The clients write their rows themselves (kaas.load.clients); what is shown here is read back from that file.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from kaas import description, descriptors, leftovers, machine, results
from kaas.clock import Clock, Watch
from kaas.errors import KaasError, ResultsError
from kaas.leftovers import Scratch
from kaas.load.board import Request
from kaas.load.crew import Crew
from kaas.load.crews import crew_of
from kaas.load.display import Display, Now
from kaas.load.due import Due
from kaas.load.nodes import NodesCrew
from kaas.load.pacer import Pacer, Step
from kaas.load.rows import Rows
from kaas.load.server import ServerWatch
from kaas.load.settings import Settings
from kaas.load.tally import Tally
from kaas.load.verdict import NOT_AS_IT_SHOULD_BE, Verdict, in_words, judge
from kaas.orders import Orders, ignore_signals
from kaas.row import columns_of_run
from kaas.shapes import OpenLoop

_TICK = 0.25
_LEAD = 0.1
"""Seconds before the begin of an open loop in which its clients are told of the first arrivals."""


class Generator:
    """One run of the load generator."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._display = Display(sys.stdout, settings.shape)
        self._tally = Tally()
        self._pacer = Pacer(settings.shape, settings.max_late)
        self._orders = Orders(settings.supervised)
        # Several looks in a step, however short: what is shown beside its requests must be of the same time.
        often = settings.shape.next_change(0.0) / 4
        self._server = ServerWatch(settings.server, settings.ready_timeout, often)
        self._clock = Clock.of_run()
        self._wall_clock = Watch(self._clock)
        self._rows: Rows | None = None
        self._arrivals = settings.shape.arrivals if isinstance(settings.shape, OpenLoop) else None
        self._open: Crew | None = None  # the crew of an open loop
        self._begun = 0.0
        self._ordered = False
        self._hopeless = False
        self._verdict: Verdict | None = None
        self._machine: dict[str, str] = {}  # how it was used during the ramp

    async def run(self) -> int:
        """Run the load to its end; return the exit code.

        That is 130 if it was told to end early; 3 if too many requests failed, a step's clients came late, or clients
        did not end in order; and 1 if the server was gone, nothing was served, or something could not be written.

        Raises:
            KaasError: it could not begin; the rows that there are stay.
        """
        settings = self._settings
        results.check_no_earlier_run(settings.files.requests)
        if removed := leftovers.sweep():
            self._display.say(removed)
        with contextlib.closing(Scratch()) as scratch:
            crew = crew_of(settings, scratch, self._clock, problem=self._display.say, unfinished=self._finish)
            if isinstance(crew, Crew) and self._arrivals is not None:
                self._open = crew
            ended = "by an error"
            looking = asyncio.create_task(self._watch_clock())
            try:
                early = await self._unless_ordered(self._load(crew))
                ended = early or "at the end of the ramp"
                code = await self._end(crew, early)
            except KaasError as error:
                ended = str(error)
                raise
            finally:
                crew.kill()
                await crew.close()
                looking.cancel()
                described = await self._describe_end(ended, crew)
                if self._verdict and self._verdict.what:  # the last line of all, whatever else there was to say
                    self._display.say(self._verdict.what)
                await asyncio.to_thread(self._display.close)
            return code if described else code or 1

    # From the start to the end of the ramp

    async def _load(self, crew: Crew | NodesCrew) -> str:
        """Run the ramp; return why it ended early, if it did."""
        files, shape = self._settings.files, self._settings.shape
        parameters = self._settings.parameters | await self._server.ready()
        await crew.start()
        crew.have(shape.clients(0.0))
        await crew.prepared()
        described = await asyncio.to_thread(machine.describe)
        open_loop = self._arrivals is not None
        results.create_requests(files.requests, open_loop=open_loop)
        columns = columns_of_run(open_loop=open_loop)
        # What a script has started is all of this run; by hand, who is to say which server is ours?
        use = machine.CpuUse(self._settings.supervised) if self._settings.supervised else None
        self._begun = time.monotonic() + _LEAD * open_loop
        begun = self._clock.at(self._begun)
        description.begin(files.description, files.requests, begun, parameters, described, columns=columns)
        if self._open is not None and self._arrivals is not None:
            self._open.send(Due(self._arrivals, self._begun))
        self._rows = Rows(files.requests, self._clock, self._begun, self._tally)
        following = asyncio.create_task(self._server.follow())
        try:
            with self._display:
                return await self._follow_shape(crew, following)
        finally:
            following.cancel()
            self._machine = use.facts() if use else {}

    async def _follow_shape(self, crew: Crew | NodesCrew, following: asyncio.Task[str]) -> str:
        """Have clients begin when they are due, and those of the next step prepared by then."""
        pacer = self._pacer
        while True:
            crew.changed.clear()
            elapsed = self._elapsed()
            if early := self._show_steps(elapsed, crew.running) or crew.failure:
                return early
            end = self._settings.shape.duration
            if elapsed >= end and (
                self._open is None or self._open.drained or elapsed >= end + self._settings.finish_timeout
            ):
                return ""
            crew.have(pacer.wanted)
            crew.begin(pacer.step.clients)
            pacer.have(self._elapsed(), crew.running)
            if elapsed < end:
                self._show(elapsed, crew.running)
            changed = asyncio.create_task(crew.changed.wait())
            wait = min(max(pacer.step.end - self._elapsed(), 0.0), _TICK) if elapsed < end else _TICK
            await asyncio.wait((following, changed), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if following.done():
                return following.result()

    def _show_steps(self, elapsed: float, running: int) -> str:
        """Show each step that is over; return why the run need not go on after it."""
        self._read_rows()
        for step in self._pacer.over(elapsed, running):
            figures = self._tally.between(step.begin, step.end)
            self._display.keep(step, self._now(step, step.end, running), figures)
            self._tally.forget(step.end)
            if not self._settings.keep_going and (why := self._tally.why_stop(step.label, figures)):
                self._hopeless = True
                return f"{why}; KEEP_GOING=1 goes on"
        return ""

    def _show(self, elapsed: float, running: int) -> None:
        step = self._pacer.step
        self._display.show(step, self._now(step, elapsed, running), lambda: self._tally.between(step.begin, elapsed))

    def _now(self, step: Step, elapsed: float, running: int) -> Now:
        return Now(elapsed, running, self._server.task_runners(self._begun + step.begin))

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._wall_clock.look()

    # The end

    async def _end(self, crew: Crew | NodesCrew, early: str) -> int:
        stopped = time.monotonic()
        if early:
            again = "Ctrl-C again" if self._ordered else "Ctrl-C"
            self._display.say(f"{early}: finishing the requests in flight; {again} stops at once")
        crew.finish()
        at_once = await self._unless_ordered(crew.wait(self._settings.finish_timeout))
        if at_once:
            self._display.say(f"{at_once}: stopping at once; the rows of all requests stay")
        crew.kill()
        await crew.close()
        seconds = self._elapsed()
        if self._rows is None:
            return 130
        if self._open is not None:
            with self._saying_problems():
                self._rows.add_unsent(self._open.unsent(stopped), stopped, self._settings.shape.most)
        self._read_rows()
        self._display.show_sums(self._tally, seconds)
        if late := self._tally.sent_late():
            self._display.say(f"{late}: all clients were busy then, or this machine was")
        for late in self._pacer.late:
            self._display.say(f"{late}: this load is not what it should be")
        self._verdict = self._judge(crew, early)
        return self._verdict.code

    def _judge(self, crew: Crew | NodesCrew, early: str) -> Verdict:
        verdict = judge(
            self._tally,
            self._settings.max_failed,
            early="" if self._ordered else early,
            hopeless=self._hopeless,
            late=self._pacer.late,
            disorder=in_words(crew.disorderly),
        )
        return verdict._replace(code=130) if self._ordered else verdict

    async def _describe_end(self, how: str, crew: Crew | NodesCrew) -> bool:
        """Finish the description, if there is a run to describe; tell whether that could be written."""
        if self._rows is None:
            return True
        self._read_rows()
        facts: dict[str, object] = {f"Requests {status}": number for status, number in self._tally.by_status.items()}
        if self._rows.malformed:
            facts["Malformed rows"] = self._rows.malformed
        if different := await self._server.differences(self._tally.by_status):
            facts["Rows and the server's counts"] = different
            self._display.say(f"rows and the server's counts differ: {different}")
        if self._pacer.late:
            facts["Late steps"] = "; ".join(self._pacer.late)
        if late := self._tally.sent_late():
            facts["Sent late"] = late
        if disorder := in_words(crew.disorderly):
            facts["Clients that did not end in order"] = disorder
        if self._verdict is None or self._verdict.code in {1, NOT_AS_IT_SHOULD_BE}:
            facts["Went wrong"] = self._verdict.what if self._verdict else how
        facts |= {**crew.facts(), "Ended": how, **self._wall_clock.notes(), **self._machine}
        self._rows.close()
        try:
            description.end(self._settings.files.description, self._clock.now(), self._elapsed(), facts)
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

    def _read_rows(self) -> None:
        if self._rows is not None:
            self._rows.read()

    def _finish(self, copy: int, request: Request, how: str) -> None:
        """Write the row of a request whose client was killed."""
        if self._rows is not None:
            with self._saying_problems():
                self._rows.add_killed(copy, request, how)

    @contextlib.contextmanager
    def _saying_problems(self) -> Iterator[None]:
        try:
            yield
        except ResultsError as error:
            self._display.say(str(error))


def generate(settings: Settings) -> int:
    """Run the load generator; see `Generator.run`."""
    descriptors.raise_limit()
    code = asyncio.run(_run(settings))
    ignore_signals()
    return code


async def _run(settings: Settings) -> int:
    return await Generator(settings).run()
