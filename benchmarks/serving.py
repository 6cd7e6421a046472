"""A KaaS server for as long as a benchmark needs it, and what its processes take: memory and time of the processor."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import common
import psutil

from kaas import clock, events, wire
from kaas.client import Connection, split_address
from kaas.clock import Clock
from kaas.errors import KaasError
from kaas.events import Event
from kaas.wire import Request

TIMEOUT = 600.0
"""Seconds that a measured invocation may take: those of cuda-matmul-client.py, and so of every run."""
CLOCK = Clock.draw()
"""Of all time stamps."""
_LIMIT = 60.0
_LISTENING = re.compile(r"listening on (\S+:\d+): ")


class CpuSeconds(NamedTuple):
    """Time of the processor that a server's processes have taken."""

    server: float
    workers: float


class Server:
    """A server that runs; `printed` is what its event lines go to, `said` what it has said of itself."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, printed: IO[bytes], said: str = "") -> None:
        self.address = address
        self.said = said
        self.process = psutil.Process(process.pid)
        self._printed = printed

    def workers(self) -> list[psutil.Process]:
        """Give its worker processes."""
        return forked(self.process)

    def cpu_clock(self) -> Callable[[], CpuSeconds]:
        """Make what tells the time of the processor that it and the workers that are there now have taken."""
        workers = self.workers()
        return lambda: CpuSeconds(cpu_seconds_of([self.process]), cpu_seconds_of(workers))

    def events(self) -> list[Event]:
        """Give the events that it has told of so far."""
        whole_lines = _text(self._printed).rpartition("\n")[0].splitlines()
        return [event for line in whole_lines if (event := events.parse(line)) is not None]

    def task_runners(self) -> int:
        """Tell how many task runners there are."""
        with Connection(self.address) as kaas:
            return int(kaas.status()["task_runners"])


@contextlib.contextmanager
def started(kernel: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Start a server for a kernel on a port of its own, and end it."""
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
        line = [sys.executable, str(common.ROOT / "gpu-server-scaling.py"), str(kernel), "--port", "0"]
        supervised = ["--supervised", str(os.getpid())]
        process = subprocess.Popen(
            [*line, *supervised, *arguments],
            env=os.environ | {clock.VARIABLE: str(CLOCK)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=said,
        )

        def listens() -> bool:
            return process.poll() is not None or _LISTENING.search(_text(said)) is not None

        try:
            wait_until(listens, "the server listens")
            text = _text(said)
            found = _LISTENING.search(text)
            if found is None:
                raise KaasError(f"the server did not start: {text.strip() or process.returncode}")
            yield Server(process, found[1], printed, text)
        finally:
            process.terminate()
            try:
                process.wait(_LIMIT)
            finally:
                process.kill()
                process.wait()


def _text(file: IO[bytes]) -> str:
    """Read all of a file that another process writes to, whose place in it is ours, too, and stays."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def invoke_together(address: str, number: int, payload: bytes) -> None:
    """Send a number of invocations at once, which boots as many workers, and wait for the replies.

    Raises:
        KaasError: one was not served.
    """
    frames = [wire.encode_request(Request(wire.INVOKE, payload, index)) for index in range(1, number + 1)]
    decoder = wire.reply_decoder()
    with socket.create_connection(split_address(address), timeout=_LIMIT) as connection:
        connection.sendall(b"".join(frames))
        left = number
        while left:
            data = connection.recv(65536)
            if not data:
                raise KaasError("the server closed the connection")
            for reply in decoder.feed(data):
                check_served(reply)
                left -= 1


def forked(parent: psutil.Process) -> list[psutil.Process]:
    """Give the processes that a process has had its fork server start."""
    found = []
    for forkserver in parent.children():
        for child in forkserver.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.cmdline() == forkserver.cmdline():  # the resource tracker's is another
                    found.append(child)
    return found


def check_served(reply: wire.Reply, size: int | None = None) -> None:
    """Raise `KaasError` unless an invocation was served, with a payload of `size` bytes if that is given."""
    if reply.status != "ok":
        raise KaasError(f"an invocation was not served: {reply.status}: {reply.payload.decode()}")
    if size is not None and len(reply.payload) != size:
        raise KaasError(f"a reply has {len(reply.payload)} bytes, not {size}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition.

    Raises:
        KaasError: it is not true within a minute.
    """
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise KaasError(f"not within {_LIMIT:g} s: {what}")
        time.sleep(0.01)


def can_tell_shared_memory() -> bool:
    """Tell whether this system says what a process's share of the memory is that it has in common with others."""
    return Path("/proc/self/smaps_rollup").exists()


def pss_bytes(processes: Iterable[psutil.Process]) -> list[int]:
    """Give each process's proportional set size: its own memory, and its part of what it shares with others."""
    return [_pss_bytes(process.pid) for process in processes]


def _pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise KaasError(f"/proc/{pid}/smaps_rollup does not tell the process's Pss")


def cpu_seconds_of(processes: Iterable[psutil.Process]) -> float:
    """Tell the time of the processor that some processes have taken so far."""
    return sum(map(_cpu_seconds, processes))


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(FileNotFoundError):
        # In nanoseconds; what other systems tell is counted in hundredths of a second.
        return int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    return sum(process.cpu_times()[:2])
