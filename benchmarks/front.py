"""The yardstick of many clients: what a server of our shape costs at least, in Python, without any of KaaS.

One process is in front of a number of workers, forked from it, with a socket pair to each; any number of clients
connect to it. A client's message of 64 bytes goes to a worker that has none, and back when the worker has sent it back.
There is one epoll (poll, where there is none), and nothing else: no frames, no deadlines, no account, nobody who fails.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
from relay import MESSAGE
from serving import Server


class Front(Server):
    """A front that runs."""

    def workers(self) -> list[psutil.Process]:
        """Give its worker processes."""
        return self.process.children()

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Connect to it."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection


@contextlib.contextmanager
def started(workers: int) -> Iterator[Front]:
    """Start a front with so many workers; it ends when this is left, or this process does."""
    line = [sys.executable, __file__, str(workers)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            yield Front(process, f"127.0.0.1:{int(process.stdout.readline())}", process.stdout)


def _worker(link: socket.socket) -> None:
    while message := link.recv(len(MESSAGE)):
        link.sendall(message)


def _serve(listener: socket.socket, idle: list[socket.socket]) -> None:
    workers, clients = {link.fileno(): link for link in idle}, dict[int, socket.socket]()
    asked: dict[int, socket.socket] = {}
    poll = select.epoll() if hasattr(select, "epoll") else select.poll()
    for descriptor in (sys.stdin.fileno(), listener.fileno(), *workers):
        poll.register(descriptor, select.POLLIN)  # epoll's is the same bit
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in workers:
                worker = workers[descriptor]
                asked[descriptor].sendall(worker.recv(len(MESSAGE)))
                idle.append(worker)
            elif descriptor in clients:
                client = clients[descriptor]
                if message := client.recv(len(MESSAGE)):
                    worker = idle.pop()
                    asked[worker.fileno()] = client
                    worker.sendall(message)
                else:
                    poll.unregister(descriptor)
                    clients.pop(descriptor).close()
            elif descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.POLLIN)
            else:  # whoever has started this is gone, or has no more use for it
                return


def main() -> None:
    """Serve; the port is printed."""
    ours: list[socket.socket] = []
    for _ in range(int(sys.argv[1])):
        link, theirs = socket.socketpair()
        if os.fork() == 0:
            for other in (link, *ours):
                other.close()
            with contextlib.suppress(KeyboardInterrupt, ConnectionError):
                _worker(theirs)
            os._exit(0)
        theirs.close()
        ours.append(link)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, contextlib.suppress(KeyboardInterrupt):
        print(listener.getsockname()[1], flush=True)
        _serve(listener, ours.copy())


if __name__ == "__main__":
    main()
