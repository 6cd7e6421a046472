"""Which worker serves the next invocation? The experiment's subject: decided here, acted on in `pool.py`.

Pure: no clock, lock, socket or process. Every decision takes time in the order of log(GPUs) + log(workers of one GPU).
"""

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Place(NamedTuple):
    """Where an invocation goes; `boots` if its GPU has to be booted for it, which makes it the cold start."""

    worker: int
    gpu: int
    boots: bool


class Placement:
    """Keeps account of what is in flight on `gpus` GPUs of `workers_per_gpu` workers each.

    Workers are numbered through: worker `i` of GPU `g` is `g * workers_per_gpu + i`.
    """

    def __init__(self, gpus: int, workers_per_gpu: int) -> None:
        self._workers_per_gpu = workers_per_gpu
        self._not_booted = _Numbers(range(gpus))
        self._idle: dict[int, _Numbers] = {}  # of each booted GPU, the workers without an invocation
        self._by_load = [_Numbers() for _ in range(workers_per_gpu + 1)]  # booted GPUs, by what is in flight on them
        self._least_load = 0  # no booted GPU has less in flight

    def acquire(self) -> Place | None:
        """Choose the worker for one more invocation; None if it is rejected because all are full."""
        gpu, load = self._least_loaded()
        if gpu is None:
            gpu = self._not_booted.lowest()
            if gpu is None:
                return None
            self._boot(gpu)
            load, boots = 0, True
        else:
            boots = False
        worker = self._idle[gpu].pop_lowest()
        self._move(gpu, load, load + 1)
        return Place(worker, gpu, boots)

    def release(self, worker: int) -> None:
        """Take a worker back whose invocation is over, whatever became of it.

        Raises:
            ValueError: it has none.
        """
        gpu = worker // self._workers_per_gpu
        idle = self._idle.get(gpu)
        if idle is None or worker in idle:
            raise ValueError(f"worker {worker} has no invocation to release")
        load = self.in_flight(gpu)
        idle.add(worker)
        self._move(gpu, load, load - 1)

    def stop(self, gpu: int) -> None:
        """Count a GPU as not booted again.

        Raises:
            ValueError: it is not booted, or something is in flight on it.
        """
        if gpu not in self._idle or self.in_flight(gpu):
            raise ValueError(f"GPU {gpu} cannot be stopped: {self!r}")
        del self._idle[gpu]
        self._by_load[0].remove(gpu)
        self._not_booted.add(gpu)

    def in_flight(self, gpu: int) -> int:
        """Tell how many invocations a booted GPU has."""
        return self._workers_per_gpu - len(self._idle[gpu])

    @property
    def booted(self) -> list[int]:
        """The booted GPUs, in order."""
        return sorted(self._idle)

    def __repr__(self) -> str:
        loads = ", ".join(f"GPU {gpu}: {self.in_flight(gpu)}/{self._workers_per_gpu}" for gpu in self.booted)
        return f"<Placement {loads or 'nothing booted'}; {len(self._not_booted)} not booted>"

    def _least_loaded(self) -> tuple[int | None, int]:
        """Find the GPU with the fewest in flight that has an idle worker, the lowest of equals."""
        while self._least_load < self._workers_per_gpu:
            gpu = self._by_load[self._least_load].lowest()
            if gpu is not None:
                return gpu, self._least_load
            self._least_load += 1
        return None, self._least_load

    def _boot(self, gpu: int) -> None:
        first = gpu * self._workers_per_gpu
        self._not_booted.remove(gpu)
        self._idle[gpu] = _Numbers(range(first, first + self._workers_per_gpu))
        self._by_load[0].add(gpu)

    def _move(self, gpu: int, before: int, after: int) -> None:
        self._by_load[before].remove(gpu)
        self._by_load[after].add(gpu)
        self._least_load = min(self._least_load, after)


class _Numbers:
    """A set of numbers that knows its lowest: a heap from which removed ones are dropped when they come to the top."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._heap = sorted(numbers)
        self._in_heap = set(self._heap)
        self._members = set(self._heap)

    def add(self, number: int) -> None:
        self._members.add(number)
        if number not in self._in_heap:
            self._in_heap.add(number)
            heapq.heappush(self._heap, number)

    def remove(self, number: int) -> None:
        self._members.remove(number)

    def lowest(self) -> int | None:
        heap = self._heap
        while heap:
            if heap[0] in self._members:
                return heap[0]
            self._in_heap.remove(heapq.heappop(heap))
        return None

    def pop_lowest(self) -> int:
        number = self.lowest()
        if number is None:
            raise ValueError("no number is left")
        self._members.remove(number)
        return number

    def __contains__(self, number: int) -> bool:
        return number in self._members

    def __len__(self) -> int:
        return len(self._members)
