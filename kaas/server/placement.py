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

    Workers are numbered through: worker `i` of GPU `g` is `g * workers_per_gpu + i`. One that is left out never gets
    an invocation again, and a GPU all of whose workers are left out is never booted again.
    """

    def __init__(self, gpus: int, workers_per_gpu: int) -> None:
        self._workers_per_gpu = workers_per_gpu
        self._not_booted = _Numbers(range(gpus))
        self._idle: dict[int, _Numbers] = {}  # of each booted GPU, the workers without an invocation
        self._in_flight: dict[int, int] = {}  # on each booted GPU
        self._by_load = [_Numbers() for _ in range(workers_per_gpu)]  # booted GPUs that have an idle worker
        self._least_load = 0  # no GPU that has an idle worker has less in flight
        self._left_out: set[int] = set()

    def acquire(self) -> Place | None:
        """Choose the worker for one more invocation; None if it is rejected because all are full."""
        gpu = self._least_loaded()
        if gpu is None:
            gpu = self._not_booted.lowest()
            if gpu is None:
                return None
            self._boot(gpu)
            boots = True
        else:
            boots = False
        self._take_out(gpu)
        worker = self._idle[gpu].pop_lowest()
        self._in_flight[gpu] += 1
        self._put_back(gpu)
        return Place(worker, gpu, boots)

    def release(self, worker: int) -> None:
        """Take a worker back whose invocation is over, whatever became of it.

        Raises:
            ValueError: it has none.
        """
        gpu = worker // self._workers_per_gpu
        if not self._is_busy(worker):
            raise ValueError(f"worker {worker} has no invocation to release")
        self._take_out(gpu)
        self._idle[gpu].add(worker)
        self._in_flight[gpu] -= 1
        self._put_back(gpu)

    def stop(self, gpu: int) -> None:
        """Count a GPU as not booted again.

        Raises:
            ValueError: it is not booted, or something is in flight on it.
        """
        if gpu not in self._idle or self.in_flight(gpu):
            raise ValueError(f"GPU {gpu} cannot be stopped: {self!r}")
        self._take_out(gpu)
        del self._idle[gpu], self._in_flight[gpu]
        self._not_booted.add(gpu)

    def leave_out(self, worker: int) -> bool:
        """Use a worker of a booted GPU no more; an invocation that it has counts as over.

        Returns:
            Whether it was its GPU's last, so that the GPU is left out, too; it counts as booted no longer.

        Raises:
            ValueError: its GPU is not booted, or it is left out already.
        """
        gpu = worker // self._workers_per_gpu
        if gpu not in self._idle or worker in self._left_out:
            raise ValueError(f"worker {worker} cannot be left out: {self!r}")
        self._take_out(gpu)
        if worker in self._idle[gpu]:
            self._idle[gpu].remove(worker)
        else:
            self._in_flight[gpu] -= 1
        self._left_out.add(worker)
        if self._idle[gpu] or self._in_flight[gpu]:
            self._put_back(gpu)
            return False
        del self._idle[gpu], self._in_flight[gpu]
        return True

    def in_flight(self, gpu: int) -> int:
        """Tell how many invocations a booted GPU has."""
        return self._in_flight[gpu]

    def workers(self, gpu: int) -> list[int]:
        """List the workers of a GPU that are not left out, in order."""
        first = gpu * self._workers_per_gpu
        return [worker for worker in range(first, first + self._workers_per_gpu) if worker not in self._left_out]

    @property
    def booted(self) -> list[int]:
        """The booted GPUs, in order."""
        return sorted(self._idle)

    @property
    def exhausted(self) -> bool:
        """Whether every GPU is left out, so that no invocation will ever be placed."""
        return not self._idle and not self._not_booted

    def __repr__(self) -> str:
        loads = ", ".join(f"GPU {gpu}: {self.in_flight(gpu)}/{len(self.workers(gpu))}" for gpu in self.booted)
        return f"<Placement {loads or 'nothing booted'}; {len(self._not_booted)} not booted>"

    def _least_loaded(self) -> int | None:
        """Find the GPU with the fewest in flight that has an idle worker, the lowest of equals."""
        while self._least_load < self._workers_per_gpu:
            gpu = self._by_load[self._least_load].lowest()
            if gpu is not None:
                return gpu
            self._least_load += 1
        return None

    def _boot(self, gpu: int) -> None:
        self._not_booted.remove(gpu)
        self._idle[gpu] = _Numbers(self.workers(gpu))
        self._in_flight[gpu] = 0
        self._put_back(gpu)

    def _is_busy(self, worker: int) -> bool:
        idle = self._idle.get(worker // self._workers_per_gpu)
        return idle is not None and worker not in idle and worker not in self._left_out

    def _take_out(self, gpu: int) -> None:
        """Have a GPU stand under no load while its account changes."""
        if self._idle[gpu]:
            self._by_load[self._in_flight[gpu]].remove(gpu)

    def _put_back(self, gpu: int) -> None:
        if self._idle[gpu]:
            load = self._in_flight[gpu]
            self._by_load[load].add(gpu)
            self._least_load = min(self._least_load, load)


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
