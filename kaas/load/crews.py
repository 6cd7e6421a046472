"""Which crew a run has: clients on this machine, or on every node that has joined."""

from collections.abc import Callable

from kaas.clock import Clock
from kaas.leftovers import Scratch
from kaas.load.board import Request
from kaas.load.crew import Crew
from kaas.load.nodes import NodesCrew
from kaas.load.settings import Settings
from kaas.shapes import OpenLoop


def crew_of(
    settings: Settings,
    scratch: Scratch,
    clock: Clock,
    *,
    problem: Callable[[str], None],
    unfinished: Callable[[int, Request, str], None],
) -> Crew | NodesCrew:
    """Make a run's crew; `problem` and `unfinished` are those of `Crew`.

    Raises:
        ProcessFailed: there is no room in `scratch`.
    """
    told = {"input": settings.input, "backoff": settings.backoff}
    if settings.joining is not None:
        return NodesCrew(
            settings.joining,
            settings.client,
            server=settings.server,
            most=settings.shape.most,
            told=told,
            requests=settings.files.requests,
            clock=clock,
            problem=problem,
        )
    environment = {"KAAS_SCRATCH": str(scratch.folder), "KAAS_RUN": scratch.run}
    if settings.server is not None:
        environment["KAAS_ADDRESS"] = settings.server
    of_run = {
        "clock": clock,
        "open_loop": isinstance(settings.shape, OpenLoop),
        "rows": str(settings.files.requests.resolve()),
    }
    return Crew(
        settings.client,
        scratch.folder,
        settings.shape.most,
        told | of_run,
        environment,
        kill_after=settings.finish_timeout,
        problem=problem,
        unfinished=unfinished,
    )
