"""One client: a process that calls `run_client` again and again and appends a row for each request.

Over its link it says `ready` once it is prepared, begins when it reads a byte, and ends in order, after the request
that it is in, when it reads the link's end. In a closed loop it sends one request after the other. In an open loop it
reads over the link when the next one is due (a `DUE`, in seconds of `time.monotonic`), and says `DONE` after it. If it
cannot go on, and no successor could either (it cannot be prepared, or its rows cannot be written), it says why before
it ends.
"""

import contextlib
import inspect
import os
import select
import shutil
import socket
import struct
import sys
import time
import traceback
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType

from kaas import compiled, kernels, leftovers, segments
from kaas.clock import Clock
from kaas.errors import KaasError
from kaas.forkserver import Config
from kaas.load.board import Board, Request
from kaas.results import Outcome, RowWriter
from kaas.row import Row, from_arrival, make_row

READY = b"ready\n"
DONE = b"\0"
DUE = struct.Struct("d")
_AFTER_FAILURE = 0.1
"""Seconds that a client waits at least after a request that failed, so that a dead server is not stormed."""

_module: ModuleType | None = None


def preload(config: Config) -> None:
    """Import the client module, in the fork server, for all clients."""
    global _module  # noqa: PLW0603 - the fork server's children are handed nothing else
    os.environ.update(config["environment"])  # before the import: it may look
    # The process that unlinks what a killed client has shared: one for all, where each would start its own.
    resource_tracker.ensure_running()
    compiled.find_room()
    _module = kernels.load(Path(config["client"]), kernels.CLIENT_FUNCTION)


def clean_up(config: Config) -> None:
    """Remove what killed clients have left in shared memory, and the run's folder if the load generator is gone."""
    run = config["environment"]["KAAS_RUN"]
    if number := segments.remove_orphans(run):
        print(f"segments of shared memory removed that killed clients had left: {number}", file=sys.stderr)  # noqa: T201
    shutil.rmtree(config["scratch"], ignore_errors=True)
    leftovers.forget(run)


def run(link: socket.socket, config: Config) -> int:
    """Be client number `config["copy"]`."""
    module, copy, arg = _module, config["copy"], config["input"]
    assert module is not None
    try:
        if hasattr(module, "prepare"):
            module.prepare(arg, copy)
        try:
            if _told_to_begin(link):
                (_open_loop if config["open_loop"] else _closed_loop)(link, _Asking(module, config))
        finally:
            if hasattr(module, "cleanup"):
                module.cleanup()
    except BaseException as error:
        why = _why(error, module)
        with contextlib.suppress(ConnectionError):  # the load generator is gone
            link.sendall(" ".join(why.split()).encode(errors="replace") + b"\n")
        return 1
    return 0


def _told_to_begin(link: socket.socket) -> bool:
    """Say that all is ready and wait for the word to begin, or the link's end."""
    with contextlib.suppress(ConnectionError):
        link.sendall(READY)
        return bool(link.recv(1))
    return False


class _Asking:
    """Sends a client's requests, and writes their rows."""

    def __init__(self, module: ModuleType, config: Config) -> None:
        self._module = module
        self._copy, self._place, self._arg = config["copy"], config["place"], config["input"]
        self._board, self._rows = Board(Path(config["board"])), RowWriter(Path(config["rows"]))
        self.clock, self.backoff = Clock(*config["clock"]), config["backoff"]

    def ask(self, timestamp: float, due: float = 0.0, lag: float = 0.0) -> str:
        """Send one request, and write its row; give its status."""
        request = Request(timestamp, time.perf_counter(), self._board.running, due, lag)
        self._board.begin(self._place, request)
        result: object
        try:
            result = self._module.run_client(self._arg)
            row = _row(self._copy, request, result)
        except (Exception, SystemExit) as error:  # a client's own failure is a row, too
            row = failure(self._copy, request, _why(error, self._module))
        self._rows.append(row)
        return row.status

    def done(self) -> None:
        """Be in no request any more."""
        self._board.finish(self._place)


def _closed_loop(link: socket.socket, asking: _Asking) -> None:
    pause = 0.0
    while not _ended(link, pause):
        status = asking.ask(asking.clock.now())
        asking.done()
        pause = (
            0.0 if status == "ok" else asking.backoff if status == "rejected" else max(asking.backoff, _AFTER_FAILURE)
        )


def _open_loop(link: socket.socket, asking: _Asking) -> None:
    while told := link.recv(DUE.size, socket.MSG_WAITALL):
        (due,) = DUE.unpack(told)
        if _ended(link, max(due - time.monotonic(), 0.0)):
            return
        status = asking.ask(asking.clock.at(due), due, max(time.monotonic() - due, 0.0))
        if status not in {"ok", "rejected"}:
            time.sleep(_AFTER_FAILURE)
        # Said before: whoever is killed in between has its row, and is not taken to be free.
        link.sendall(DONE)
        asking.done()


def failure(copy: int, request: Request, why: str) -> Row:
    """Make the row of a request that failed in the client, just now."""
    outer_ms = (time.perf_counter() - request.begun) * 1000
    return _row(copy, request, Outcome(outer_ms, 0.0, 0.0, False, "failed", error=why))


def _row(copy: int, request: Request, result: object) -> Row:
    row = make_row(request.timestamp, copy, request.concurrency, result)
    return from_arrival(row, request.lag) if request.due else row


def _why(error: BaseException, module: ModuleType) -> str:
    """Say what went wrong and at which line of the user's own files; or which function gave what is no result."""
    if isinstance(error, KaasError):  # which says itself what to do
        return str(error)
    what = f"{type(error).__name__}: {error}"
    path, ours = Path(str(module.__file__)), Path(__file__).parent.parent
    places = [
        (Path(frame.f_code.co_filename), line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    theirs = [
        f"{file.name}, line {line}, in {name}"
        for file, line, name in places
        if path.parent in file.parents and ours not in file.parents and not compiled.is_library(file)
    ]
    if theirs:
        return f"{theirs[-1]}: {what}"
    code = getattr(inspect.unwrap(module.run_client), "__code__", None)
    where = f"{path.name}, line {code.co_firstlineno}" if code else path.name
    return f"{where}: {error if isinstance(error, ValueError) else what}"


def _ended(link: socket.socket, pause: float) -> bool:
    """Wait `pause` seconds, or until the link ends; tell whether it has."""
    readable, _, _ = select.select([link], [], [], pause)
    return bool(readable)
