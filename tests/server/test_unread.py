"""Pipes whose reader sleeps: the server serves and ends all the same."""

import os
import re
import select
import subprocess
from collections.abc import Iterator

import pytest
from support import LIMIT, Marked, command

from kaas.client import Connection


class Pipe:
    """A pipe that a program writes to."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        """Leave no room in it."""
        os.set_blocking(self.writer, False)
        for size in (select.PIPE_BUF, 1):
            try:
                while True:
                    os.write(self.writer, b"\n" * size)
            except BlockingIOError:
                pass
        os.set_blocking(self.writer, True)

    def read_until(self, pattern: str) -> str:
        """Read until something has come; return its first group."""
        said = ""
        while not (match := re.search(pattern, said)):
            assert select.select([self.reader], [], [], LIMIT)[0], said
            said += os.read(self.reader, 4096).decode()
        return match[1]


class Unread:
    """A server whose output nobody reads any more, once it listens."""

    def __init__(self, *arguments: str) -> None:
        self.marked = Marked()
        self.stdout, self.stderr = Pipe(), Pipe()
        self.process = subprocess.Popen(
            command(*arguments), env=self.marked.environment, stdout=self.stdout.writer, stderr=self.stderr.writer
        )
        self.address = self.stderr.read_until(r"listening on (\S+): ")
        self.stdout.fill()
        self.stderr.fill()


@pytest.fixture
def unread() -> Iterator[Unread]:
    """A server of a kernel that always fails."""
    server = Unread("fails", "-m", "1", "--idle-timeout", "0")
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(LIMIT)
        server.marked.kill()
        for pipe in (server.stdout, server.stderr):
            os.close(pipe.reader)
            os.close(pipe.writer)


def test_a_server_whose_output_nobody_reads_serves_and_ends(unread: Unread) -> None:
    with Connection(unread.address) as kaas:
        for _ in range(3):  # each has events or a warning
            assert kaas.invoke(b"", timeout=LIMIT).status == "kernel_error"
    unread.process.terminate()
    assert unread.process.wait(LIMIT) == 0
    unread.marked.assert_nothing_left()


def test_a_server_whose_output_is_read_again_has_lost_nothing(unread: Unread) -> None:
    with Connection(unread.address) as kaas:
        assert kaas.invoke(b"", timeout=LIMIT).status == "kernel_error"
    assert unread.stdout.read_until(r"(@@@ Booted 1 new workers on GPU 0) at \d+")
    assert unread.stderr.read_until(r"WARNING: (worker 0 on GPU 0: .*)\n")
