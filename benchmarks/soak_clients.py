"""The clients of the soak: processes in a closed loop that mix work and mischief, and keep account of every answer.

A client's account lies in memory that it shares with the soak, so that it is there however the client ends.
"""

import contextlib
import mmap
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import NoReturn

import numpy as np
from soak_servers import MESSAGE_SIZE, SERVERS

from kaas import matrices, wire
from kaas.client import Connection, split_address
from kaas.decoder import LARGE
from kaas.errors import ConnectionFailed, KaasError
from kaas.matrices import Task
from kaas.wire import Reply, Request

ASKED, LEFT = "asked", "left"
"""Invocations begun, and those that their client did not wait for."""
END = -2
"""An order, besides the numbers of the phases: in odd ones the clients are calm."""

_LIMIT = 30.0
_STORM = (10_000, 12_000)
"""Requests at once, of which all but a few are refused: so many that while nobody reads the event lines, not each
refusal has one of its own."""
_NO_RIGHT_ANSWER = 255
"""Exit code of a forked child; with an answer that is right, it is the number of its status."""
_BY_FAULTS = {"worker_lost", "timeout", "rejected"}
"""Statuses that any invocation may get while faults are injected."""
_DEEDS: dict[str, tuple[str, float]] = {
    "raise an error": ("kernel_error", 20),
    "exit": ("kernel_error", 20),
    "text": ("kernel_error", 20),
    f"zeros {MESSAGE_SIZE + 1}": ("kernel_error", 5),
    "zeros 3000000": ("ok", 10),
    "fork": ("ok", 5),
    "fork-and-keep": ("ok", 5),
    "print 1": ("ok", 0.2),
    "exit-at-once": ("worker_lost", 3),
    "segfault": ("worker_lost", 3),
    "hang": ("timeout", 2),
    "ignore-signals-and-hang": ("timeout", 1),
}
"""What the faulty kernel can be asked for, the status that comes of it, and how often, against the rest of the work."""


class Cells:
    """Named numbers in memory that is shared with the processes which are forked from here."""

    def __init__(self, names: list[str]) -> None:
        self._at = {name: at for at, name in enumerate(names)}
        self._cells = memoryview(mmap.mmap(-1, 8 * len(names))).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._cells[self._at[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._cells[self._at[name]] = value

    def count(self) -> Counter[str]:
        """Give them as they are now."""
        return Counter({name: self[name] for name in self._at})


def new_account() -> Cells:
    """Make a client's account: by server what it asked and got, by name what it did, and the phase that it is in."""
    by_server = [f"{server} {what}" for server in SERVERS for what in (ASKED, LEFT, *wire.STATUSES)]
    return Cells([*by_server, *_WORK, "phase"])


def be_client(addresses: dict[str, str], account: Cells, order: Cells, problems: Path, seed: int) -> None:
    """Be a client's process: work in even phases, be calm in odd ones, until the order is to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the soak's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    client, parent = _Client(addresses, account, Random(seed)), os.getppid()
    while (phase := order["order"]) != END and os.getppid() == parent:
        if phase % 2:
            client.close()
            account["phase"] = phase
            time.sleep(0.01)
            continue
        try:
            client.work()
        except (KaasError, OSError, AssertionError) as error:
            client.close()
            with problems.open("a") as file:
                file.write(f"a client, at {client.work_name!r}: {type(error).__name__}: {error}\n")
    client.close()


class _Client:
    def __init__(self, addresses: dict[str, str], account: Cells, random: Random) -> None:
        self._addresses = addresses
        self._account = account
        self._random = random
        self._kept: dict[str, Connection] = {}
        self.work_name = ""

    def work(self) -> None:
        """Do one piece of work, drawn by weight."""
        weights = [weight for _, weight in _WORK.values()]
        self.work_name = self._random.choices(list(_WORK), weights)[0]
        self._account[self.work_name] += 1
        _WORK[self.work_name][0](self)

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def small(self) -> None:
        self._invoke("faulty", b"nothing", "ok")

    def large(self) -> None:
        self._invoke("faulty", b"x" * self._random.randint(10_000, MESSAGE_SIZE // 2), "ok")

    def deed(self, deed: str) -> None:
        reply = self._invoke("faulty", deed.encode(), _DEEDS[deed][0])
        if deed.startswith("zeros") and reply.status == "ok":
            assert len(reply.payload) == int(deed.split()[1]), f"{len(reply.payload)} bytes"

    def impatient(self) -> None:
        self._invoke("faulty", b"hang", "timeout", timeout=self._random.choice((0.001, 0.05)))

    def matrix(self) -> None:
        n, timeout = self._random.choice((8, 32, 64, 128)), self._random.choice((None, None, None, 0.002))
        matrix = matrices.random_matrix(n)
        with matrices.shared_matrix(n) as a, matrices.shared_matrix(n) as c:
            a.matrix[:] = matrix
            reply = self._invoke("matrix", Task(a.name, c.name, n).encode(), "ok", timeout)
            if reply.status == "ok":
                assert matrices.is_square_of(np.array(c.matrix), matrix), "the product is wrong"

    def bad_task(self) -> None:
        with matrices.shared_matrix(8) as a:
            task = Task(a.name, self._random.choice((a.name, f"kaas_{'0' * 20}", "passwd")), 500)
            self._invoke("matrix", self._random.choice((task.encode(), b"{}", b"\xff")), "kernel_error")

    def status(self) -> None:
        with Connection(self._addresses[self._random.choice(SERVERS)]) as kaas:
            assert kaas.status()["in_flight"] >= 0

    def pipelined(self, least: int = 2, most: int = 8) -> None:
        number = self._random.randint(least, most)
        with self._asking("faulty", [b"nothing"] * number) as connection:
            decoder, waiting = wire.reply_decoder(), set(range(number))
            while waiting:
                data = connection.recv(65536)
                assert data, f"closed with {waiting} not answered"
                for reply in decoder.feed(data):
                    assert reply.id in waiting, f"answered twice: {reply}"
                    waiting.remove(reply.id)
                    self._answered("faulty", reply, "ok")

    def slow(self) -> None:
        with self._connected("faulty") as connection:
            self._account["faulty asked"] += 1
            for byte in wire.encode_request(Request(wire.INVOKE, b"slow", 1)):
                connection.sendall(bytes([byte]))
                time.sleep(0.005)
            self._answered("faulty", self._only_reply(connection), "ok")

    def forked(self) -> None:
        """Have a child process use the kept connection at the same time: each must get its own answer."""
        self.small()
        connection = self._kept["faulty"]
        sizes = self._random.sample(range(1000, LARGE), 2)
        self._account[f"faulty {ASKED}"] += 2
        child = os.fork()
        if not child:
            _ask_and_exit(connection, sizes[1])
        try:
            reply = connection.invoke(f"zeros {sizes[0]}".encode())
        finally:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self._answered("faulty", reply, "ok")
        assert reply.status != "ok" or reply.payload == bytes(sizes[0]), f"the parent has another's answer: {reply}"
        assert 0 <= code < len(wire.STATUSES), f"the child has no right answer, and ends with {code}"
        self._answered("faulty", Reply(wire.STATUSES[code], b""), "ok")

    def leave(self) -> None:
        payloads = [self._random.choice((b"nothing", b"hang", b"zeros 3000000"))] * self._random.randint(1, 4)
        with self._asking("faulty", payloads) as connection:
            if self._random.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
            time.sleep(self._random.choice((0.0, 0.01, 0.2)))
            self._account["faulty left"] += len(payloads)

    def cut(self) -> None:
        frame = wire.encode_request(Request(wire.INVOKE, b"x" * 1000, 1))
        with self._connected(self._random.choice(SERVERS)) as connection:
            connection.sendall(frame[: self._random.randrange(1, len(frame))])

    def garbage(self) -> None:
        server = self._random.choice(SERVERS)
        announced = wire.encode_request(Request(wire.INVOKE))[:16] + (MESSAGE_SIZE + 1).to_bytes(8, "big")
        with self._connected(server) as connection:
            connection.sendall(self._random.choice((announced, self._random.randbytes(100))))
            reply = self._only_reply(connection)
            assert reply.status == "bad_request", reply
            self._account[f"{server} bad_request"] += 1
            assert not connection.recv(1), "not closed"

    def _invoke(self, server: str, payload: bytes, expected: str, timeout: float | None = None) -> Reply:
        if self._random.random() < 0.2:
            self._kept.pop(server, Connection(self._addresses[server])).close()
        connection = self._kept.setdefault(server, Connection(self._addresses[server]))
        self._account[f"{server} {ASKED}"] += 1
        try:
            reply = connection.invoke(payload, timeout)
        except ConnectionFailed:
            if not payload.startswith(b"zeros"):
                raise
            # A worker that is lost in the middle of a large reply leaves a half of it, which ends the connection.
            self._account[f"{server} {LEFT}"] += 1
            return Reply("worker_lost", b"")
        self._answered(server, reply, expected)
        return reply

    def _answered(self, server: str, reply: Reply, expected: str) -> None:
        self._account[f"{server} {reply.status}"] += 1
        assert reply.status in {expected, *_BY_FAULTS}, f"{reply} is not {expected}"

    @contextlib.contextmanager
    def _asking(self, server: str, payloads: list[bytes]) -> Iterator[socket.socket]:
        with self._connected(server) as connection:
            self._account[f"{server} {ASKED}"] += len(payloads)
            frames = [wire.encode_request(Request(wire.INVOKE, each, number)) for number, each in enumerate(payloads)]
            connection.sendall(b"".join(frames))
            yield connection

    def _connected(self, server: str) -> socket.socket:
        return socket.create_connection(split_address(self._addresses[server]), timeout=_LIMIT)

    def _only_reply(self, connection: socket.socket) -> Reply:
        decoder = wire.reply_decoder()
        while data := connection.recv(65536):
            for reply in decoder.feed(data):
                return reply
        raise AssertionError("closed without an answer")


def _ask_and_exit(connection: Connection, size: int) -> NoReturn:
    """Be the child: its exit code is all that it may tell, for two cannot add to one account."""
    code = _NO_RIGHT_ANSWER
    try:
        reply = connection.invoke(f"zeros {size}".encode())
        assert reply.status != "ok" or reply.payload == bytes(size), f"the child has another's answer: {reply}"
        code = wire.STATUSES.index(reply.status)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


_WORK: dict[str, tuple[Callable[["_Client"], None], float]] = {
    "small payload": (_Client.small, 400),
    "large payload": (_Client.large, 20),
    "timeout of the client": (_Client.impatient, 2),
    "matrix task": (_Client.matrix, 300),
    "bad matrix task": (_Client.bad_task, 20),
    "status query": (_Client.status, 20),
    "pipelined requests": (_Client.pipelined, 30),
    "storm of requests": (partial(_Client.pipelined, least=_STORM[0], most=_STORM[1]), 1),
    "connection used after a fork": (_Client.forked, 10),
    "slow client": (_Client.slow, 3),
    "client gone before its answer": (_Client.leave, 5),
    "connection closed in a frame": (_Client.cut, 20),
    "garbage": (_Client.garbage, 20),
    **{f"kernel: {deed}": (partial(_Client.deed, deed=deed), weight) for deed, (_, weight) in _DEEDS.items()},
}
"""What a client does, and how often, against the rest."""
WORK = tuple(_WORK)
