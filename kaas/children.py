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
from collections.abc import Callable
from typing import Any

from kaas import ROOT, SINGLE_THREADED
from kaas.errors import ProcessFailed
from kaas.forkserver import BUFFER, Config

Ended = Callable[[int, int | None], None]


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
        assert self._control is not None
        ours, theirs = socket.socketpair()
        line = json.dumps({"spawn": self._started + 1, "config": config}).encode() + b"\n"
        try:
            _send(self._control, line, [theirs.fileno()])
        except OSError:  # too many descriptors are on their way
            ours.close()
            theirs.close()
            raise
        self._started += 1
        # Kept until it has arrived: macOS may lose a descriptor that is closed on its way.
        self._in_transit[self._started] = theirs
        self._children.add(self._started)
        return self._started, ours

    def kill(self, child: int) -> None:
        """Kill a child, if it is still there; `on_ended` is called in any case."""
        if child in self._children and self._control is not None:
            _send(self._control, json.dumps({"kill": child}).encode() + b"\n")

    async def close(self) -> None:
        """Start no more children, and wait until all have ended: by themselves, or killed after `kill_after`.

        Close the children's links first: that is what ends them.
        """
        if self._control is not None:
            _send(self._control, json.dumps({"close": True}).encode() + b"\n")
            await self._gone.wait()

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        environment = (
            os.environ | SINGLE_THREADED | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        )
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            self._process = subprocess.Popen(
                # -P: the folder that the user happens to be in must not shadow a library.
                [sys.executable, "-P", "-m", "kaas.forkserver", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
                env=environment,
                # A Ctrl-C at the terminal is the parent's to handle.
                start_new_session=True,
            )
            on_failure.pop_all()
        self._control, self._pending = ours, b""
        self._gone.clear()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

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
        asyncio.get_running_loop().remove_reader(self._control.fileno())
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


def _send(control: socket.socket, line: bytes, descriptors: list[int] | None = None) -> None:
    """Send a line; a fork server that is gone is noticed where its end is read."""
    with contextlib.suppress(ConnectionError):
        if descriptors:
            socket.send_fds(control, [line], descriptors)
        else:
            control.sendall(line)


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
