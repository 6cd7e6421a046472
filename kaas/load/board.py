"""What clients and load generator know of each other: how many clients run, and which request each of them is in.

It is memory that all of them see, a file that they map, so what a client wrote is there though it was killed.
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple, Self

_COUNT = struct.Struct("q")
_REQUEST = struct.Struct("ddqdd")


class Request(NamedTuple):
    """A request that has begun.

    `timestamp` is in seconds since the epoch, `begun` in those of `time.perf_counter`, which all processes share;
    `concurrency` is the number of clients running. In an open loop `timestamp` is its arrival and `due` the same in
    seconds of `time.monotonic` (else 0.0), after which a client began to send it by `lag` seconds.
    """

    timestamp: float
    begun: float
    concurrency: int
    due: float = 0.0
    lag: float = 0.0


class Board:
    """The file, mapped: the count, then one request for each client, of zeros while it is in none."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls, path: Path, clients: int) -> Self:
        """Make the file, for that many clients at once."""
        # Written, not only made as long: where the disk is full, this fails, and not the first look at the memory.
        path.write_bytes(bytes(_COUNT.size + clients * _REQUEST.size))
        return cls(path)

    @property
    def running(self) -> int:
        """How many clients run."""
        number: int = _COUNT.unpack_from(self._map)[0]
        return number

    @running.setter
    def running(self, number: int) -> None:
        _COUNT.pack_into(self._map, 0, number)

    def begin(self, client: int, request: Request) -> None:
        """Note that a client is in a request from now on."""
        _REQUEST.pack_into(self._map, _place(client), *request)

    def finish(self, client: int) -> None:
        """Note that it is in none any more: its row is written."""
        _REQUEST.pack_into(self._map, _place(client), 0.0, 0.0, 0, 0.0, 0.0)

    def request(self, client: int) -> Request | None:
        """Tell which request a client is in."""
        request = Request(*_REQUEST.unpack_from(self._map, _place(client)))
        return request if request.timestamp else None


def _place(client: int) -> int:
    return _COUNT.size + client * _REQUEST.size
