"""The process that imports the heavy libraries once and forks each child from there (kaas.children: its parent).

A child's code is a module with these functions:

    preload(config)             in the fork server, once: imports (of CUDA, never the driver)
    run(link, config) -> int    in each child: the exit code; returns when it reads the end of its link
    clean_up(config)            in the fork server, when the last child has ended, also if the parent was killed

Between parent and fork server go lines of JSON over a socket pair, a child's end of its link beside its line:

    {"spawn": child, "config": {...}} and a descriptor    {"kill": child}    {"close": true}    to the fork server
    {"preloaded": seconds} or {"error": text}    {"ended": child, "code": exit code or minus the signal}    from it
    {"started": child, "pid": its process}    from a child, before anything else

When it is told to close, or the parent is gone, the fork server gives its children `kill_after` seconds to end by
themselves, kills those that are left, and ends. Each child leads a process group of its own, which is killed when the
child has ended: what a child has started does not outlive it, unless it has left that group. What has left it, and has
lost its parent, becomes the fork server's child, and is reaped when it ends: process 1 of a container may reap nobody.

It may block where it writes: the parent never does, and so always comes to read.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Container
from typing import Any, Protocol

from kaas import processes, supervision

Config = dict[str, Any]

BUFFER = 64 * 1024
_MOST_DESCRIPTORS = 64
_LONGEST_TEXT = 2000


class Target(Protocol):
    """What a child's module offers."""

    def preload(self, config: Config) -> None:
        """Import what the children will need."""

    def run(self, link: socket.socket, config: Config) -> int:
        """Be the child; return its exit code."""

    def clean_up(self, config: Config) -> None:
        """Leave nothing behind."""


class _Server:
    """The fork server's own side: waits for lines from its parent and for children that end."""

    def __init__(self, control: socket.socket, target: Target, kill_after: float) -> None:
        self._control = control
        self._target = target
        self._kill_after = kill_after
        self._children: dict[int, int] = {}  # pid -> child
        self._descriptors: deque[int] = deque()
        self._pending = b""
        self._closing = False
        self._wakeup, self._wake = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)

    def serve(self) -> None:
        supervision.adopt_orphans()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        deadline = float("inf")
        while self._children or not self._closing:
            # Woken once a second when children are killed and have not gone yet.
            for key, _ in self._selector.select(
                min(max(deadline - time.monotonic(), 0.0), 1.0) if self._closing else None
            ):
                if key.fileobj is self._wakeup:
                    self._reap()
                else:
                    self._read()
            if self._closing and deadline == float("inf"):
                deadline = time.monotonic() + self._kill_after
            if time.monotonic() >= deadline:
                self._kill(list(self._children))
                deadline = time.monotonic() + 1.0
        signal.set_wakeup_fd(-1)  # what was adopted may still end

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, BUFFER, _MOST_DESCRIPTORS)
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            self._selector.unregister(self._control)
            self._closing = True
        self._descriptors.extend(descriptors)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "spawn" in message:
                self._spawn(message["spawn"], message["config"], self._descriptors.popleft())
            elif "kill" in message:
                self._reap()
                self._kill([pid for pid, child in self._children.items() if child == message["kill"]])
            else:
                self._closing = True

    def _kill(self, pids: list[int]) -> None:
        """Kill children that are not yet reaped, each with its group."""
        for pid in pids:
            kill_with_group(pid)

    def _spawn(self, child: int, config: Config, descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as link:
            name = config.get("name", f"child {child}")
            try:
                pid = os.fork()
            except OSError as error:
                print(f"{name}: no process can be started: {error.strerror}", file=sys.stderr)  # noqa: T201
                self._tell({"ended": child, "code": None})
                return
            if pid == 0:
                code = 1
                try:
                    self._become_child(child)
                    code = self._target.run(link, config)
                except BaseException as error:  # nothing may return into the fork server's loop
                    with contextlib.suppress(Exception):  # whoever it is may have closed its stderr
                        print(f"{name} ended by an error: {say(error)}", file=sys.stderr)  # noqa: T201
                        if config.get("tracebacks"):
                            traceback.print_exc()
                finally:
                    with contextlib.suppress(Exception):
                        sys.stdout.flush()
                        sys.stderr.flush()
                    os._exit(code)
        with contextlib.suppress(OSError):  # it has done so itself, and may have ended since
            os.setpgid(pid, pid)
        self._children[pid] = child

    def _become_child(self, child: int) -> None:
        os.setpgid(0, 0)
        # Told from here, so that the parent knows of each child that runs, also if the fork server is killed now.
        self._tell({"started": child, "pid": os.getpid()})
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._selector.close()
        for mine in (self._control, self._wakeup, self._wake):
            mine.close()
        # The legacy generator would give all children the same numbers. NumPy imports it only when it is asked for.
        if random := sys.modules.get("numpy.random"):
            random.seed()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(BUFFER)
        with contextlib.suppress(ChildProcessError):
            while (ended := _reap_with_group(self._children))[0]:
                child = self._children.pop(ended[0], None)
                if child is not None:
                    self._tell({"ended": child, "code": os.waitstatus_to_exitcode(ended[1])})

    def _tell(self, message: dict[str, Any]) -> None:
        _send(self._control, message)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the parent may be gone; what is read next says so
        control.sendall(json.dumps(message).encode() + b"\n")


def _reap_with_group(leaders: Container[int]) -> tuple[int, int]:
    """Reap a process that has ended, and kill the group that it led; return its pid and status, or 0 and 0 if none has.

    What is none of the leaders was adopted, and what it has started is nobody's to end.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in leaders:
            _kill_group(pid)
        return pid, status
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return 0, 0
    if found.si_pid in leaders:
        _kill_group(found.si_pid)  # until it is reaped, no other group can have its number
    return os.waitpid(found.si_pid, 0)


def kill_with_group(pid: int) -> None:
    """Kill a child that is not yet reaped, also if it has moved to another group, and all that is in its own."""
    _kill_group(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    # PermissionError: all that is left of it are the dead, on macOS.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def say(error: BaseException, *, kind: bool = True) -> str:
    """Say in one line of printable text what was raised, with its class unless `kind` is false."""
    try:
        text = str(error)
    except BaseException:  # it is a kernel's code that makes this text, and it may do anything
        text = "(what it says cannot be had)"
    line = " ".join((f"{type(error).__name__}: {text}".removesuffix(": ") if kind else text).split())
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line[:_LONGEST_TEXT]
    )


def main() -> None:
    """Be the fork server: `python -m kaas.forkserver DESCRIPTOR MODULE SETTINGS`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)  # its end must mean that we and our children have closed it, whatever they start
    settings = json.loads(sys.argv[3])
    begun = time.monotonic()
    try:
        target = importlib.import_module(sys.argv[2])
        target.preload(settings["config"])
        server = _Server(control, target, settings["kill_after"])
    except BaseException as error:  # whatever it is, sys.exit included, the parent is told
        _send(control, {"error": say(error)})
        return
    # What is here now is shared with every child as long as nobody writes to it, the garbage collector included.
    gc.collect()
    gc.freeze()
    _send(control, {"preloaded": time.monotonic() - begun})
    server.serve()
    target.clean_up(settings["config"])


if __name__ == "__main__":
    main()
    processes.at_once(0)  # Numba alone would take 0.1 s and more to be taken apart
