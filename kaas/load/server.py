"""What the load generator asks the server: is it ready, how does it stand, and what has it counted?"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kaas import transport
from kaas.client import Connection
from kaas.errors import ConnectionFailed, Refused, ServerNotReady

_EVERY = 1.0
_GONE_AFTER = 10.0
_LIMIT = 2.0
_COMPARED = ("ok", "rejected", "kernel_error", "worker_lost", "timeout")
"""Statuses of which rows and server must have counted the same: the request came to the server, and its reply back."""


class ServerWatch:
    """Follows one server over a run.

    Args:
        address: the server's; None if there is none to be watched, which then always is as it should be.
        ready_timeout: seconds that it has to become ready.
        every: seconds between two looks at it.
    """

    def __init__(self, address: str | None, ready_timeout: float, every: float = _EVERY) -> None:
        self._address = address
        self._ready_timeout = ready_timeout
        self._every = min(every, _EVERY)
        self._seen: tuple[float, int] | None = None  # when, by time.monotonic, and how many task runners
        self._counted_before: Counter[str] = Counter()

    async def ready(self) -> dict[str, object]:
        """Wait until it is ready; return parameters of the run: what it says of itself.

        Raises:
            ServerNotReady: it is not, in time.
            Refused: it does not answer to us.
        """
        if self._address is None:
            return {}
        deadline = time.monotonic() + self._ready_timeout
        while True:
            try:
                status = await self._status(self._address)
            except ConnectionFailed as error:
                if time.monotonic() >= deadline:
                    raise ServerNotReady(
                        f"no server is ready after {self._ready_timeout:g} s ({error}): start gpu-server-scaling.py, "
                        "or say with --server where it is"
                    ) from None
                await asyncio.sleep(0.05)
            else:
                self._counted_before = Counter(status["counters"])
                return _parameters(status)

    def task_runners(self, since: float) -> int | None:
        """Tell how many there were when last looked at; None if that was before `since`, by `time.monotonic`."""
        return self._seen[1] if self._seen and self._seen[0] >= since else None

    async def follow(self) -> str:
        """Ask for the number of task runners again and again; return why, if the server is gone for good."""
        if self._address is None:
            await asyncio.Event().wait()
            return ""
        last = time.monotonic()
        with Connection(self._address) as connection:
            while True:
                asked = time.monotonic()
                try:
                    status = await asyncio.to_thread(connection.status, _LIMIT)
                except ConnectionFailed as error:
                    self._seen = None
                    if time.monotonic() - last > _GONE_AFTER:
                        return f"the server has been gone for {_GONE_AFTER:g} s ({error})"
                except Refused as error:
                    return str(error)
                else:
                    self._seen = asked, status["task_runners"]
                    last = time.monotonic()
                await asyncio.sleep(self._every)

    async def differences(self, rows: Mapping[str, int]) -> str:
        """Compare the rows, by status, with what the server has counted since it was ready; say where they differ."""
        if self._address is None:
            return ""
        try:
            counted = Counter((await self._status(self._address))["counters"])
        except (ConnectionFailed, Refused) as error:
            return f"not compared with the server's counts: {error}"
        counted.subtract(self._counted_before)
        ours = Counter(rows)
        ours["ok"] += ours["wrong_result"]  # which the server cannot know
        return ", ".join(
            f"{status}: {ours[status]} rows, {counted[status]} in the server"
            for status in _COMPARED
            if ours[status] != counted[status]
        )

    async def _status(self, address: str) -> dict[str, Any]:
        with Connection(address) as connection:
            return await asyncio.to_thread(connection.status, _LIMIT)


def _parameters(status: dict[str, Any]) -> dict[str, object]:
    own = {"Kernel": status["kernel"], "number of GPUs": status["gpus"], "Workers per GPU": status["workers_per_gpu"]}
    return {"Transport of matrices": transport.chosen(status)} | {
        f"Server {name[0].lower()}{name[1:]}": value for name, value in (own | status["settings"]).items()
    }
