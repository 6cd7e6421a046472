"""Which worker serves the next invocation? The experiment's subject: decided here, acted on in `server/pool.py`.

Pure: no clock, lock, socket or process. Sets of workers and of GPUs are bits of integers, so that a decision takes
about as long whatever the number of GPUs, and little longer for many workers of one (`benchmarks/scaling.py`).
"""

from collections.abc import Iterable
from typing import NamedTuple

_WORD = 8
"""A word of a set of numbers has 2 to the power of this bits."""
_IN_WORD = (1 << _WORD) - 1


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
        self._idle = [0] * gpus  # of each GPU, a bit for each worker without an invocation; none where it is not booted
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
        idle = self._idle[gpu]
        self._idle[gpu] = idle & (idle - 1)  # without the lowest
        self._in_flight[gpu] += 1
        self._put_back(gpu)
        return Place(gpu * self._workers_per_gpu + _lowest_bit(idle), gpu, boots)

    def release(self, worker: int) -> None:
        """Take a worker back whose invocation is over, whatever became of it.

        Raises:
            ValueError: it has none.
        """
        gpu = worker // self._workers_per_gpu
        if not self._is_busy(worker):
            raise ValueError(f"worker {worker} has no invocation to release")
        self._take_out(gpu)
        self._idle[gpu] |= self._bit(worker)
        self._in_flight[gpu] -= 1
        self._put_back(gpu)

    def stop(self, gpu: int) -> None:
        """Count a GPU as not booted again.

        Raises:
            ValueError: it is not booted, or something is in flight on it.
        """
        if self._in_flight.get(gpu) != 0:
            raise ValueError(f"GPU {gpu} cannot be stopped: {self!r}")
        self._take_out(gpu)
        self._idle[gpu] = 0
        del self._in_flight[gpu]
        self._not_booted.add(gpu)

    def leave_out(self, worker: int) -> bool:
        """Use a worker of a booted GPU no more; an invocation that it has counts as over.

        Returns:
            Whether it was its GPU's last, so that the GPU is left out, too; it counts as booted no longer.

        Raises:
            ValueError: its GPU is not booted, or it is left out already.
        """
        gpu = worker // self._workers_per_gpu
        if gpu not in self._in_flight or worker in self._left_out:
            raise ValueError(f"worker {worker} cannot be left out: {self!r}")
        self._take_out(gpu)
        if self._idle[gpu] & self._bit(worker):
            self._idle[gpu] ^= self._bit(worker)
        else:
            self._in_flight[gpu] -= 1
        self._left_out.add(worker)
        if self._idle[gpu] or self._in_flight[gpu]:
            self._put_back(gpu)
            return False
        del self._in_flight[gpu]
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
        return sorted(self._in_flight)

    @property
    def exhausted(self) -> bool:
        """Whether every GPU is left out, so that no invocation will ever be placed."""
        return not self._in_flight and not self._not_booted

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
        self._idle[gpu] = sum(map(self._bit, self.workers(gpu)))
        self._in_flight[gpu] = 0
        self._put_back(gpu)

    def _is_busy(self, worker: int) -> bool:
        gpu = worker // self._workers_per_gpu
        return gpu in self._in_flight and not self._idle[gpu] & self._bit(worker) and worker not in self._left_out

    def _bit(self, worker: int) -> int:
        return 1 << worker % self._workers_per_gpu

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
    """A set of numbers from 0 that knows its lowest: a bit for each, in words, and a bit for each word that has any."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._words: dict[int, int] = {}  # by their numbers, none of them 0
        self._in_use = 0
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        word = number >> _WORD
        self._words[word] = self._words.get(word, 0) | 1 << (number & _IN_WORD)
        self._in_use |= 1 << word

    def remove(self, number: int) -> None:
        word = number >> _WORD
        left = self._words[word] ^ 1 << (number & _IN_WORD)
        if left:
            self._words[word] = left
        else:
            del self._words[word]
            self._in_use ^= 1 << word

    def lowest(self) -> int | None:
        if not self._in_use:
            return None
        word = _lowest_bit(self._in_use)
        return word << _WORD | _lowest_bit(self._words[word])

    def __bool__(self) -> bool:
        return self._in_use != 0

    def __len__(self) -> int:
        return sum(map(int.bit_count, self._words.values()))


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
