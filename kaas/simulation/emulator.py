"""The emulator: the model of GPUs and of the clients' host in real time, for the real server, workers and clients.

The same engine as in a simulation (kaas.simulation.gpus), paced by the clock, over a Unix socket: what is asked of it,
and by whom, stands in kaas.emulator. It alone knows the order in which kernels came to a GPU, and nobody polls: each is
told when it is over. A process that is killed loses its connection, as the system sees to; its turn is handed on.
"""

import asyncio
import contextlib
import heapq
import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kaas.emulator import NOT_MEASURED, VARIABLE
from kaas.errors import ProcessFailed, ResultsError
from kaas.leftovers import Scratch
from kaas.orders import Orders
from kaas.simulation import ways
from kaas.simulation.calibration import Calibration
from kaas.simulation.chance import normals
from kaas.simulation.files import utilization
from kaas.simulation.gpus import Gpus, Worker
from kaas.simulation.setting import Setting
from kaas.simulation.sharing import Host
from kaas.wire import ReplyFrame


class Pace:
    """Time as it passes, `scale` times as fast: what is done at a time sees that time, and not by how much it is late.

    So what follows from one another within the model is not late at all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, scale: float) -> None:
        self._loop, self._scale = loop, scale
        self._begun, self._now = loop.time(), 0.0
        self._agenda: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self.create_future = loop.create_future

    def time(self) -> float:
        """Tell the time, in seconds of the model; from outside after `catch_up`."""
        return self._now

    def at(self, when: float, deed: Callable[..., object], *values: Any) -> None:
        """Do something at a time."""
        heapq.heappush(self._agenda, (when, next(self._numbers), deed, values))

    def catch_up(self, deed: Callable[..., object] | None = None, *values: Any) -> None:
        """Do what is due by now and, then, what somebody asks for."""
        agenda, now = self._agenda, (self._loop.time() - self._begun) * self._scale
        try:
            while agenda and agenda[0][0] <= now:
                when, _, due, of = heapq.heappop(agenda)
                self._now = max(self._now, when)
                due(*of)
            self._now = max(self._now, now)
            if deed is not None:
                deed(*values)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if agenda:
                self._timer = self._loop.call_at(self._begun + agenda[0][0] / self._scale, self.catch_up)


class _LiveGpus(Gpus):
    """Whose boots have begun when the server had a worker started: that takes a while until it can say so."""

    begun_before = 0.0

    def _boot(self) -> float:
        return max(super()._boot() - self.begun_before, 0.0)


class Emulator:
    """What is emulated for as long as anybody is connected; then everything is as it was before the first boot.

    Args:
        calibrated: the model, as this harness does: no place is lost.
        setting: how many GPUs there are.
        scale: seconds of the model that pass in one.
        seed: of all that is drawn.
    """

    def __init__(self, calibrated: Calibration, setting: Setting, scale: float, seed: int) -> None:
        self.model = ways.HARNESS.model(calibrated.model)
        self.pace = Pace(asyncio.get_running_loop(), scale)
        self.scale = scale
        self.connected = self.clients = 0
        self._setting = replace(setting, gpus_per_host=setting.gpus)
        self._drawn = normals(seed)
        self.about = {
            NOT_MEASURED: "emulated",
            "Time scale": f"{scale:g}",
            "Calibration": calibrated.name,
            "Calibration about": calibrated.about,
            "Seed": str(seed),
        }
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.host = Host(self.model, self.pace, self._drawn)
        self.gpus = _LiveGpus(
            self.model, self.pace, self._drawn, [self.host], self._setting, clients=lambda: float(self.clients)
        )

    def samples(self) -> list[float]:
        """Tell the utilization of each GPU, in percent; what has passed is forgotten."""
        now, window, shown = self.pace.time(), self.model.utilization_window, []
        for kept in (*self.gpus.kernels, *self.gpus.transfers):
            kept[:] = [span for span in kept if span[1] > now - window]
        for kernels, transfers in zip(self.gpus.kernels, self.gpus.transfers, strict=True):
            shown.append(round(float(utilization(kernels, transfers, np.array([now]), self.model)[0]), 1))
        return shown

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one process, until it is gone."""
        asker = _Asker(self, writer)
        self.connected += 1
        try:
            async for line in reader:
                self.pace.catch_up(asker.hear, *line.decode().split())
        except (ConnectionError, ValueError):  # it was killed; or what it says makes no sense
            pass
        finally:
            self.pace.catch_up(asker.gone)
            self.connected -= 1
            if not self.connected:
                self.forget()
            writer.close()


class _Asker:
    """One process that asks; as a worker, it is told what the model's worker tells (kaas.pool.engine.Tell)."""

    def __init__(self, emulator: Emulator, writer: asyncio.StreamWriter) -> None:
        self._emulator, self._writer = emulator, writer
        self._worker: Worker | None = None
        self._is_client = False

    def hear(self, what: str, *words: str) -> None:
        """Begin with what is asked for."""
        emulator = self._emulator
        if what == "worker":
            self._boot(*words)
        elif what == "call" and self._worker is not None:
            self._worker.call([])
        elif what == "setup":
            emulator.clients += not self._is_client
            self._is_client = True
            emulator.host.set_up(self._say, "over")
        elif what == "rest":
            emulator.pace.at(emulator.pace.time() + self._rest(*map(int, words)), self._say, "over")
        elif what == "samples":
            self._say(json.dumps(emulator.samples()))
        elif what == "about":
            self._say(json.dumps(emulator.about))
        else:
            self._say(f"error: an emulator does not know {what!r}")

    def gone(self) -> None:
        """Take back what it asked for: the next one has its turn."""
        self._emulator.clients -= self._is_client
        if self._worker is not None:
            self._worker.kill()

    def _boot(self, number: str, gpu: str, age: str) -> None:
        emulator, gpus = self._emulator, self._emulator.gpus
        if int(gpu) >= len(gpus.gpus):
            self._say(f"error: no GPU {gpu} is emulated: it has {len(gpus.gpus)} GPUs, see its --num-gpus")
            return
        gpus.begun_before = float(age) * emulator.scale
        self._worker = gpus.spawn(int(number), int(gpu), self)
        self._worker.measured = lambda: self._say("measured")

    def _rest(self, worker: int | None = None) -> float:
        """Give the seconds that a request still takes when its place is free, or when it was refused."""
        emulator, gpus = self._emulator, self._emulator.gpus
        rest = gpus.rests.get(worker) if worker is not None else None
        return gpus.draw_rest(0) if rest is None else (1.0 - emulator.model.rest_held) * rest

    def _say(self, line: str) -> None:
        if not self._writer.is_closing():
            self._writer.write(f"{line}\n".encode())

    # What the model's worker tells

    def ready(self, phases: dict[str, float]) -> None:
        """It has booted."""
        self._say("ready")

    def replied(self, reply: ReplyFrame) -> None:
        """Its place is free."""
        self._say("released")

    def broken(self, reason: str) -> None:
        """It never is."""

    def ended(self, how: str, counts: bool) -> None:
        """As it should."""


async def emulate(
    calibrated: Calibration, setting: Setting, scale: float, seed: int, *, ready: Path | None, supervised: int
) -> None:
    """Be an emulator until told to end.

    Args:
        calibrated: the model.
        setting: how many GPUs there are.
        scale: seconds of the model that pass in one.
        seed: of all that is drawn.
        ready: a file to write the socket's path to, once it is there; else it is printed.
        supervised: the process in charge, 0 if there is none.

    Raises:
        ProcessFailed: there can be no socket.
        ResultsError: that file cannot be written.
    """
    orders = Orders(supervised)
    emulator = Emulator(calibrated, setting, scale, seed)
    failed: list[BaseException] = []

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failed.append(context.get("exception") or RuntimeError(context["message"]))
        orders.give("an error")

    asyncio.get_running_loop().set_exception_handler(fail)
    with contextlib.closing(Scratch("emulator-")) as scratch:
        path = scratch.folder / "socket"
        try:
            server = await asyncio.start_unix_server(emulator.serve, path)
        except OSError as error:
            raise ProcessFailed(
                f"no socket can be made at {path} ({error}): set TMPDIR to a folder of a short name"
            ) from None
        try:
            if ready is None:
                print(f"export {VARIABLE}={path}", flush=True)  # noqa: T201
            else:
                _write(ready, f"{path}\n")
            await orders.next()
        finally:
            server.close()
    if failed:
        raise failed[0]


def _write(path: Path, text: str) -> None:
    """Write a file that is whole as soon as it is there."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.rename(path)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
