"""The kernel is tried in a worker that boots as every one does, and what becomes of it is told in one line."""

import asyncio
import errno
import os
from collections.abc import Callable

import pytest

from kaas.errors import KaasError, ProcessFailed, TemporarilyUnavailable, UsageError
from kaas.passing import Passing
from kaas.pool.engine import Tell
from kaas.server.engines.trial import try_kernel
from kaas.simulation.loop import VirtualLoop
from kaas.wire import Pieces

PHASES = {"fork": 0.001, "import": 0.5}
Boot = Callable[[Tell], None]


class Worker:
    pid = None

    def __init__(self) -> None:
        self.told: list[str] = []

    def call(self, frame: Pieces, rest: Passing | None = None) -> None:
        raise AssertionError("a trial has no invocation")

    def stop(self) -> None:
        self.told.append("stop")

    def kill(self) -> None:
        self.told.append("kill")


class Engine:
    """Its workers boot in turn as they are told to, a second after they are spawned."""

    def __init__(self, *boots: Boot | OSError) -> None:
        self._boots = list(boots)
        self.workers: list[Worker] = []

    async def start(self) -> None:
        await try_kernel(self, 10.0)

    def spawn(self, number: int, gpu: int, tell: Tell) -> Worker:
        boot = self._boots.pop(0) if len(self._boots) > 1 else self._boots[0]
        if isinstance(boot, OSError):
            raise boot
        asyncio.get_running_loop().call_later(1.0, boot, tell)
        self.workers.append(Worker())
        return self.workers[-1]

    async def close(self) -> None: ...
    def abort(self) -> None: ...


def try_it(engine: Engine) -> float:
    """Try the kernel; give the seconds that it took, in virtual time."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(engine.start())
        return loop.time()
    finally:
        loop.close()


def succeeds(tell: Tell) -> None:
    tell.ready(PHASES)


def refused(tell: Tell) -> None:
    tell.broken("it cannot load the kernel now: MPS is not ready")
    tell.ended("ended with exit code 1", counts=False)


def fails(tell: Tell) -> None:
    tell.broken("it cannot load the kernel: no such device")
    tell.broken("")  # its link has ended
    tell.ended("ended with exit code 1", counts=True)


def crashes(tell: Tell) -> None:
    tell.broken("")
    tell.ended("ended by SIGSEGV", counts=True)


def hangs(tell: Tell) -> None:
    pass


def test_a_kernel_that_loads_is_tried_once_and_its_worker_ends_by_itself() -> None:
    engine = Engine(succeeds)
    assert try_it(engine) == 1.0
    assert [worker.told for worker in engine.workers] == [["stop"]]


@pytest.mark.parametrize(
    ("boot", "kind", "text"),
    [
        (fails, UsageError, "the kernel does not start: it cannot load the kernel: no such device"),
        (crashes, UsageError, "the kernel does not start: its process ended by SIGSEGV while it loaded the kernel"),
        (hangs, UsageError, "the kernel does not start: not ready within 10 s (--boot-timeout)"),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            ProcessFailed,
            "no process can be started to try the kernel in: Too many open files",
        ),
        (refused, TemporarilyUnavailable, "the kernel does not start: it cannot load the kernel now: MPS is not ready"),
    ],
    ids=["fails", "crashes", "hangs", "no process", "refused for ever"],
)
def test_why_a_kernel_does_not_load_is_told_in_one_line(boot: Boot | OSError, kind: type[KaasError], text: str) -> None:
    engine = Engine(boot)
    with pytest.raises(kind) as caught:
        try_it(engine)
    assert (type(caught.value).exit_code, str(caught.value)) == (kind.exit_code, text)
    assert all(worker.told == ["kill"] for worker in engine.workers)


def test_a_machine_that_refuses_for_a_while_is_asked_again_after_pauses_that_grow() -> None:
    engine = Engine(refused, refused, succeeds)
    assert try_it(engine) == 3 * 1.0 + 1.0 + 2.0
    assert [worker.told for worker in engine.workers] == [["kill"]] * 2 + [["stop"]]
