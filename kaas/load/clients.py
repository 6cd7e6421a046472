"""One client: a process that calls `run_client` in a closed loop and appends a row for each request.

Over its link it says `ready` once it is prepared (or why it cannot be), begins when it reads a byte, and ends in order,
after the request that it is in, when it reads the link's end.
"""

import mmap
import os
import select
import shutil
import socket
import struct
import time
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

from kaas import kernels, results
from kaas.forkserver import Config
from kaas.results import Outcome, RowWriter

READY = b"ready\n"
FAILED = 1
"""Exit code of a client that cannot go on, and whose successor could not either: its rows cannot be written, say."""
_COUNT = struct.Struct("q")
_AFTER_FAILURE = 0.1
"""Seconds that a client waits at least after a request that failed, so that a dead server is not stormed."""

_module: ModuleType | None = None


class ClientCount:
    """The number of running clients, in memory that all of them see: a file of 8 bytes, mapped."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _COUNT.size)
            self._map = mmap.mmap(descriptor, _COUNT.size)
        finally:
            os.close(descriptor)

    @property
    def value(self) -> int:
        """How many clients run."""
        number: int = _COUNT.unpack_from(self._map)[0]
        return number

    @value.setter
    def value(self, number: int) -> None:
        _COUNT.pack_into(self._map, 0, number)


def preload(config: Config) -> None:
    """Import the client module, in the fork server, for all clients."""
    global _module  # noqa: PLW0603 - the fork server's children are handed nothing else
    os.environ.update(config["environment"])  # before the import: it may look
    # The process that unlinks what a killed client has shared: one for all, where each would start its own.
    resource_tracker.ensure_running()
    _module = kernels.load(Path(config["client"]), kernels.CLIENT_FUNCTION)


def clean_up(config: Config) -> None:
    """Remove the run's folder, in case the load generator was killed."""
    shutil.rmtree(config["scratch"], ignore_errors=True)


def run(link: socket.socket, config: Config) -> int:
    """Be client number `config["copy"]`."""
    module, copy, arg = _module, config["copy"], config["input"]
    assert module is not None
    try:
        if hasattr(module, "prepare"):
            module.prepare(arg, copy)
        link.sendall(READY)
        try:
            if link.recv(1):
                _loop(link, module, config)
        finally:
            if hasattr(module, "cleanup"):
                module.cleanup()
    except ConnectionError:  # the load generator is gone
        return 0
    except BaseException as error:
        link.sendall(" ".join(f"{type(error).__name__}: {error}".split()).encode() + b"\n")
        return FAILED
    return 0


def _loop(link: socket.socket, module: ModuleType, config: Config) -> None:
    copy, arg, backoff = config["copy"], config["input"], config["backoff"]
    running, rows = ClientCount(Path(config["running"])), RowWriter(Path(config["rows"]))
    pause = 0.0
    while not _ended(link, pause):
        concurrency, timestamp, begun = running.value, time.time(), time.perf_counter()
        result: tuple[Any, ...]
        try:
            result = module.run_client(arg)
            row = results.make_row(timestamp, copy, concurrency, result)
        except (Exception, SystemExit) as error:  # a client's own failure is a row, too
            text = f"{type(error).__name__}: {error}"
            failed = Outcome((time.perf_counter() - begun) * 1000, 0.0, 0.0, False, "failed", error=text)
            row = results.make_row(timestamp, copy, concurrency, failed)
        rows.append(row)
        pause = 0.0 if row.status == "ok" else backoff if row.status == "rejected" else max(backoff, _AFTER_FAILURE)


def _ended(link: socket.socket, pause: float) -> bool:
    """Wait `pause` seconds, or until the link ends; tell whether it has."""
    readable, _, _ = select.select([link], [], [], pause)
    return bool(readable)
