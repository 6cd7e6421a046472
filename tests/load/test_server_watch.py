"""What the load generator compares with the server's own counts at the end of a run."""

import asyncio
import time

import pytest
from support import LIMIT, Server, StartServer

from kaas.load.server import ServerWatch


def differences(server: Server, asked: int, rows: dict[str, int]) -> str:
    """Have a server serve so many requests of a run, and compare these rows of it; it has served one before the run."""

    async def run() -> str:
        watch = ServerWatch(server.address, 60.0)
        await watch.ready()
        await asyncio.to_thread(serve, server, asked)
        return await watch.differences(rows)

    serve(server, 1)
    return asyncio.run(run())


def serve(server: Server, number: int) -> None:
    with server.connection() as kaas:
        for _ in range(number):
            assert kaas.invoke(b"x").status == "ok"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"ok": 3}, ""),
        ({"ok": 2, "wrong_result": 1}, ""),  # which the server cannot know
        ({"ok": 3, "failed": 2}, ""),  # that never came to the server, perhaps
        ({"ok": 2}, "ok: 2 rows, 3 in the server"),
        ({"ok": 1, "rejected": 2}, "ok: 1 rows, 3 in the server, rejected: 2 rows, 0 in the server"),
    ],
)
def test_rows_that_the_server_has_counted_otherwise_are_said(
    start_server: StartServer, rows: dict[str, int], said: str
) -> None:
    assert differences(start_server("echo", "-m", "1"), 3, rows) == said


def test_a_server_that_is_gone_is_not_compared_and_that_is_said(start_server: StartServer) -> None:
    server = start_server("echo", "-m", "1")
    address = server.address
    server.end()
    said = asyncio.run(ServerWatch(address, 60.0).differences({"ok": 1}))
    assert said.startswith("not compared with the server's counts: ")


def test_task_runners_are_told_of_the_time_that_is_asked_for_only(start_server: StartServer) -> None:
    server = start_server("echo", "-m", "1")

    async def run() -> tuple[int | None, int | None]:
        watch = ServerWatch(server.address, 60.0, every=0.01)
        following = asyncio.create_task(watch.follow())
        begun = time.monotonic()
        while watch.task_runners(begun) is None:
            await asyncio.sleep(0.01)
        before = watch.task_runners(time.monotonic() + 60.0)
        await asyncio.to_thread(serve, server, 1)
        served = time.monotonic()
        while watch.task_runners(served) is None:
            await asyncio.sleep(0.01)
        following.cancel()
        return before, watch.task_runners(served)

    assert asyncio.run(asyncio.wait_for(run(), LIMIT)) == (None, 1)
