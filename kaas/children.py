"""Start many like processes fast, through a fork server: the parent's side (kaas.forkserver is the other).

For each child the parent gets a `link`, one end of a socket pair whose other end the child has. The link is also the
leash: a child ends by itself when it reads the end of its link, so nothing outlives the parent, however that ended.
What a child has started is killed when it has ended.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kaas import linked
from kaas.errors import ProcessFailed
from kaas.forkserver import BUFFER, Config, kill_with_group

Ended = Callable[[int, int | None], None]

_LINK_BUFFER = 1024 * 1024
"""Bytes that a link takes before its reader has run, if the system lets it: large messages need fewer turns then."""
_RETRY = 0.1
"""Seconds until a line is sent again for whose descriptor there was no room."""
_FIRST_WORDS = 1.0
"""Seconds that a child which was just forked has to say that it runs, when all are to be killed."""
_GRACE = 5.0
"""Seconds that the fork server has to end once its children have ended or must be killed."""


class ForkServer:
    """The parent's side. Needs a running asyncio loop.

    Args:
        module: name of the module with `preload` and `run`.
        config: for `preload`.
        on_ended: called with a child's number and its exit code (minus the signal's number if one ended it; None if
            it is not known because the fork server itself was lost).
        kill_after: seconds that children have to end by themselves once their links are closed.
        kill_orphans: kill the children when the fork server is lost; else the ends of their links must do.
    """

    def __init__(
        self, module: str, config: Config, on_ended: Ended, kill_after: float, *, kill_orphans: bool = False
    ) -> None:
        self.failure = ""  # why it could not import what it shall, the last time that it was started
        self._arguments = [module, json.dumps({"config": config, "kill_after": kill_after})]
        self._on_ended = on_ended
        self._kill_after = kill_after
        self._kill_orphans = kill_orphans
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pending = b""
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._started = 0
        self._children: dict[int, int | None] = {}  # the process of each, once it is known
        self._in_transit: dict[int, socket.socket] = {}
        self._preloaded: asyncio.Future[float] | None = None
        self._gone = asyncio.Event()

    async def start(self) -> float:
        """Start it and wait until it has imported what it shall; return the seconds that this took.

        Raises:
            ProcessFailed: it could not.
        """
        self._preloaded = asyncio.get_running_loop().create_future()
        try:
            self._launch()
        except OSError as error:
            raise ProcessFailed(f"the fork server cannot be started: {error.strerror}") from None
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
        return self.spawn_on(theirs, config), ours

    def spawn_on(self, link: socket.socket, config: Config) -> int:
        """Start a child on its end of a link, which is its own from now on; return its number.

        Raises:
            OSError: there are no descriptors, or no processes, to be had.
        """
        if self._control is None:
            self._launch()
        self._started += 1
        # Kept until it has arrived: macOS may lose a descriptor that is closed on its way.
        self._in_transit[self._started] = link
        self._children[self._started] = None
        self._send({"spawn": self._started, "config": config}, link.fileno())
        return self._started

    def kill(self, child: int) -> None:
        """Kill a child, if it is still there; `on_ended` is called in any case."""
        if child in self._children:
            self._send({"kill": child})

    async def close(self) -> None:
        """Start no more children, and wait until all have ended: by themselves, or killed after `kill_after`.

        Close the children's links first: that is what ends them. A fork server that does not do its part in time (it
        was stopped, say) is killed with them.
        """
        if self._control is not None:
            self._send({"close": True})
            try:
                await asyncio.wait_for(self._gone.wait(), self._kill_after + _GRACE)
            except TimeoutError:
                self.abort()

    def abort(self) -> None:
        """Kill the fork server and all children, without asking it; `on_ended` is called for each."""
        if self._control is None:
            return
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BlockingIOError):  # which children it has started, and which have ended
            while self._receive():
                pass
        deadline = time.monotonic() + _FIRST_WORDS
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while None in self._children.values() and (left := deadline - time.monotonic()) > 0:
                self._control.settimeout(left)
                if not self._receive():
                    break
        self._lost(killed=True)

    def _launch(self) -> None:
        self._process, self._control = linked.start("kaas.forkserver", *self._arguments)
        self._control.setblocking(False)
        self._pending, self.failure = b"", ""
        self._gone.clear()
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._read)

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
        with contextlib.suppress(BlockingIOError):
            while self._receive():  # to the end, if it is there: uvloop calls only once for one that ends by an error
                pass
            self._lost()

    def _receive(self) -> bool:
        """Take what the fork server has said; tell whether it may say more.

        Raises:
            BlockingIOError: it has said nothing.
        """
        assert self._control is not None
        try:
            data = self._control.recv(BUFFER)
        except ConnectionError:
            return False
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                self._handle(json.loads(line))
            except Exception as error:  # one line that goes wrong must not take the others with it
                asyncio.get_running_loop().call_exception_handler({"message": f"on {line!r}", "exception": error})
        return bool(data)

    def _handle(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._children[message["started"]] = message["pid"]
            self._in_transit.pop(message["started"]).close()
        elif "ended" in message:
            if link := self._in_transit.pop(message["ended"], None):  # it never started
                link.close()
            del self._children[message["ended"]]
            self._on_ended(message["ended"], message["code"])
        elif "error" in message:
            self.failure = message["error"]
            if self._preloaded is not None and not self._preloaded.done():
                self._preloaded.set_exception(ProcessFailed(self.failure))
        elif self._preloaded is not None and not self._preloaded.done():
            self._preloaded.set_result(message["preloaded"])

    def _lost(self, *, killed: bool = False) -> None:
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
        lost, self._children = self._children, {}
        for child, pid in lost.items():
            if pid is not None and (killed or self._kill_orphans):
                kill_with_group(pid)
            self._on_ended(child, -signal.SIGKILL if killed else None)
        self._gone.set()


def describe(code: int | None) -> str:
    """Say in words how a process ended."""
    if code is None:
        return "ended, it is not known how"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"ended by signal {-code}"
