"""A task runner: the workers of one GPU, booted and stopped together."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from kaas.pool.slot import Slot

if TYPE_CHECKING:
    from kaas.pool.pool import Pool


class TaskRunner:
    """Boots its workers when it is made, and has the pool stop it when it has been idle for `idle_timeout` seconds."""

    def __init__(self, gpu: int, numbers: list[int], pool: "Pool") -> None:
        self.gpu = gpu
        self.idle_since = pool.clock()  # the last time that nothing was in flight any more
        self._pool = pool
        self._watch = 0
        self.slots = {number: Slot(number, gpu, pool) for number in numbers}
        self._look_after(pool.settings.idle_timeout)

    def stop(self) -> None:
        """Let all workers end."""
        self._pool.deadlines.cancel(self._watch)
        for slot in self.slots.values():
            slot.stop()

    def vanish(self, reason: str) -> None:
        """The GPU is gone, and all workers with it."""
        self._pool.deadlines.cancel(self._watch)
        with ExitStack() as each:  # whatever is raised where one has vanished, the next does, too
            for slot in reversed(self.slots.values()):
                each.callback(slot.vanish, reason)

    def _look_after(self, wait: float) -> None:
        if self._pool.settings.idle_timeout:
            self._watch = self._pool.deadlines.at(self._pool.clock() + wait, self._look)

    def _look(self) -> None:
        pool, timeout = self._pool, self._pool.settings.idle_timeout
        left = timeout if pool.placement.in_flight(self.gpu) else self.idle_since + timeout - pool.clock()
        if left > 0:
            self._look_after(left)
        else:
            pool.idle(self.gpu)
