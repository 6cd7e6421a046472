"""A blocking connection to the server: `invoke()` and `status()`.

with Connection("127.0.0.1:8080") as kaas:
    reply = kaas.invoke(b"...", timeout=30.0)
"""

import json
import math
import os
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Any, Self

from kaas import wire
from kaas.decoder import Decoder
from kaas.errors import ConnectionFailed, FrameError, Refused, UsageError
from kaas.wire import Reply

DEFAULT_ADDRESS = "127.0.0.1:8080"
_CONNECT_TIMEOUT = 10.0
_GRACE = 5.0
"""Seconds beyond an invocation's own timeout in which the server's `timeout` reply may arrive."""
_TIMEVAL = struct.Struct("ll")
"""What the system takes for a time: seconds and microseconds, which on macOS are an int with as many bytes behind."""
_LAST_WORDS = ("bad_request", "unauthorized")
"""Replies after which the server closes the connection."""


class Connection:
    """A connection to a KaaS server, made at the first use and kept for many invocations.

    Args:
        address: `host:port` (`[::1]:8080` for IPv6); default `$KAAS_ADDRESS`, then 127.0.0.1:8080.
        token: what the server wants to see if it was started with a token; default `$KAAS_TOKEN`.

    An exchange that fails discards the connection; the next call makes a new one. Threads take turns; a process that
    was forked, and so shares the connection, makes one of its own.
    """

    def __init__(self, address: str | None = None, token: str | None = None) -> None:
        self.address = address or os.environ.get("KAAS_ADDRESS") or DEFAULT_ADDRESS
        self._by_default = address is None
        self._host, self._port = split_address(self.address)
        self._token = os.environ.get("KAAS_TOKEN", "") if token is None else token
        self._socket: socket.socket | None = None
        self._decoder: Decoder[Reply]  # of the open connection
        self._limit: float | None  # of what waits for it
        self._last_id = 0
        self._process = os.getpid()
        self._turn = threading.Lock()

    def invoke(self, payload: bytes, timeout: float | None = None) -> Reply:
        """Have the kernel called with `payload`; wait for the reply, whatever its status.

        Args:
            payload: the kernel's input.
            timeout: seconds after which the server answers `timeout`; none by default. A server that does not is
                waited for a little longer, and as long again after each signal that is handled meanwhile.

        Raises:
            ConnectionFailed: the server cannot be reached, or the connection broke.
            UsageError: there is no such timeout.
        """
        if timeout is not None and not 0 < timeout <= wire.MAX_TIMEOUT:
            raise UsageError(f"a timeout of {timeout} s: give seconds above 0, or none")
        return self._exchange(wire.INVOKE, payload, timeout or 0.0, timeout and timeout + _GRACE)

    def status(self, timeout: float = 10.0) -> dict[str, Any]:
        """Ask the server how it stands: in flight, task runners, queued, workers, counters.

        Raises:
            ConnectionFailed: the server cannot be reached, or does not answer in time.
            Refused: it does not answer to us.
        """
        reply = self._exchange(wire.STATUS, b"", 0.0, timeout)
        if reply.status != "ok":
            raise Refused(f"{self.address} refused a status query: {reply.status}: {reply.error}")
        try:
            answer: dict[str, Any] = json.loads(reply.payload)
        except ValueError:
            raise ConnectionFailed(f"{self.address} does not answer a status query with JSON") from None
        return answer

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Connection to {self.address}, {'open' if self._socket else 'closed'}>"

    def _exchange(self, kind: int, payload: bytes, timeout: float, limit: float | None) -> Reply:
        if self._process != os.getpid():
            # A client module may connect when it is imported, which is before its clients are forked.
            self._process, self._turn = os.getpid(), threading.Lock()
            self.close()
        if not self._turn.acquire(timeout=-1 if limit is None else limit):
            raise ConnectionFailed(f"another thread has used the connection to {self.address} for {limit:g} s")
        try:
            return self._in_turn(kind, payload, timeout, limit)
        finally:
            self._turn.release()

    def _in_turn(self, kind: int, payload: bytes, timeout: float, limit: float | None) -> Reply:
        self._last_id = request_id = (self._last_id + 1) % 2**32
        pieces = wire.request_pieces(wire.Request(kind, payload, request_id, timeout))
        deadline = None if limit is None else time.monotonic() + limit
        try:
            connection = self._connected(_CONNECT_TIMEOUT if limit is None else min(limit, _CONNECT_TIMEOUT))
            self._limit_to(limit)
            for piece in pieces:
                connection.sendall(piece)
            while True:
                replies = self._decoder.receive(connection)
                if replies is None:
                    raise ConnectionFailed(f"{self.address} closed the connection before it had answered")
                for reply in list(replies):  # all are taken, so that none is cut off
                    # An id of 0 answers bytes that the server could not read as a request.
                    if reply.id in (request_id, 0):
                        if reply.status in _LAST_WORDS:
                            self.close()
                        return reply
                if deadline is not None:
                    if (left := deadline - time.monotonic()) <= 0:
                        raise TimeoutError
                    self._limit_to(left)
        except FrameError as error:
            self.close()
            raise ConnectionFailed(f"{self.address} does not answer like a KaaS server: {error}") from None
        except (TimeoutError, BlockingIOError):
            self.close()
            raise ConnectionFailed(f"{self.address} gave no answer within {limit or _CONNECT_TIMEOUT:g} s") from None
        except (OSError, UnicodeError) as error:  # a host's name that cannot be one is a UnicodeError
            self.close()
            raise ConnectionFailed(f"{self.address}: {getattr(error, 'strerror', None) or error}") from None
        except BaseException:
            # An exchange that was cut short (Ctrl-C, say) leaves a reply under way: not a connection to use again.
            self.close()
            raise

    def _connected(self, limit: float) -> socket.socket:
        if self._socket is None:
            self._decoder = wire.reply_decoder()
            try:
                self._socket, self._limit = _connect(self._host, self._port, limit), None
            except ConnectionRefusedError as error:
                hint = "start a server there" + ", or set KAAS_ADDRESS to where one is" * self._by_default
                raise ConnectionFailed(f"{self.address}: {error.strerror}: {hint}") from None
            self._socket.settimeout(None)  # from here on, `_limit_to`
            if self._token:
                self._limit_to(limit)
                self._socket.sendall(wire.encode_request(wire.Request(wire.TOKEN, os.fsencode(self._token))))
        return self._socket

    def _limit_to(self, limit: float | None) -> None:
        """Have what waits for the open connection wait so many seconds at most.

        The system sees to it: Python would first ask, each time, whether the socket is ready.
        """
        if limit != self._limit:
            assert self._socket is not None
            microseconds = 0 if limit is None else max(math.ceil(limit * 1e6), 1)  # 0 is no limit
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 10**6)))
            self._limit = limit


def _connect(host: str, port: int, limit: float) -> socket.socket:
    if not host.rpartition(".")[2].isdecimal():
        connection = socket.create_connection((host, port), timeout=limit)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    # An IPv4 address has not to be looked up, which would take longer than to connect.
    connection = socket.socket()
    try:
        connection.settimeout(limit)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`.

    Raises:
        UsageError: it is no such thing.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:  # noqa: PLR2004
        raise UsageError(f"{address!r} is not an address: give host:port, such as {DEFAULT_ADDRESS}")
    return host, int(port)
