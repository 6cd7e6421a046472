"""A worker: the process that has imported the kernel and serves one invocation at a time. This is the child's side.

Its first frame says that it is ready (status `ok`, its pid and the seconds of each boot phase as JSON) or why it is not
(a text, and `kernel_error`; `rejected` if it may well be later). From then on each request frame gets one reply frame,
until the link ends, or the kernel says that this process is of no more use (`worker_lost`).
"""

import contextlib
import importlib
import json
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from kaas import compiled, kernels, wire
from kaas.errors import KaasError, TemporarilyUnavailable, WorkerUnusable
from kaas.forkserver import Config, say

SAFE_TO_PRELOAD = ("kaas", "numpy", "numba", "scipy")
"""Packages whose import starts no threads and does not initialise CUDA, so that a process may fork after it."""


def preload(config: Config) -> None:
    """Import what the kernel imports and what is safe to share, in the fork server."""
    compiled.find_room()
    kernels.survey(Path(config["kernel"]))
    for name in config["modules"]:
        # `from a import b` has been listed as `a.b` too, which need not be a module.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "numba" in sys.modules:
        compiled.initialise_numba()
    if "numba.cuda" in sys.modules:  # a kernel for GPUs: what it shares with others of its kind knows more
        importlib.import_module("kaas.gpu").preload()


def clean_up(config: Config) -> None:
    """Workers leave nothing behind."""


def run(link: socket.socket, config: Config) -> int:
    """Be a worker: load the kernel, say READY, serve until the link ends."""
    me, phases = os.getpid(), {"fork": time.monotonic() - config["spawned"]}
    os.environ.update(config["environment"])
    try:
        kernel = _boot(Path(config["kernel"]), phases)
    except BaseException as error:  # sys.exit in a kernel is a kernel's failure, not an order to us
        if os.getpid() == me:
            status = "rejected" if isinstance(error, TemporarilyUnavailable) else "kernel_error"
            _send(link, wire.Reply(status, _text(error, config["kernel"])))
        return 1
    if os.getpid() != me:  # a process that the kernel forked, and that has come back from its code into ours
        return 0
    _send(link, wire.Reply("ok", json.dumps({"pid": me, "phases": phases}).encode()))
    decoder = wire.request_decoder(sys.maxsize)
    # Waited for by poll: Linux wakes a blocking recv() also when the other side has read what we sent.
    poll = select.poll()
    poll.register(link, select.POLLIN)
    with contextlib.suppress(ConnectionError):  # the server is gone: nobody waits for the reply
        while poll.poll() and (requests := decoder.receive(link)):
            for request in requests:
                status, output, kernel_ns = _serve(kernel.call, request.payload, config)
                if os.getpid() != me:
                    return 0
                for piece in wire.reply_pieces(status, output, request.id, kernel_ns):
                    link.sendall(piece)
                if status == "worker_lost":
                    return 1
                del request, output, piece  # and with them what is kept until nobody waits any more
    if hasattr(kernel, "close"):
        kernel.close()
    return 0


def _boot(path: Path, phases: dict[str, float]) -> ModuleType:
    """Load the kernel and let it prepare itself; note the seconds of each phase."""

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        phases[name] = time.perf_counter() - begun

    def load() -> ModuleType:
        with phase("import"):
            kernel = kernels.load(path, kernels.KERNEL_FUNCTION)
        if hasattr(kernel, "prepare"):
            kernel.prepare(phase)
        return kernel

    try:
        return load()
    except Exception as error:
        if not compiled.drop_invalid(error):
            raise
        print(f"compiled code of {path.name} was damaged, and is compiled again", file=sys.stderr)  # noqa: T201
        return load()


def _serve(call: Callable[[bytes], bytes], payload: bytes, config: Config) -> tuple[str, bytes, int]:
    """Call the kernel; give the reply's status and payload, and the nanoseconds in the kernel."""
    begun = time.perf_counter_ns()
    try:
        output = call(payload)
        elapsed = time.perf_counter_ns() - begun
        if not isinstance(output, bytes):
            raise TypeError(f"call() returned {type(output).__name__}, not bytes")
        if len(output) > config["message_size"]:
            raise ValueError(f"call() returned {len(output)} bytes, over --message-size")
    except BaseException as error:
        if config["tracebacks"]:
            traceback.print_exc()
        status = "worker_lost" if isinstance(error, WorkerUnusable) else "kernel_error"
        return status, _text(error, config["kernel"]), time.perf_counter_ns() - begun
    return "ok", output, elapsed


def _text(error: BaseException, kernel: str) -> bytes:
    """Say in one line what was raised, and where in the kernel's file."""
    says_all = isinstance(error, KaasError) or (isinstance(error, SystemExit) and isinstance(error.code, str))
    text = say(error, kind=not says_all)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == kernel]
    where = f" ({Path(kernel).name}, line {lines[-1]})" if lines else ""
    return f"{text}{where}".encode(errors="backslashreplace")


def _send(link: socket.socket, reply: wire.Reply) -> None:
    with contextlib.suppress(ConnectionError):
        link.sendall(wire.encode_reply(reply))
