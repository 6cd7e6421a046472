"""Load in closed loops, from processes that are forked here: of one connection each, or of many.

Every process is prepared, then told one window of time on the clock that all processes share. It sends requests from
then on; what comes before the window is the warm-up. The times are those of the requests sent within it, however long
after its end the reply comes: else a connection that stalls would be missing. The rate is of the replies within it.
"""

import multiprocessing
import selectors
import signal
import socket
import time
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

import common
import psutil
import serving
from front import Front
from relay import MESSAGE, Yardstick
from serving import TIMEOUT, Server

from kaas import wire
from kaas.client import Connection, split_address
from kaas.errors import KaasError
from kaas.wire import Reply, Request

_WARM_UP = 0.3
"""Seconds between the first requests and the window."""
_LONGEST = 60.0
"""Seconds that a process may take to be prepared, or after the window to be done."""

Window = tuple[int, int]
Served = tuple["array[int]", int]
"""The nanoseconds of each request that was sent within the window, and how many replies came within it."""
Client = Callable[[Callable[[], Window]], Served]
"""Prepares itself, asks for the window, and returns what was served."""


class Load(NamedTuple):
    """What came of it; times of the processor are in seconds, within the window."""

    seconds: float
    times_ns: list[int]
    """Of the requests sent within the window, sorted."""
    replies: int
    client_cpu: float
    server_cpu: float
    worker_cpu: float
    server_bytes: int
    """The server's resident set, at the window's end."""

    def __str__(self) -> str:
        p50 = f", p50 {self.percentile_ms(50):.3g} ms" if self.times_ns else ""
        return f"{self.rate:,.0f} replies/s{p50}"

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.replies / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Give a percentile of the completion time."""
        return percentile(self.times_ns, percent) / 1e6

    def cpu_us(self, seconds: float) -> float:
        """Give time of the processor as microseconds for each reply."""
        return seconds / self.replies * 1e6


def percentile(times: list[int], percent: float) -> int:
    """Give the least of some sorted times that `percent` of them do not exceed."""
    return times[min(int(len(times) * percent / 100), len(times) - 1)]


def one_each(server: Server, number: int, seconds: float) -> Load:
    """Have a number of processes with a connection each send requests, by kaas.client."""
    return _load(server, [lambda window: _by_kaas(server.address, window)] * number, seconds)


def one_each_bare(front: Front, number: int, seconds: float) -> Load:
    """Have a number of processes with a connection each send the yardstick's messages."""
    return _load(front, [lambda window: _bare(front, window)] * number, seconds)


def many_each(server: Server, number: int, seconds: float, processes: int = 2) -> Load:
    """Have few processes send requests over a number of connections in all."""
    shares = [number // processes + (index < number % processes) for index in range(processes)]
    return _load(server, [_many(server.address, share) for share in shares if share], seconds)


def _load(server: Server, clients: list[Client], seconds: float) -> Load:
    # Forked, not started: a client costs what its loop costs, and nothing to start.
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    try:
        for client in clients:
            ours, theirs = context.Pipe()
            process = context.Process(target=_be_process, args=(client, theirs), daemon=True)
            common.start(process)
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _next(pipe)
        cpu_seconds, clients_seen = server.cpu_clock(), [psutil.Process(process.pid) for process in processes]
        begin = time.perf_counter_ns() + int(_WARM_UP * 1e9)
        end = begin + int(seconds * 1e9)
        for pipe in pipes:
            pipe.send((begin, end))
        _sleep_until(begin)
        before, client_cpu = cpu_seconds(), -serving.cpu_seconds_of(clients_seen)
        _sleep_until(end)
        after, server_bytes = cpu_seconds(), server.process.memory_info().rss
        client_cpu += serving.cpu_seconds_of(clients_seen)
        found = [_next(pipe, seconds) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()  # it has nothing to put in order
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()
    times, replies = sorted(time for times, _ in found for time in times), sum(replies for _, replies in found)
    if not times or not replies:
        raise KaasError(f"no request was served within {seconds:g} s")
    return Load(
        seconds,
        times,
        replies,
        client_cpu=client_cpu,
        server_cpu=after.server - before.server,
        worker_cpu=after.workers - before.workers,
        server_bytes=server_bytes,
    )


def _next(pipe: Pipe, more: float = 0.0) -> Served:
    """Take what a process says next.

    Raises:
        KaasError: it is gone, says nothing, or says what went wrong.
    """
    try:
        said = pipe.recv() if pipe.poll(_LONGEST + more) else "it says nothing"
    except EOFError:
        said = "it is gone"
    if isinstance(said, str):
        raise KaasError(f"a client process: {said}")
    return said  # type: ignore[no-any-return] # what a process of ours has sent


def _be_process(client: Client, pipe: Pipe) -> None:
    # A Ctrl-C is the benchmark's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def window() -> Window:
        pipe.send((array("q"), 0))
        told: Window = pipe.recv()
        return told

    try:
        pipe.send(client(window))
        pipe.poll(_LONGEST)  # what it has taken can be told as long as it is there
    except (KaasError, OSError) as error:
        pipe.send(str(error))
    except EOFError:  # the benchmark is gone
        pass


def _sleep_until(moment: int) -> None:
    time.sleep(max(moment - time.perf_counter_ns(), 0) / 1e9)


def _by_kaas(address: str, window: Callable[[], Window]) -> Served:
    with Connection(address) as kaas:

        def exchange() -> None:
            reply = kaas.invoke(MESSAGE, TIMEOUT)
            if reply.status != "ok" or len(reply.payload) != len(MESSAGE):
                serving.check_served(reply, len(MESSAGE))

        return _closed_loop(exchange, window)


def _bare(front: Front, window: Callable[[], Window]) -> Served:
    with front.connection() as connection:
        return _closed_loop(Yardstick(connection, front.process.pid).exchange, window)


def _closed_loop(exchange: Callable[[], None], window: Callable[[], Window]) -> Served:
    clock, times, replies = time.perf_counter_ns, array("q"), 0
    exchange()
    begin, end = window()
    while (sent := clock()) < end:
        exchange()
        replied = clock()
        if begin <= sent:
            times.append(replied - sent)
        replies += begin <= replied < end
    return times, replies


def _many(address: str, number: int) -> Client:
    frame = wire.encode_request(Request(wire.INVOKE, MESSAGE, 1))
    size = len(wire.encode_reply(Reply("ok", MESSAGE)))

    def client(window: Callable[[], Window]) -> Served:
        clock, times, replies = time.perf_counter_ns, array("q"), 0
        sockets = [socket.create_connection(split_address(address), timeout=_LONGEST) for _ in range(number)]
        selector = selectors.DefaultSelector()
        try:
            for connection in sockets:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
            begin, end = window()
            sent = dict.fromkeys(map(socket.socket.fileno, sockets), clock())
            for connection in sockets:
                connection.sendall(frame)
            left = number
            while left:
                for key, _ in selector.select():
                    connection = key.fileobj  # type: ignore[assignment] # it is a socket
                    reply = connection.recv(size, socket.MSG_WAITALL)
                    if len(reply) < size or reply[5]:
                        raise KaasError(f"an invocation was not served: {reply[:100]!r}")
                    replied = clock()
                    if begin <= sent[key.fd] < end:
                        times.append(replied - sent[key.fd])
                    replies += begin <= replied < end
                    if replied < end:
                        sent[key.fd] = clock()
                        connection.sendall(frame)
                    else:
                        left -= 1
        finally:
            selector.close()
            for connection in sockets:
                connection.close()
        return times, replies

    return client
