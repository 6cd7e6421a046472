"""What Prometheus is shown (`--metrics-port`): counted here, written out by a process of its own (kaas.exporter)."""

import asyncio
import contextlib
import importlib.util
import logging
import pickle
import socket
import subprocess
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, cast

from kaas import linked
from kaas.addresses import written
from kaas.errors import ProcessFailed, UsageError
from kaas.pool.account import OUTCOMES, REFUSALS
from kaas.pool.slot import STATES

log = logging.getLogger("kaas.server")

_LIBRARY = "prometheus_client"
_CALLS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BOUNDS = {"queue": _CALLS, "kernel": _CALLS, "boot": _CALLS[5:]}
"""Of the histogram of each duration, in seconds."""


class _Histogram:
    """Counts durations up to each of some bounds, in seconds, for each GPU."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.sums: defaultdict[int, float] = defaultdict(float)
        self.counts: defaultdict[int, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._bounds = bounds

    def observe(self, seconds: float, gpu: int) -> None:
        self.counts[gpu][bisect_left(self._bounds, seconds)] += 1
        self.sums[gpu] += seconds


class Metrics(asyncio.Protocol):
    """What the server's other parts observe, and the link to the process that shows it.

    Args:
        listeners: where that process is asked; it has them alone once it has begun.

    Raises:
        UsageError: a library is missing.
    """

    def __init__(self, listeners: list[socket.socket]) -> None:
        if importlib.util.find_spec(_LIBRARY) is None:
            raise UsageError(f"--metrics-port needs a library that is missing ({_LIBRARY}): run scripts/setup")
        self._listeners = listeners
        self._histograms = {what: _Histogram(bounds) for what, bounds in _BOUNDS.items()}
        self._status: Callable[[], dict[str, Any]] = dict
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    async def serve(self, status: Callable[[], dict[str, Any]]) -> None:
        """Have scrapes answered until `close`; `status` gives the pool's status.

        Raises:
            ProcessFailed: no process can be started.
        """
        self._status = status
        address = " and ".join(f"http://{written([each])}/metrics" for each in self._listeners)
        try:
            self._process, link = linked.start("kaas.exporter", logging.getLevelName(log.getEffectiveLevel()))
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(link.close)
                socket.send_fds(link, [b"!"], [each.fileno() for each in self._listeners])
                link.setblocking(False)
                await asyncio.get_running_loop().create_connection(lambda: self, sock=link)
                on_failure.pop_all()
        except OSError as error:
            self.close()
            raise ProcessFailed(f"the metrics' exporter cannot be started: {error.strerror}") from None
        log.info("metrics on %s", address)

    def observe(self, what: str, seconds: float, gpu: int) -> None:
        """Count a duration (pool.Observe)."""
        self._histograms[what].observe(seconds, gpu)

    def close(self) -> None:
        """Have no more scrapes answered."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    # What asyncio tells of the link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The exporter has the listeners, or wants a snapshot: a byte for each."""
        self._let_go()
        assert self._transport is not None
        if asked := data.count(b"?"):
            snapshot = pickle.dumps(self._snapshot())
            self._transport.write(asked * (len(snapshot).to_bytes(8) + snapshot))

    def connection_lost(self, error: Exception | None) -> None:
        """The exporter has ended."""
        self._let_go()
        if self._process is not None:
            self.close()
            log.warning("the metrics' exporter has ended: there are no more metrics")

    def _let_go(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _snapshot(self) -> dict[str, Any]:
        status = self._status()
        return status | {
            "workers": Counter((worker["gpu"], worker["state"]) for worker in status["workers"]),
            "states": STATES,
            "bounds": _BOUNDS,
            "outcomes": {outcome: status["counters"][outcome] for outcome in (*OUTCOMES, *REFUSALS)},
            "durations": {what: (dict(each.counts), dict(each.sums)) for what, each in self._histograms.items()},
        }
