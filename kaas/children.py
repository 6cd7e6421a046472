"""Start many like processes fast, through a fork server: the parent's side (kaas.forkserver is the other).

For each child the parent gets a `link`, one end of a socket pair whose other end the child has. The link is also the
leash: a child ends by itself when it reads the end of its link, so nothing outlives the parent, however that ended.
What a child has started is killed when it has ended.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kaas import ROOT, SINGLE_THREADED
from kaas.errors import ProcessFailed
from kaas.forkserver import BUFFER, Config

Ended = Callable[[int, int | None], None]

_LINK_BUFFER = 1024 * 1024
"""Bytes that a link takes before its reader has run, if the system lets it: large messages need fewer turns then."""
_RETRY = 0.1
"""Seconds until a line is sent again for whose descriptor there was no room."""


class ForkServer:
    """The parent's side. Needs a running asyncio loop.

    Args:
        module: name of the module with `preload` and `run`.
        config: for `preload`.
        on_ended: called with a child's number and its exit code (minus the signal's number if one ended it; None if
            it is not known because the fork server itself was lost).
        kill_after: seconds that children have to end by themselves once their links are closed.
    """

    def __init__(self, module: str, config: Config, on_ended: Ended, kill_after: float) -> None:
        self._arguments = [module, json.dumps({"config": config, "kill_after": kill_after})]
        self._on_ended = on_ended
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pending = b""
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._started = 0
        self._children: set[int] = set()
        self._in_transit: dict[int, socket.socket] = {}
        self._preloaded: asyncio.Future[float] | None = None
        self._gone = asyncio.Event()

    async def start(self) -> float:
        """Start it and wait until it has imported what it shall; return the seconds that this took.

        Raises:
            ProcessFailed: it could not.
        """
        self._preloaded = asyncio.get_running_loop().create_future()
        self._launch()
        return await self._preloaded

    def spawn(self, config: Config) -> tuple[int, socket.socket]:
        """Start a child with `config`; return its number and our end of its link.

        Raises:
            OSError: there are no descriptors, or no processes, to be had.
        """
        if self._control is None:
            self._launch()
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LINK_BUFFER)
        self._started += 1
        # Kept until it has arrived: macOS may lose a descriptor that is closed on its way.
        self._in_transit[self._started] = theirs
        self._children.add(self._started)
        self._send({"spawn": self._started, "config": config}, theirs.fileno())
        return self._started, ours

    def kill(self, child: int) -> None:
        """Kill a child, if it is still there; `on_ended` is called in any case."""
        if child in self._children:
            self._send({"kill": child})

    async def close(self) -> None:
        """Start no more children, and wait until all have ended: by themselves, or killed after `kill_after`.

        Close the children's links first: that is what ends them.
        """
        if self._control is not None:
            self._send({"close": True})
            await self._gone.wait()

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        environment = (
            os.environ | SINGLE_THREADED | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        )
        with theirs, contextlib.ExitStack() as on_failure, _may_write_to_terminal():
            on_failure.callback(ours.close)
            self._process = subprocess.Popen(
                # -P: the folder that the user happens to be in must not shadow a library.
                [sys.executable, "-P", "-m", "kaas.forkserver", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
                env=environment,
                # A Ctrl-C at the terminal is the parent's to handle. A session of its own would keep it away, too, but
                # Linux schedules each session as one: workers had to wait for hundreds of milliseconds.
                process_group=0,
            )
            on_failure.pop_all()
        ours.setblocking(False)
        self._control, self._pending = ours, b""
        self._gone.clear()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    def _send(self, message: Config, *descriptors: int) -> None:
        """Send a line, as soon as there is room for it."""
        self._unsent.append((json.dumps(message).encode() + b"\n", list(descriptors)))
        if len(self._unsent) == 1:
            self._send_on()

    def _send_on(self) -> None:
        if self._control is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._control.fileno())
        while self._unsent:
            line, descriptors = self._unsent[0]
            try:
                sent = socket.send_fds(self._control, [line], descriptors)
            except BlockingIOError:
                loop.add_writer(self._control.fileno(), self._send_on)
                return
            except ConnectionError:  # it is gone: that is noticed where its end is read
                return
            except OSError:  # too many descriptors are on their way
                loop.call_later(_RETRY, self._send_on)
                return
            if sent == len(line):
                self._unsent.popleft()
            else:
                self._unsent[0] = line[sent:], []

    def _read(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(BUFFER)
        except ConnectionError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))

    def _handle(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._in_transit.pop(message["started"]).close()
        elif "ended" in message:
            self._children.discard(message["ended"])
            self._on_ended(message["ended"], message["code"])
        elif self._preloaded is not None and not self._preloaded.done():
            if "error" in message:
                self._preloaded.set_exception(ProcessFailed(message["error"]))
            else:
                self._preloaded.set_result(message["preloaded"])

    def _lost(self) -> None:
        assert self._control is not None
        assert self._process is not None
        loop, control = asyncio.get_running_loop(), self._control.fileno()
        loop.remove_reader(control)
        loop.remove_writer(control)
        self._unsent.clear()
        self._control.close()
        self._control = None
        self._process.wait()
        if self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_exception(
                ProcessFailed(f"the fork server ended ({describe(self._process.returncode)})")
            )
        for link in self._in_transit.values():
            link.close()
        self._in_transit.clear()
        lost, self._children = self._children, set()
        for child in lost:
            self._on_ended(child, None)
        self._gone.set()


def describe(code: int | None) -> str:
    """Say in words how a process ended."""
    if code is None:
        return "ended, it is not known how"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


@contextlib.contextmanager
def _may_write_to_terminal() -> Iterator[None]:
    """Let what is started meanwhile write to the terminal from the background, also where `stty tostop` forbids it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_descriptor(stream: Any) -> bool:
    try:
        return bool(stream.fileno() >= 0)
    except (AttributeError, OSError):
        return False


def raise_descriptor_limit() -> None:
    """Allow as many connections as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS names a hard limit of infinity and takes no soft one above OPEN_MAX.
        most = 10240 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
