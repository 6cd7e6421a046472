"""The yardsticks, without any of KaaS: what a message, and what many bytes, cost on this machine at least.

`relay` is a blocking TCP echo server that passes each message of 64 bytes through one child process, over a socket pair
and back. `copy` takes 64 MiB, all of them, and sends them back. Either serves one connection and ends with it.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import common  # noqa: F401 - puts the project on the path

from kaas.errors import KaasError

MESSAGE = bytes(64)
COPIED = 64 * 1024 * 1024
_PATIENCE = 10.0
"""Seconds in which the one connection must come."""


class Yardstick(NamedTuple):
    """A yardstick that runs: the connection to it, and its process."""

    connection: socket.socket
    pid: int

    def exchange(self) -> None:
        """Send one message to the relay and take it back.

        Raises:
            KaasError: not all of it came back.
        """
        self.connection.sendall(MESSAGE)
        back = self.connection.recv(len(MESSAGE))
        if len(back) != len(MESSAGE):
            raise KaasError(f"the relay sent {len(back)} bytes back at once, not {len(MESSAGE)}")

    def exchange_bytes(self, there: bytearray, back: bytearray) -> None:
        """Send some bytes to the copy and take as many back.

        Raises:
            KaasError: not all of them came back.
        """
        self.connection.sendall(there)
        if not _receive(self.connection, back):
            raise KaasError("the copy did not send all bytes back")


@contextlib.contextmanager
def started(what: str) -> Iterator[Yardstick]:
    """Start a yardstick, `relay` or `copy`, with a connection to it; it ends with that."""
    with subprocess.Popen([sys.executable, __file__, what], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Yardstick(connection, process.pid)


def _receive(connection: socket.socket, buffer: bytearray) -> bool:
    """Fill the buffer; tell whether the connection lasted."""
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if not received:
            return False
        view = view[received:]
    return True


def _relay(connection: socket.socket) -> None:
    ours, childs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        connection.close()
        while message := childs.recv(len(MESSAGE)):
            childs.sendall(message)
        os._exit(0)
    childs.close()
    while message := connection.recv(len(MESSAGE)):
        ours.sendall(message)
        connection.sendall(ours.recv(len(MESSAGE)))
    ours.close()
    os.wait()


def _copy(connection: socket.socket) -> None:
    buffer = bytearray(COPIED)
    while _receive(connection, buffer):
        connection.sendall(buffer)


def main() -> None:
    """Serve one connection; the port is printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_PATIENCE)
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection, contextlib.suppress(KeyboardInterrupt, ConnectionError):
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        {"relay": _relay, "copy": _copy}[sys.argv[1]](connection)


if __name__ == "__main__":
    main()
