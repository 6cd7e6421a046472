"""The published experiment in miniature, simulated: right runs to judge, and one whose GPUs share their kernels.

A model for tests, no more: clients in a closed loop, whose setups share one memory; GPUs of four workers, placed by the
harness's own rule; kernels of a GPU one after the other, or all at once at a part of the speed each.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from made_runs import T0

from kaas import results
from kaas.events import Event
from kaas.placement import Placement
from kaas.policy import Paper
from kaas.results import Outcome, Row

GPUS, WORKERS, CLIENTS, STEP_S = 8, 4, 48, 10.0
_ALONE_S, _HOST_PER_S = 0.655, 8.2
_KERNEL_S, _IN_S, _OUT_S = 0.8, 0.44, 0.36
_HELD_OF_REST = 0.2


class _Shared:
    """Work that is done at once, each at `speed(number)`: a memory, or a GPU whose kernels take turns."""

    def __init__(self, speed: Callable[[int], float]) -> None:
        self.speed, self.left, self.at, self.turn = speed, dict[int, float](), 0.0, 0

    def add(self, now: float, who: int, work: float) -> None:
        self._to(now)
        self.left[who] = work

    def first(self) -> tuple[float, int]:
        """Give when the next is done, if nobody comes before, and who."""
        who = min(self.left, key=self.left.__getitem__)
        return self.at + self.left[who] / self.speed(len(self.left)), who

    def take(self, now: float, who: int) -> None:
        self._to(now)
        del self.left[who]

    def _to(self, now: float) -> None:
        done = (now - self.at) * self.speed(len(self.left)) if self.left else 0.0
        self.left = {who: work - done for who, work in self.left.items()}
        self.at, self.turn = now, self.turn + 1


def simulate(seed: int, *, kernels_shared: bool = False) -> tuple[list[Row], list[Event]]:
    """Give the requests and boots of one run."""
    run = _Experiment(seed, kernels_shared)
    return sorted(run.rows), run.boots


class _Experiment:
    """What happens, one thing after the other: each a method named for it."""

    def __init__(self, seed: int, kernels_shared: bool) -> None:
        self.rows, self.boots = list[Row](), list[Event]()
        self.drawn = np.random.default_rng(seed)
        self.kernels_shared = kernels_shared
        self.placement, self.ready, self.free_at = Placement(GPUS, WORKERS), [0.0] * GPUS, [0.0] * GPUS
        self.memory = _Shared(lambda n: min(1.0, _ALONE_S * _HOST_PER_S / n))
        self.gpus = [_Shared(lambda n: 1 / n) for _ in range(GPUS)]
        self.requests: dict[int, dict[str, Any]] = {}
        self.queue: list[tuple[float, int, str, Any]] = []
        self.numbers = itertools.count()
        for client in range(CLIENTS):
            self.put(client * STEP_S, "begin", client)
        while self.queue:
            now, _, what, of = heapq.heappop(self.queue)
            getattr(self, what)(now, of)

    def put(self, at: float, what: str, of: Any) -> None:
        heapq.heappush(self.queue, (at, next(self.numbers), what, of))

    def share(self, shared: _Shared, now: float, who: int, work: float, what: str) -> None:
        shared.add(now, who, work)
        self.put(shared.first()[0], "shared", (shared, shared.turn, what))

    def shared(self, now: float, of: tuple[_Shared, int, str]) -> None:
        shared, turn, what = of
        if turn != shared.turn:  # somebody else came or went meanwhile
            return
        who = shared.first()[1]
        shared.take(now, who)
        self.put(now, what, who)
        if shared.left:
            self.put(shared.first()[0], "shared", (shared, shared.turn, what))

    def begin(self, now: float, client: int) -> None:
        if now < CLIENTS * STEP_S:
            self.requests[client] = {"begin": now, "clients": 1 + int(now / STEP_S), "cold": False}
            self.share(self.memory, now, client, _ALONE_S * float(self.drawn.lognormal(0, 0.05)), "arrive")

    def arrive(self, now: float, client: int) -> None:
        one, rule = self.requests[client], Paper()
        one["arrival"] = now
        gpu, to_boot = rule.choose(self.placement), rule.boot(self.placement, waiting=1)
        cold = gpu is None and to_boot is not None
        if gpu is None:
            if to_boot is None:
                self.answer(now + 0.15, client, 0.0, "rejected")
                self.put(now + 1.0, "begin", client)
                return
            gpu = to_boot
            self.placement.boot(gpu)
            self.ready[gpu] = now + 1.4
            self.boots.append(Event("booted", T0 + now + 0.004, gpu, WORKERS))
        called = max(now, self.ready[gpu])
        one |= {"gpu": gpu, "worker": self.placement.acquire(gpu), "cold": cold, "called": called}
        self.put(called + _IN_S * float(self.drawn.normal(1, 0.03)), "uploaded", client)

    def uploaded(self, now: float, client: int) -> None:
        gpu, work = self.requests[client]["gpu"], _KERNEL_S * float(self.drawn.normal(1, 0.015))
        if self.kernels_shared:
            self.share(self.gpus[gpu], now, client, work, "computed")
        else:
            self.free_at[gpu] = max(now, self.free_at[gpu]) + work
            self.put(self.free_at[gpu], "computed", client)

    def computed(self, now: float, client: int) -> None:
        one = self.requests[client]
        downloaded = now + _OUT_S * float(self.drawn.normal(1, 0.03))
        rest = (0.145 + 0.0025 * one["clients"]) * float(self.drawn.normal(1, 0.1))
        one["inner"] = downloaded - one["called"]
        self.put(downloaded + _HELD_OF_REST * rest, "release", one["worker"])
        self.put(downloaded + rest, "end", client)

    def release(self, _: float, worker: int) -> None:
        self.placement.release(worker)

    def end(self, now: float, client: int) -> None:
        self.answer(now, client, self.requests[client]["inner"], "ok")
        self.put(now, "begin", client)

    def answer(self, now: float, client: int, inner: float, status: str) -> None:
        one = self.requests[client]
        times = ((now - one["begin"]) * 1000, inner * 1000, (one["arrival"] - one["begin"]) * 1000)
        row = results.make_row(T0 + one["begin"], client, one["clients"], Outcome(*times, one["cold"], status, False))
        self.rows.append(row)
