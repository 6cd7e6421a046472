"""Does the kernel load at all? Tried in a worker that boots as every one does, before any client is let in."""

import asyncio
import logging

from kaas.errors import KaasError, ProcessFailed, TemporarilyUnavailable, UsageError
from kaas.pool.engine import Engine
from kaas.wire import ReplyFrame

log = logging.getLogger("kaas.server")

_PAUSE = 1.0
"""Seconds until it is tried again if it cannot be for now; doubled from one to the next."""


async def try_kernel(engine: Engine, limit: float, gpu: int = 0) -> dict[str, float]:
    """Boot a worker on a GPU within `limit` seconds, and let it end; return the seconds of each phase of its boot.

    Raises:
        UsageError: the kernel does not load; the text says why.
        TemporarilyUnavailable: it still does not for now after as long as a boot may take.
        ProcessFailed: there is no process to be had.
    """
    loop = asyncio.get_running_loop()
    pause, patience = _PAUSE, loop.time() + limit
    while True:
        try:
            return await _try_once(engine, limit, gpu)
        except TemporarilyUnavailable as error:
            if loop.time() + pause > patience:
                raise
            log.warning("%s; tried again in %g s", error, pause)
        await asyncio.sleep(pause)
        pause *= 2


async def _try_once(engine: Engine, limit: float, gpu: int) -> dict[str, float]:
    trial = _Trial()
    try:
        worker = engine.spawn(0, gpu, trial)
    except OSError as error:
        raise ProcessFailed(f"no process can be started to try the kernel in: {error.strerror}") from None
    end = worker.kill
    try:
        phases = await asyncio.wait_for(trial.phases, limit)
        end = worker.stop
        return phases
    except TimeoutError:
        raise UsageError(f"the kernel does not start: not ready within {limit:g} s (--boot-timeout)") from None
    finally:
        end()


class _Trial:
    """Is told of the worker (pool.engine.Tell)."""

    def __init__(self) -> None:
        self.phases: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self._reason = ""

    def ready(self, phases: dict[str, float]) -> None:
        """The kernel loads."""
        if not self.phases.done():
            self.phases.set_result(phases)

    def replied(self, reply: ReplyFrame) -> None:
        """Nothing was asked."""

    def broken(self, reason: str) -> None:
        """Why, if it could say."""
        self._reason = self._reason or reason

    def ended(self, how: str, counts: bool) -> None:
        """It was not ready, and this is all that there is to know of it."""
        if not self.phases.done():
            text = f"the kernel does not start: {self._reason or f'its process {how} while it loaded the kernel'}"
            error: KaasError = UsageError(text) if counts else TemporarilyUnavailable(text)
            self.phases.set_exception(error)
