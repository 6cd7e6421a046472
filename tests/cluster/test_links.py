"""The link port: who says the secret that was drawn for it is let in, once; all others are closed, and counted."""

import asyncio
import secrets
import socket
from collections.abc import Iterator

import pytest

from kaas import addresses
from kaas.cluster import links
from kaas.cluster.lines import LONGEST, Lines, Message
from kaas.cluster.links import LinkPort
from kaas.errors import UsageError


class Told(Lines):
    """An agent's connection, say; what it was told, and its end."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.over = asyncio.Event()
        super().__init__(self.messages.put_nowait, self.over.set)


class Buffered(asyncio.BufferedProtocol):
    """A worker's connection: it has little room for what has come."""

    def __init__(self) -> None:
        self.room = bytearray(3)
        self.said = b""

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.said += self.room[:nbytes]


@pytest.fixture
def port() -> Iterator[LinkPort]:
    made = LinkPort()
    yield made
    made.close()


async def connect(at: int, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    writer.write(said)
    return reader, writer


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read(1)
    except ConnectionResetError:
        return True


def test_a_secret_lets_one_in_with_what_it_says_after_it_and_no_other(port: LinkPort) -> None:
    async def run() -> None:
        at = port.listen(["127.0.0.1"])
        told = Told()
        secret = bytes.fromhex(port.expect(lambda: told))
        _, writer = await connect(at, secret[:5])
        await asyncio.sleep(0)
        writer.write(secret[5:] + b'{"hello": 1}\n{"more"')
        assert await told.messages.get() == {"hello": 1}
        writer.write(b": 2}\n")
        assert await told.messages.get() == {"more": 2}
        again, other = await connect(at, secret)
        assert await is_closed(again)
        other.close()
        assert port.refused == 1
        writer.close()
        await told.over.wait()

    asyncio.run(run())


def test_a_worker_gets_what_was_said_after_its_secret_however_little_room_it_has(port: LinkPort) -> None:
    async def run() -> None:
        at, worker = port.listen(["127.0.0.1"]), Buffered()
        _, writer = await connect(at, bytes.fromhex(port.expect(lambda: worker)) + b"its first frame")
        while worker.said != b"its first frame":
            await asyncio.sleep(0.001)
        writer.close()

    asyncio.run(run())


def test_a_wrong_secret_a_forgotten_one_and_none_are_turned_away_and_counted(
    port: LinkPort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "_PATIENCE", 0.05)

    async def run() -> None:
        at = port.listen(["127.0.0.1"])
        forgotten = port.expect(Told)
        port.forget(forgotten)
        for said in (secrets.token_bytes(32), bytes.fromhex(forgotten), b"GET / HTTP/1.1\r\n", b""):
            reader, writer = await connect(at, said)
            assert await is_closed(reader)
            writer.close()
        _, writer = await connect(at, b"half")
        writer.close()
        while port.refused < 5:
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert not port.unknown
    assert len([line for line in caplog.messages if "without a secret that we wait for" in line]) == 1, "sparingly"


@pytest.mark.parametrize("said", [b"no JSON\n", b"x" * (LONGEST + 1)])
def test_a_connection_that_says_no_lines_of_json_is_ended(port: LinkPort, said: bytes) -> None:
    async def run() -> None:
        at, told = port.listen(["127.0.0.1"]), Told()
        reader, writer = await connect(at, bytes.fromhex(port.expect(lambda: told)) + said)
        await told.over.wait()
        assert await is_closed(reader)
        writer.close()

    asyncio.run(run())


def test_links_delay_nothing_and_are_watched_over_in_use_and_idle() -> None:
    with socket.socket() as link:
        links.watch_over(link)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) < 10_000
        idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
        first, between, number = (
            link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in (idle, "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert first + between * number < 10


def test_an_address_that_is_not_ours_and_a_port_that_is_taken_are_named_by_their_options(port: LinkPort) -> None:
    with pytest.raises(UsageError, match=r"choose an address of this machine for --link-host$"):
        port.listen(["192.0.2.1"])
    with pytest.raises(UsageError, match=r"^--link-host no\.such\.host\.invalid: "):
        addresses.resolve("no.such.host.invalid", "--link-host")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^--link-port {taken} on 127\.0\.0\.1: .*: choose another one"):
            port.listen(["127.0.0.1"], taken)


def test_a_port_can_be_chosen(port: LinkPort) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            chosen = other.getsockname()[1]
        assert port.listen(["127.0.0.1"], chosen) == chosen

    asyncio.run(run())
