"""What tests share that is no fixture: waiting for a condition, a real server as a subprocess, raw frames to it."""

import contextlib
import inspect
import io
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from unittest.mock import patch

import psutil
import pytest

from kaas import ROOT, cli, events, leftovers, wire
from kaas.client import Connection, split_address
from kaas.events import Event
from kaas.wire import Reply, Request

KERNELS = Path(__file__).parent / "example_kernels"
SERVER = ROOT / "gpu-server-scaling.py"
LIMIT = 120.0
"""Seconds that anything may take here before it counts as not happening: generous, for a busy machine."""

_MARK = "KAAS_TEST_MARK"
_LISTENING = re.compile(r"listening on (\S+:\d+)(?: and |: )")

Value = TypeVar("Value")


def eventually(condition: Callable[[], Value], limit: float = LIMIT, what: str = "") -> Value:
    """Wait until `condition()` is true and return its value; fail, naming `what`, if it is not within `limit` s.

    To look takes a fifth of a core at most: what is waited for needs the rest.
    """
    deadline = time.monotonic() + limit
    before = time.thread_time()
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit:g} s: {what or _source(condition)}; it is {value!r}")
        time.sleep(max(0.01, 4 * (time.thread_time() - before)))
        before = time.thread_time()
    return value


def eventually_swept(is_gone: Callable[[], bool]) -> None:
    """Sweep what killed runs have left, as the next run does, until `is_gone()`; that of another test may be at it."""

    def swept() -> bool:
        leftovers.sweep()
        return is_gone()

    eventually(swept)


def _source(condition: Callable[[], Any]) -> str:
    with contextlib.suppress(OSError):
        return " ".join(inspect.getsource(condition).split())
    return repr(condition)


def read_until(process: "subprocess.Popen[str]", line: str) -> list[str]:
    """Read a process's stdout to a line; return what came before. It fails if that line never comes."""
    assert process.stdout is not None
    before: list[str] = []
    for said in process.stdout:
        if said == line:
            return before
        before.append(said)
    pytest.fail(f"{line!r} was never said: {before}")


def exists(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Marked:
    """Processes that are found again whoever their parent is by now: by a mark in the environment they inherit."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._mark = uuid.uuid4().hex
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KAAS_")}
        self.environment = clean | (environment or {}) | {_MARK: self._mark}

    def left(self) -> list[str]:
        """Describe the processes that bear the mark."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if self._is_on(pid):
                    found.append(f"{pid}: {' '.join(psutil.Process(pid).cmdline())}")
        return found

    def _is_on(self, pid: int) -> bool:
        if sys.platform == "linux":  # the environments of all processes are many: to take them apart takes long
            return f"{_MARK}={self._mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return psutil.Process(pid).environ().get(_MARK) == self._mark

    def assert_nothing_left(self) -> None:
        """Check that every marked process has ended, and that we have no child that waits to be reaped."""
        if left := self.left():  # to look at every process of the machine takes its time
            eventually(lambda: not self.left(), what=f"every process has ended (left: {left})")
        zombies = [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
        assert not zombies

    def kill(self) -> None:
        """Kill whatever is left, so that a failing test takes nothing else with it."""
        for line in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)


def command(kernel: str | Path, *arguments: str, python: str | Path = sys.executable) -> list[str]:
    """Make the command line of a server for one of the example kernels, or for a file elsewhere."""
    path = KERNELS / f"{kernel}.py" if isinstance(kernel, str) else kernel
    return [str(python), str(SERVER), str(path), "--port", "0", *arguments]


def refusal(kernel: str | Path, *arguments: str, **environment: str) -> str:
    """Run a server that must not come up, for what it was given; return the one line that it says on stderr."""
    return failure(2, kernel, *arguments, **environment)


def failure(code: int, kernel: str | Path, *arguments: str, **environment: str) -> str:
    """Run a server that must not come up, and ends with that code; return the one line that it says on stderr."""
    marked = Marked(environment)
    try:
        done = subprocess.run(
            command(kernel, "--log-level", "error", *arguments),
            env=marked.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        marked.assert_nothing_left()
    finally:
        marked.kill()
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    message = done.stderr.partition("error: ")[2] if done.stderr.startswith("usage: ") else done.stderr
    assert len(message.splitlines()) == 1, done.stderr
    return message


def run_here(
    script: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script in this process: where it ends at once, to start another one takes most of the time.

    What it imports from its own folder is forgotten. Output of programs that it starts is not among what it said.

    Args:
        script: what ends by itself, and starts nothing that stays.
        arguments: for it.
        environment: all of it; ours without it.
    """
    known, code = set(sys.modules), 0
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, os.environ.copy() if environment is None else environment, clear=True),
        patch.object(sys, "argv", [str(script), *arguments]),
        patch.object(cli, "at_once", sys.exit),
        patch.object(sys, "path", [str(script.parent), *sys.path]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    for name in sys.modules.keys() - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == script.parent:
            del sys.modules[name]
    return subprocess.CompletedProcess([str(script), *arguments], code, out.getvalue(), err.getvalue())


class Server:
    """A real server on a port of its own, its output in files.

    Args:
        folder: for its stdout and stderr, and its working directory.
        line: its command line, or that of a program which starts it.
        environment: on top of ours, without our KAAS_* variables.
    """

    def __init__(self, folder: Path, line: list[str], environment: dict[str, str]) -> None:
        self._stdout, self._stderr = folder / "server-stdout", folder / "server-stderr"
        self.marked = Marked(environment)
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                line, cwd=folder, env=self.marked.environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    def wait_until_listening(self) -> None:
        """Wait until it serves, or fail with what it said."""
        eventually(
            lambda: _LISTENING.search(self.stderr()) or self.process.poll() is not None,
            what="the server listens",
        )
        assert self.process.poll() is None, self.stderr()

    @property
    def address(self) -> str:
        """Where it listens."""
        match = _LISTENING.search(self.stderr())
        assert match is not None
        return match[1]

    def connection(self, token: str = "") -> Connection:
        """Make a client's connection to it."""
        return Connection(self.address, token)

    def frames(self) -> "Frames":
        """Make a connection on which several invocations can be under way."""
        return Frames(self.address)

    def status(self) -> dict[str, Any]:
        """Ask it how it stands."""
        with self.connection() as kaas:
            return kaas.status()

    def workers(self, state: str) -> list[dict[str, Any]]:
        """List its workers in a state, as its status tells."""
        return [worker for worker in self.status()["workers"] if worker["state"] == state]

    def counters(self) -> dict[str, int]:
        """Give the counters that are not 0."""
        return {name: count for name, count in self.status()["counters"].items() if count}

    def events(self) -> list[Event]:
        """Read the events that it has printed; every line of its stdout must be one."""
        lines = self._stdout.read_text().splitlines()
        found = [event for event in map(events.parse, lines) if event is not None]
        assert len(found) == len(lines), lines
        return found

    def names_of_events(self) -> list[str]:
        """Give the events' names in order."""
        return [event.event for event in self.events()]

    def stderr(self) -> str:
        """Read what it has said so far."""
        return self._stderr.read_text(errors="replace")

    def forkserver(self) -> psutil.Process:
        """Find its fork server."""
        return self.child("kaas.forkserver")

    def child(self, module: str) -> psutil.Process:
        """Find the one process of the server that runs a module."""
        children = psutil.Process(self.process.pid).children()
        (found,) = (each for each in children if module in each.cmdline())
        return found

    def worker_processes(self) -> list[psutil.Process]:
        """Find its workers' processes, those included that have ended and are not yet reaped."""
        return self.forkserver().children()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        return self.process.wait(LIMIT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Have it end by a signal, and wait for that; return its exit code."""
        self.send(number)
        return self.wait()

    def end(self) -> None:
        """End it at the end of a test, and check that nothing is left and nothing went wrong unnoticed."""
        try:
            if self.process.poll() is None:
                assert self.stop() == 0
            self.marked.assert_nothing_left()
            assert "Traceback" not in self.stderr(), self.stderr()
            self.events()
        finally:
            self.process.kill()
            self.process.wait(LIMIT)
            self.marked.kill()


class StartServer(Protocol):
    """The fixture `start_server`: start a server for an example kernel and wait until it listens."""

    def __call__(
        self, kernel: str | Path, *arguments: str, python: str | Path = sys.executable, **environment: str
    ) -> Server: ...


class Frames:
    """A connection on which requests are only sent, and replies taken when a test wants them."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_connection(split_address(address), timeout=LIMIT)
        # However much the system likes to hold of what a test does not take (33 MB have been seen), it is little.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        self._decoder = wire.reply_decoder()
        self._replies: dict[int, Reply] = {}  # in the order in which they came

    def invoke(self, payload: bytes | Path, request_id: int = 1, timeout: float = 0.0) -> None:
        """Send an invocation; a path stands for its name."""
        data = payload if isinstance(payload, bytes) else str(payload).encode()
        self.socket.sendall(wire.encode_request(Request(wire.INVOKE, data, request_id, timeout)))

    def invoke_together(self, payload: bytes | Path, request_ids: Iterable[int]) -> None:
        """Send several invocations at once, so that the server has the last before anything has come of the first."""
        data = payload if isinstance(payload, bytes) else str(payload).encode()
        self.socket.sendall(b"".join(wire.encode_request(Request(wire.INVOKE, data, each)) for each in request_ids))

    def reply(self, request_id: int = 1) -> Reply:
        """Wait for the reply to a request."""
        return self.replies(request_id)[request_id]

    def replies(self, *request_ids: int) -> dict[int, Reply]:
        """Wait for the replies to some requests; give all that have come by id, in the order in which they came."""
        while not self._replies.keys() >= set(request_ids):
            data = self.socket.recv(256 * 1024)
            assert data, f"the connection was closed before these were answered: {request_ids}"
            for reply in self._decoder.feed(data):
                assert reply.id not in self._replies, f"answered twice: {reply}"
                self._replies[reply.id] = reply
        return self._replies

    def closed_by_server(self) -> bool:
        """Read to the end of the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Be gone."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def listening_socket() -> Iterator[socket.socket]:
    """Listen on a port of this machine that nobody else uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener
