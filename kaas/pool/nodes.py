"""GPUs that come and go with their nodes, in a pool."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaas.pool.pool import Pool


class Nodes:
    """Is told by an engine that has several nodes (engine.Roster)."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool

    def offer(self, gpus: list[int], node: str) -> None:
        """They are there, or there again; those who wait get their places."""
        pool = self._pool
        for gpu in gpus:
            pool.placement.offer(gpu)
            pool.nodes[gpu] = node
        if not pool.placement.exhausted:
            pool.no_gpu = ""
        pool.serve_waiting()

    def withdraw(self, gpus: list[int], why: str) -> None:
        """They are gone: what their workers had begun is answered `worker_lost`, and the rest placed elsewhere."""
        pool = self._pool
        gone = {gpu: pool.runners.pop(gpu) for gpu in gpus if gpu in pool.runners}
        for gpu in gpus:
            pool.placement.withdraw(gpu)
        with ExitStack() as each:  # the last first, and all of them, whatever is raised
            each.callback(pool.boot_ahead)
            each.callback(pool.reject_if_none_is_left, why)
            for gpu, runner in reversed(gone.items()):
                each.callback(pool.tell, "stopped", gpu, len(runner.slots), detail=why)
                each.callback(runner.vanish, why)
