"""A server that is watched through a fault: what its clients sent and got is compared with its own account."""

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import psutil
from support import KERNELS, Frames, Server, eventually, exists

from kaas import wire
from kaas.pool.account import OUTCOMES, REFUSALS
from kaas.wire import Reply, Request

GATED = """
import os as _os, time as _time
while not _os.path.exists(_os.environ["IMPORT_GATE"]):
    _time.sleep(0.002)
"""
"""Lines for `faulty_after`: the import waits for the file that IMPORT_GATE names."""

_ANSWERED = tuple(status for status in (*OUTCOMES, *REFUSALS) if status != "abandoned")
_MORE_DESCRIPTORS = 4
"""That a server may have open after a fault beyond those of its workers and those that it had before."""


class Client(Frames):
    """A client's connection that keeps account of what it asked and what it was answered."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.asked: set[int] = set()
        self.closed = False
        self._ids = count(1)

    def ask(self, payload: bytes | str, timeout: float = 0.0) -> int:
        """Send an invocation; return its id."""
        number = next(self._ids)
        self.asked.add(number)
        self.invoke(payload.encode() if isinstance(payload, str) else payload, number, timeout)
        return number

    def ask_together(self, *asked: tuple[str, float]) -> list[int]:
        """Send several invocations, each with its timeout, in one piece: none waits till replies are taken."""
        numbers = [next(self._ids) for _ in asked]
        self.asked.update(numbers)
        requests = [
            Request(wire.INVOKE, payload.encode(), number, timeout)
            for number, (payload, timeout) in zip(numbers, asked, strict=True)
        ]
        self.socket.sendall(b"".join(map(wire.encode_request, requests)))
        return numbers

    def begin(self, payload: bytes, sent: int, timeout: float = 0.0) -> tuple[int, bytes]:
        """Send an invocation with so much of its payload; return its id and what is to follow."""
        number = next(self._ids)
        self.asked.add(number)
        frame = wire.encode_request(Request(wire.INVOKE, payload, number, timeout))
        sent += len(frame) - len(payload)
        self.socket.sendall(frame[:sent])
        return number, frame[sent:]

    def wait(self, gate: Path) -> int:
        """Send an invocation that keeps its worker until the file `gate` is there."""
        return self.ask(f"wait {gate}")

    @property
    def received(self) -> list[Reply]:
        """The answers that have come, but for that of the probe."""
        return [reply for number, reply in self._replies.items() if number != _PROBE]

    @property
    def answered(self) -> set[int]:
        """The ids of the answers that have come."""
        return {reply.id for reply in self.received}

    def assert_answered_once(self) -> None:
        """Wait until every request is answered, and check that nothing else comes."""
        self.replies(*self.asked)
        if not any(reply.status in REFUSALS for reply in self.received):
            self.socket.sendall(wire.encode_request(Request(wire.STATUS, id=_PROBE)))
            self.replies(_PROBE)  # another answer would have come before this one, and a second one fails there
        else:
            assert self.closed_by_server()
        assert self.answered - {0} <= self.asked

    def close(self) -> None:
        """Be gone, whatever is not answered yet."""
        self.closed = True
        super().close()


_PROBE = 2**32 - 1


class Watch:
    """One server under a fault. `assert_well` is the check that follows every fault.

    Args:
        server: it listens already.
        gate: file by which the check holds all workers busy at a time.
    """

    def __init__(self, server: Server, gate: Path) -> None:
        self.server = server
        self._signals: list[signal.Signals] = []
        self._others: Counter[str] = Counter()
        self._others_asked = 0
        self._gate = gate
        self._clients: list[Client] = []
        self._process = psutil.Process(server.process.pid)
        self._descriptors = self._process.num_fds()
        self._descriptors_of_forkserver = server.forkserver().num_fds()

    def client(self) -> Client:
        """Make a client's connection, which is kept account of."""
        self._clients.append(Client(self.server.address))
        return self._clients[-1]

    def invoke(self, payload: bytes | str = b"", timeout: float = 0.0) -> Reply:
        """Have the kernel called once, by a client of its own."""
        with self.client() as client:
            return client.reply(client.ask(payload, timeout))

    def note(self, asked: int, received: Counter[str]) -> None:
        """Take into account what others sent than our clients: invocations accepted, and the answers they got."""
        self._others_asked += asked
        self._others += received

    def workers(self) -> int:
        """Tell how many workers the server has that are not left out."""
        return sum(int(gpu["workers"]) for gpu in self.server.status()["by_gpu"])

    def wait_until_busy(self, number: int) -> None:
        """Wait until so many workers are in a call."""
        eventually(lambda: len(self.server.workers("busy")) == number, what=f"{number} workers are busy")

    def wait_until_idle(self, number: int) -> list[dict[str, Any]]:
        """Wait until so many workers are idle; give their status."""
        eventually(lambda: len(self.server.workers("idle")) == number, what=f"{number} workers are idle")
        return self.server.workers("idle")

    def send(self, number: signal.Signals) -> None:
        """Send the server a signal that ends it."""
        self._signals.append(number)
        self.server.send(number)

    def close(self) -> None:
        """Close all clients' connections."""
        for client in self._clients:
            client.close()

    def assert_well(self) -> None:
        """Check what follows every fault: that all is well, or that a server which was told to end has ended well."""
        if not self._signals:
            self.assert_all_well()
        elif signal.SIGKILL not in self._signals:
            self.assert_ended_well()

    def assert_all_well(self) -> None:
        """Check that the accounts close, every worker serves, and nothing is left of the fault."""
        self._assert_all_workers_serve()
        status = self._assert_accounts_close()
        pids = {worker["pid"] for worker in status["workers"] if worker["pid"]}
        eventually(lambda: self._running() == pids, what=f"only {pids} run; of the workers there are {self._running()}")
        self.close()
        most = self._descriptors + len(pids) + _MORE_DESCRIPTORS
        eventually(lambda: self._process.num_fds() <= most, what=f"at most {most} descriptors are open")
        most = self._descriptors_of_forkserver + _MORE_DESCRIPTORS
        eventually(lambda: self.server.forkserver().num_fds() <= most, what="the fork server keeps no descriptors")

    def assert_ended_well(self) -> None:
        """Check the same of a server that was told to end: every client has its answers, and they are what it says."""
        assert self.server.wait() == 0
        self.server.marked.assert_nothing_left()
        for client in self._clients:
            if not client.closed:
                client.replies(*client.asked)
                assert client.closed_by_server()
        got = self._received()
        outcomes = ", ".join(f"{status} {got[status]}" for status in OUTCOMES if got[status])
        assert f"accepted {got.total()}: {outcomes}\n" in self.server.stderr()

    def _assert_accounts_close(self) -> dict[str, Any]:
        server = self.server
        eventually(lambda: server.status()["in_flight"] == 0, what="nothing is in flight")
        for client in self._clients:
            if not client.closed:
                client.assert_answered_once()
        status = server.status()
        counters, got = Counter[str](status["counters"]), self._received()
        assert status["in_flight"] == status["queued"] == 0
        assert [gpu["in_flight"] for gpu in status["by_gpu"]] == [0] * status["gpus"]
        told = f"counters {counters}, received {got}, asked {self._asked()}"
        assert counters["accepted"] == sum(counters[outcome] for outcome in OUTCOMES) == self._asked(), told
        assert counters["replies"] == sum(counters[answer] for answer in _ANSWERED), told
        unread = counters["replies"] - got.total()
        gone = self._others_asked - sum(self._others[answer] for answer in OUTCOMES)
        gone += sum(len(client.asked - client.answered) for client in self._clients if client.closed)
        assert unread + counters["abandoned"] == gone, told
        assert all(got[answer] <= counters[answer] for answer in _ANSWERED), told
        return status

    def _assert_all_workers_serve(self) -> None:
        eventually(lambda: self.server.status()["in_flight"] == 0, what="nothing is in flight")
        # There may be workers at what nobody waits for any more.
        eventually(lambda: not self.server.workers("booting"), what="no worker boots")
        eventually(lambda: not self.server.workers("busy"), what="no worker is busy")
        number = self.workers()
        if not number:
            return
        self._gate.unlink(missing_ok=True)
        try:
            with self.client() as client:
                asked = [client.wait(self._gate) for _ in range(number)]
                self.wait_until_busy(number)
                self._gate.touch()
                replies = [client.reply(one) for one in asked]
        finally:
            self._gate.touch()
        assert [reply.status for reply in replies] == ["ok"] * number
        assert len({reply.worker for reply in replies}) == number

    def _running(self) -> set[int]:
        return {child.pid for child in self.server.forkserver().children(recursive=True) if exists(child.pid)}

    def _received(self) -> Counter[str]:
        return self._others + Counter(reply.status for client in self._clients for reply in client.received)

    def _asked(self) -> int:
        """Tell how many invocations were sent that were not refused."""
        return self._others_asked + sum(
            len(client.asked - {reply.id for reply in client.received if reply.status in REFUSALS})
            for client in self._clients
        )


class StartWatch(Protocol):
    """The fixture `watch`: start a server, watched to the end of the test.

    Args:
        kernel: `faulty`, or a file whose kernel can do at least what that one can.
        arguments: for the server.
        shell: what a shell does before it becomes the server, like `ulimit -n 64`.
        environment: for the server.
    """

    def __call__(
        self, kernel: str | Path = "faulty", *arguments: str, shell: str = "", **environment: str
    ) -> Watch: ...


def faulty_after(path: Path, lines: str) -> Path:
    """Write a kernel that runs some lines when it is imported, and is `faulty` otherwise."""
    path.write_text(f"{lines}\n{(KERNELS / 'faulty.py').read_text()}")
    return path


def shell_line(shell: str, line: Sequence[str]) -> list[str]:
    """Make the command line of a shell that does something and then becomes the program of another line."""
    return ["/bin/sh", "-c", f'{shell} && exec "$@"', "sh", *line] if shell else list(line)


@contextlib.contextmanager
def clients(watch: Watch, number: int) -> Iterator[list[Client]]:
    """Make several clients, which are gone at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(watch.client()) for _ in range(number)]
