"""Which workers are there, and how many invocations has each GPU? The account that policies decide by.

Pure: no clock, lock, socket or process. Sets of workers and of GPUs are bits of integers, so that a decision takes
about as long whatever the number of GPUs, and little longer for many workers of one (`benchmarks/scaling.py`).
"""


class Placement:
    """Keeps account of `gpus` GPUs of `workers_per_gpu` workers each; a `policy.Fleet` to look at.

    Workers are numbered through: worker `i` of GPU `g` is `g * workers_per_gpu + i`. One that is left out never gets
    an invocation again, and a GPU all of whose workers are left out is never booted again.
    """

    def __init__(self, gpus: int, workers_per_gpu: int) -> None:
        self._workers_per_gpu = workers_per_gpu
        self._not_booted = (1 << gpus) - 1
        self._usable = [(1 << workers_per_gpu) - 1] * gpus  # of each GPU, the workers that are not left out
        self._idle = [0] * gpus  # those without an invocation; none where it is not booted
        self._ready = [0] * gpus  # those that have booted
        self._in_flight: dict[int, int] = {}  # on each booted GPU
        self._by_load = [0] * workers_per_gpu  # booted GPUs that have an idle worker
        self._places = 0
        self._taken = 0
        self._least_load = workers_per_gpu  # no GPU that has an idle worker has less in flight

    # For policies to look at (policy.Fleet)

    def least_loaded(self) -> int | None:
        """Find the booted GPU with the fewest in flight that has an idle worker, the lowest of equals."""
        for load in range(self._least_load, self._workers_per_gpu):
            if gpus := self._by_load[load]:
                self._least_load = load
                return (gpus & -gpus).bit_length() - 1
        self._least_load = self._workers_per_gpu
        return None

    def most_loaded(self) -> int | None:
        """Find the booted GPU with the most in flight that has an idle worker, the lowest of equals."""
        for gpus in reversed(self._by_load):
            if gpus:
                return (gpus & -gpus).bit_length() - 1
        return None

    @property
    def taken(self) -> int:
        """How many invocations all booted GPUs have."""
        return self._taken

    @property
    def places(self) -> int:
        """How many workers all booted GPUs have that are not left out."""
        return self._places

    def next_to_boot(self) -> int | None:
        """Find the lowest GPU that is not booted and not left out."""
        gpus = self._not_booted
        return (gpus & -gpus).bit_length() - 1 if gpus else None

    @property
    def booted(self) -> list[int]:
        """The booted GPUs, in order; one of them boots as long as none of its workers is ready."""
        return sorted(self._in_flight)

    def in_flight(self, gpu: int) -> int:
        """Tell how many invocations a booted GPU has."""
        return self._in_flight[gpu]

    def ready(self, gpu: int) -> int:
        """Tell how many workers of a GPU are ready, idle or not."""
        return self._ready[gpu].bit_count()

    def ready_and_idle(self, gpu: int) -> int:
        """Tell how many workers of a GPU could begin an invocation at once."""
        return (self._ready[gpu] & self._idle[gpu]).bit_count()

    def workers(self, gpu: int) -> list[int]:
        """List the workers of a GPU that are not left out, in order."""
        first = gpu * self._workers_per_gpu
        return [first + index for index in range(self._workers_per_gpu) if self._usable[gpu] >> index & 1]

    @property
    def gpus(self) -> int:
        """How many GPUs have a number, those included that are left out or not there."""
        return len(self._usable)

    @property
    def exhausted(self) -> bool:
        """Whether every GPU is left out or not there, so that no invocation will ever be placed."""
        return not self._in_flight and not self._not_booted

    # What happens

    def acquire(self, gpu: int) -> int:
        """Take the lowest idle worker of a booted GPU, of those that are ready; only if none is, one that boots.

        Raises:
            ValueError: it has no idle worker.
        """
        idle = self._idle[gpu]
        if not idle:
            raise ValueError(f"GPU {gpu} has no idle worker: {self!r}")
        candidates = idle & self._ready[gpu] or idle
        worker = candidates & -candidates
        load = self._in_flight[gpu]
        self._idle[gpu] = idle = idle ^ worker
        self._in_flight[gpu] = load + 1
        self._taken += 1
        self._by_load[load] ^= (bit := 1 << gpu)
        if idle:
            self._by_load[load + 1] ^= bit
        return gpu * self._workers_per_gpu + worker.bit_length() - 1

    def release(self, worker: int) -> int:
        """Take a worker back whose invocation is over, whatever became of it; tell how many its GPU has left.

        Raises:
            ValueError: it has none.
        """
        gpu, index = divmod(worker, self._workers_per_gpu)
        load = self._in_flight.get(gpu, 0)
        if not load or self._idle[gpu] >> index & 1 or not self._usable[gpu] >> index & 1:
            raise ValueError(f"worker {worker} has no invocation to release")
        idle, bit = self._idle[gpu], 1 << gpu
        if idle:
            self._by_load[load] ^= bit
        self._idle[gpu] = idle | 1 << index
        self._in_flight[gpu] = load = load - 1
        self._taken -= 1
        self._by_load[load] |= bit
        self._least_load = min(self._least_load, load)
        return load

    def boot(self, gpu: int) -> list[int]:
        """Count a GPU as booted, all its workers as booting; list them.

        Raises:
            ValueError: it is booted already, or left out.
        """
        if gpu < 0 or not self._not_booted >> gpu & 1:
            raise ValueError(f"GPU {gpu} cannot be booted: {self!r}")
        self._not_booted ^= 1 << gpu
        self._idle[gpu] = self._usable[gpu]
        self._in_flight[gpu] = 0
        self._places += self._usable[gpu].bit_count()
        self._by_load[0] |= 1 << gpu
        self._least_load = 0
        return self.workers(gpu)

    def set_ready(self, worker: int, *, ready: bool) -> None:
        """Take note that a worker of a booted GPU has booted, or has to boot again."""
        gpu, index = divmod(worker, self._workers_per_gpu)
        self._ready[gpu] = self._ready[gpu] & ~(1 << index) | ready << index

    def stop(self, gpu: int) -> None:
        """Count a GPU as not booted again.

        Raises:
            ValueError: it is not booted, or something is in flight on it.
        """
        if self._in_flight.get(gpu) != 0:
            raise ValueError(f"GPU {gpu} cannot be stopped: {self!r}")
        self._forget(gpu)
        self._not_booted |= 1 << gpu

    def leave_out(self, worker: int) -> bool:
        """Use a worker of a booted GPU no more; an invocation that it has counts as over.

        Returns:
            Whether it was its GPU's last, so that the GPU is left out, too; it counts as booted no longer.

        Raises:
            ValueError: its GPU is not booted, or it is left out already.
        """
        gpu, index = divmod(worker, self._workers_per_gpu)
        if gpu not in self._in_flight or not self._usable[gpu] >> index & 1:
            raise ValueError(f"worker {worker} cannot be left out: {self!r}")
        if not self._idle[gpu] >> index & 1:
            self.release(worker)
        self.set_ready(worker, ready=False)
        self._usable[gpu] ^= 1 << index
        self._places -= 1
        self._idle[gpu] ^= 1 << index
        if not self._usable[gpu]:
            self._forget(gpu)
            return True
        if not self._idle[gpu]:
            self._by_load[self._in_flight[gpu]] ^= 1 << gpu
        return False

    def offer(self, gpu: int) -> None:
        """Count a GPU as there, and not booted; none of its workers is left out (any more)."""
        full = (1 << self._workers_per_gpu) - 1
        while len(self._usable) <= gpu:
            self._usable.append(full)
            self._idle.append(0)
            self._ready.append(0)
        self._usable[gpu] = full
        self._not_booted |= 1 << gpu

    def withdraw(self, gpu: int) -> None:
        """Count a GPU as not there, until it is offered again; the invocations that it has count as over."""
        self._not_booted &= ~(1 << gpu)
        if gpu in self._in_flight:
            self._forget(gpu)

    def __repr__(self) -> str:
        loads = ", ".join(f"GPU {gpu}: {self.in_flight(gpu)}/{len(self.workers(gpu))}" for gpu in self.booted)
        return f"<Placement {loads or 'nothing booted'}; {self._not_booted.bit_count()} not booted>"

    def _forget(self, gpu: int) -> None:
        load = self._in_flight.pop(gpu)
        if load < self._workers_per_gpu:
            self._by_load[load] &= ~(1 << gpu)
        self._idle[gpu] = self._ready[gpu] = 0
        self._taken -= load
        self._places -= self._usable[gpu].bit_count()
