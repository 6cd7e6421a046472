import asyncio
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop
from support import LIMIT, Marked, eventually, exists

from kaas import ROOT, children
from kaas.children import ForkServer
from kaas.errors import ProcessFailed
from kaas.forkserver import Config

MANY = 300


class Family:
    """A fork server with what it told of its children; its links are closed at the end."""

    def __init__(self, kill_after: float = LIMIT, config: Config | None = None) -> None:
        self.ended: dict[int, int | None] = {}
        self.links: dict[int, socket.socket] = {}
        self.forkserver = ForkServer("example_child", config or {}, self._ended, kill_after)

    def _ended(self, child: int, code: int | None) -> None:
        assert child not in self.ended, "told twice"
        self.ended[child] = code

    async def spawn(self, do: str) -> tuple[int, int]:
        """Start a child; return its number and, once it runs, its process id."""
        child, link = self.forkserver.spawn({"do": do})
        self.links[child] = link
        link.settimeout(LIMIT)
        return child, int(await asyncio.to_thread(link.recv, 100))

    async def until_ended(self, child: int, limit: float = LIMIT) -> int | None:
        async with asyncio.timeout(limit):
            while child not in self.ended:
                await asyncio.sleep(0.01)
        return self.ended[child]

    async def close(self) -> None:
        for link in self.links.values():
            link.close()
        async with asyncio.timeout(LIMIT):
            await self.forkserver.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process have as many links as these tests make."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MANY + 200
    if hard not in {-1, resource.RLIM_INFINITY} and hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors here, and this takes {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(autouse=True)
def no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    marked = Marked()
    for name, value in marked.environment.items():
        monkeypatch.setenv(name, value)
    yield
    # The mark is in the environment with which a process was started, so this one does not bear it.
    try:
        marked.assert_nothing_left()
    finally:
        marked.kill()


def with_family(
    test: Callable[[Family], Coroutine[None, None, None]],
    kill_after: float = LIMIT,
    config: Config | None = None,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    async def run() -> None:
        family = Family(kill_after, config)
        assert await family.forkserver.start() >= 0
        try:
            await test(family)
        finally:
            await family.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def test_a_child_ends_when_its_link_does_and_its_exit_code_is_told() -> None:
    async def test(family: Family) -> None:
        first, _ = await family.spawn("7")
        second, pid = await family.spawn("0")
        family.links[first].close()
        assert await family.until_ended(first) == 7
        assert exists(pid)
        assert second not in family.ended

    with_family(test)


def test_close_waits_until_all_children_have_ended() -> None:
    async def test(family: Family) -> None:
        pids = [(await family.spawn(str(code)))[1] for code in range(5)]
        await family.close()
        assert sorted(code for code in family.ended.values() if code is not None) == list(range(5))
        assert not any(exists(pid) for pid in pids)

    with_family(test)


def test_the_signal_that_ended_a_child_is_told() -> None:
    async def test(family: Family) -> None:
        child, pid = await family.spawn("0")
        os.kill(pid, signal.SIGTERM)
        assert await family.until_ended(child) == -signal.SIGTERM

    with_family(test)


def test_a_child_that_raises_ends_with_1_and_the_fork_server_goes_on() -> None:
    async def test(family: Family) -> None:
        child, _ = await family.spawn("raise")
        assert await family.until_ended(child) == 1
        await family.spawn("0")

    with_family(test)


def test_kill_ends_a_child_and_is_no_harm_afterwards() -> None:
    async def test(family: Family) -> None:
        child, _ = await family.spawn("stay")
        other, _ = await family.spawn("3")
        family.forkserver.kill(child)
        family.forkserver.kill(child)
        assert await family.until_ended(child) == -signal.SIGKILL
        family.forkserver.kill(child)
        family.links[other].close()
        assert await family.until_ended(other) == 3

    with_family(test)


def test_close_kills_a_child_that_does_not_end_by_itself() -> None:
    async def test(family: Family) -> None:
        deaf, pid = await family.spawn("stay")
        good, _ = await family.spawn("0")
        await family.close()
        assert not exists(pid)
        assert family.ended == {deaf: -signal.SIGKILL, good: 0}

    with_family(test, kill_after=1.0)


def test_a_child_can_be_killed_while_close_waits_for_it() -> None:
    async def test(family: Family) -> None:
        child, _ = await family.spawn("stay")
        closing = asyncio.create_task(family.close())
        await asyncio.sleep(0)
        family.forkserver.kill(child)
        # Long before it would be killed anyway.
        assert await family.until_ended(child, 8.0) == -signal.SIGKILL
        await closing

    with_family(test, kill_after=16.0)


@pytest.mark.parametrize("how", ["by itself", "killed by somebody", "killed by us"])
def test_what_a_child_has_started_ends_with_it(how: str) -> None:
    async def test(family: Family) -> None:
        child, pid = await family.spawn("fork")
        family.links[child].sendall(b"?")
        grandchild = int(await asyncio.to_thread(family.links[child].recv, 100))
        assert exists(grandchild)
        if how == "by itself":
            family.links[child].shutdown(socket.SHUT_WR)
        elif how == "killed by somebody":
            os.kill(pid, signal.SIGKILL)
        else:
            family.forkserver.kill(child)
        assert await family.until_ended(child) == (0 if how == "by itself" else -signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: not exists(grandchild))

    with_family(test)


def test_each_child_leads_a_group_of_its_own() -> None:
    async def test(family: Family) -> None:
        pids = [(await family.spawn("0"))[1] for _ in range(3)]
        assert [os.getpgid(pid) for pid in pids] == pids

    with_family(test)


def test_more_children_than_their_fork_server_takes_at_once_all_come() -> None:
    async def test(family: Family) -> None:
        _, pid = await family.spawn("0")
        forkserver = psutil.Process(pid).parent()
        assert forkserver is not None
        forkserver.suspend()
        more = {"do": "0", "much": "x" * 8192}  # more bytes and more descriptors than a socket keeps
        links = dict(family.forkserver.spawn(more) for _ in range(100))
        family.links |= links
        forkserver.resume()
        pids = set()
        for link in links.values():
            link.settimeout(LIMIT)
            pids.add(await asyncio.to_thread(link.recv, 100))
        assert len(pids) == 100
        assert not family.ended

    with_family(test)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.usefixtures("many_descriptors")
def test_hundreds_of_children_all_come_and_are_killed_though_their_fork_server_was_stopped(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def test(family: Family) -> None:
        family.links = dict(family.forkserver.spawn({"do": "stay"}) for _ in range(MANY))
        forkserver = psutil.Process(family.forkserver._process.pid)  # type: ignore[union-attr]
        for link in family.links.values():
            link.settimeout(LIMIT)
            assert int(await asyncio.to_thread(link.recv, 100))
        assert not family.ended
        forkserver.suspend()
        for child in family.links:
            for _ in range(20):  # more lines than a socket keeps
                family.forkserver.kill(child)
        await asyncio.sleep(0.05)  # it may block now, but must not
        assert not family.ended
        forkserver.resume()
        assert {await family.until_ended(child) for child in family.links} == {-signal.SIGKILL}

    with_family(test, new_loop=new_loop)


def test_an_end_that_cannot_be_told_does_not_keep_others_from_being_told() -> None:
    async def test(family: Family) -> None:
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
        first, second = await family.spawn("0"), await family.spawn("0")
        family.ended[first[0]] = 0  # so that its end is told a second time, which raises
        for _, pid in (first, second):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not psutil.pid_exists(pid))  # noqa: B023 - nothing is read meanwhile
        assert await family.until_ended(second[0]) == -signal.SIGKILL
        assert [str(problem).partition("\n")[0] for problem in problems] == ["told twice"]

    with_family(test)


def test_a_stopped_fork_server_is_killed_with_its_children_when_close_has_waited_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(family: Family) -> None:
        monkeypatch.setattr(children, "_GRACE", 0.1)
        child, pid = await family.spawn("stay")
        after, _ = await family.spawn("0")
        psutil.Process(pid).parent().suspend()  # type: ignore[union-attr]
        unborn, link = family.forkserver.spawn({"do": "stay"})
        family.links[unborn] = link
        await family.forkserver.close()
        assert family.ended == dict.fromkeys((child, after, unborn), -signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: not exists(pid))

    with_family(test, kill_after=0.1)


@pytest.mark.parametrize("config", [{}, {"forks slowly": True}], ids=["at any time", "before it has said a word"])
def test_children_that_are_not_to_outlive_their_fork_server_are_killed_when_it_is_lost(config: Config) -> None:
    async def run() -> None:
        ended: list[int | None] = []
        forkserver = ForkServer("example_child", config, lambda _, code: ended.append(code), LIMIT, kill_orphans=True)
        await forkserver.start()
        _, link = forkserver.spawn({"do": "stay"})
        link.settimeout(LIMIT)
        pid = int(await asyncio.to_thread(link.recv, 100))
        psutil.Process(pid).parent().kill()  # type: ignore[union-attr]
        async with asyncio.timeout(LIMIT):
            while not ended:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(eventually, lambda: not exists(pid))
        link.close()
        assert ended == [None]
        await forkserver.close()

    asyncio.run(run())


def test_a_child_that_was_just_forked_is_killed_with_the_others() -> None:
    async def run() -> None:
        ended: list[int | None] = []
        forkserver = ForkServer("example_child", {"speaks late": True}, lambda _, code: ended.append(code), LIMIT)
        await forkserver.start()
        assert forkserver._process is not None
        parent = psutil.Process(forkserver._process.pid)
        _, link = forkserver.spawn({"do": "stay"})
        (child,) = await asyncio.to_thread(eventually, parent.children)
        forkserver.abort()
        await asyncio.to_thread(eventually, lambda: not exists(child.pid))
        link.close()
        assert ended == [-signal.SIGKILL]

    asyncio.run(run())


def test_children_have_descriptors_of_their_own_only() -> None:
    async def test(family: Family) -> None:
        for _ in range(5):
            _, pid = await family.spawn("0")
        others = [link for link in Path(f"/proc/{pid}/fd").iterdir() if int(link.name) > 2]
        open_ = [str(link.readlink()) for link in others]
        # A newer libffi keeps itself open for the callbacks of ctypes.
        assert [name.partition(":")[0] for name in open_ if "/libffi." not in name] == ["socket"]

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    with_family(test)


@pytest.mark.parametrize(
    ("config", "text"), [({"fail": "no such library"}, "RuntimeError: no such library"), ({"exit": 5}, "exit code 5")]
)
def test_a_preload_that_fails_is_told(config: Config, text: str) -> None:
    async def run() -> None:
        family = Family(config=config)
        with pytest.raises(ProcessFailed, match=text):
            await family.forkserver.start()
        await family.close()

    asyncio.run(run())


def test_a_fork_server_for_which_there_is_no_room_is_told() -> None:
    async def run() -> None:
        family = Family()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays so
        try:
            with pytest.raises(ProcessFailed, match="the fork server cannot be started: Too many open files"):
                await family.forkserver.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await family.close()

    asyncio.run(run())


def test_close_is_no_harm_before_the_start_and_twice() -> None:
    async def run() -> None:
        family = Family()
        await family.close()
        await family.forkserver.start()
        await family.close()
        await family.close()

    asyncio.run(run())


def test_when_the_fork_server_is_lost_its_children_end_and_a_new_one_is_started() -> None:
    async def test(family: Family) -> None:
        child, pid = await family.spawn("0")
        psutil.Process(pid).parent().kill()  # type: ignore[union-attr]
        assert await family.until_ended(child) is None
        family.links[child].close()
        await asyncio.to_thread(eventually, lambda: not exists(pid))
        other, _ = await family.spawn("4")
        family.links[other].close()
        assert await family.until_ended(other) == 4

    with_family(test)


PATH = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
PARENT = """
import asyncio, os, sys
from kaas.children import ForkServer

async def main():
    forkserver = ForkServer("example_child", {}, lambda child, code: None, 1.0)
    await forkserver.start()
    links = [forkserver.spawn({"do": do})[1] for do in ("0", "stay")]
    print(*[int(link.recv(100)) for link in links], flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


AT_A_TERMINAL = """
import asyncio, fcntl, signal, termios
from kaas.children import ForkServer

async def main():
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    forkserver = ForkServer("example_child", {}, lambda child, code: print("ended", code, flush=True), 120.0)
    await forkserver.start()
    link = forkserver.spawn({"do": "say"})[1]
    link.settimeout(120.0)
    print("child", int(link.recv(100)), flush=True)
    await interrupted.wait()
    print("interrupted", flush=True)
    link.sendall(b"x")
    print("child says", link.recv(100).decode(), flush=True)
    link.close()
    await forkserver.close()

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, settings)
asyncio.run(main())
"""


def test_a_ctrl_c_at_the_terminal_reaches_the_parent_only_and_children_may_write_there() -> None:
    terminal, parents = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL],
        env=os.environ | {"PYTHONPATH": PATH},
        stdin=parents,
        stdout=subprocess.PIPE,
        stderr=parents,
        text=True,
        start_new_session=True,
    ) as parent:
        os.close(parents)
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("child ")
        os.write(terminal, b"\x03")
        assert parent.stdout.read().splitlines() == ["interrupted", "child says hello", "ended 0"]
        assert b"hello" in os.read(terminal, 1000)
    os.close(terminal)


def test_when_the_parent_is_killed_all_its_children_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=os.environ | {"PYTHONPATH": PATH}, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(exists(pid) for pid in pids)
        parent.kill()
    eventually(lambda: not any(exists(pid) for pid in pids))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit code 0"),
        (-9, "ended by SIGKILL"),
        (-35, "ended by signal 35"),
        (None, "ended, it is not known how"),
    ],
)
def test_an_end_is_described_in_words(code: int | None, text: str) -> None:
    assert children.describe(code) == text
