"""An agent and the server's side of it, without Ray: a cluster that is a stand-in starts it as a process of its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import KERNELS, LIMIT, Marked

from kaas import ROOT, wire
from kaas.cluster import facts
from kaas.cluster.links import LinkPort
from kaas.cluster.nodes import Node
from kaas.errors import ProcessFailed, UsageError
from kaas.line import Line
from kaas.pool.settings import Settings
from kaas.server.engines.ray.engine import RayEngine
from kaas.server.engines.ray.node import NodeAgent
from kaas.wire import ReplyFrame, Request

# With it before START, its node has another /dev/shm, as another container with the same address has.
ELSEWHERE = "from pathlib import Path; from kaas import transport; transport._SHARED_MEMORY = Path('/proc'); "
START = "import json, sys; from kaas.cluster.actor import Actor; Actor().run(sys.argv[1], json.loads(sys.argv[2]))"


class Tell:
    """Whom a worker tells."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def ready(self, phases: dict[str, float]) -> None:
        self.told.put_nowait(("ready", phases))

    def replied(self, reply: ReplyFrame) -> None:
        self.told.put_nowait(("replied", (reply.status, reply.payload)))

    def broken(self, reason: str) -> None:
        self.told.put_nowait(("broken", reason))

    def ended(self, how: str, counts: bool) -> None:
        self.told.put_nowait(("ended", (how, counts)))

    async def end(self) -> tuple[str, bool]:
        """Wait for the worker's end, whatever is told before."""
        while (told := await self.next())[0] != "ended":
            pass
        how, counts = told[1]
        return how, counts

    async def next(self) -> tuple[str, Any]:
        return await asyncio.wait_for(self.told.get(), LIMIT)


class Taken:
    """Whom GPUs are offered to."""

    def offer(self, gpus: list[int], node: str) -> None:
        pass

    def withdraw(self, gpus: list[int], why: str) -> None:
        pass


class StandIn:
    """The engine that an agent belongs to; it is its cluster, too."""

    ours = head = "127.0.0.1"

    def __init__(self, kernel: Path, marked: Marked, **settings: Any) -> None:
        self.settings = Settings(kernel, boot_timeout=LIMIT, **settings)
        self.cluster = self
        self.nodes: list[Node] = []
        self.links = LinkPort()
        self.line = Line()
        self._port = self.links.listen(["127.0.0.1"])
        self.agent = NodeAgent(self, Node("id", "127.0.0.1", "node-1", 2), [4, 7])  # type: ignore[arg-type]
        self.why: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = True
        self.before = ""  # START, where the agent runs
        self._marked = marked

    def start_agent(self, node: Node, gpus: int, module: str, protocol: Any, **orders: Any) -> str:
        secret = self.links.expect(protocol)
        told = orders | {"host": "127.0.0.1", "port": self._port, "secret": secret}
        if self.starts:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.before + START, module, json.dumps(told)],
                env=self._marked.environment | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"},
            )
        return secret

    def kill_agent(self, node: Node) -> None:
        pass

    def spawn(self, number: int, gpu: int, tell: Tell) -> Any:
        return self.agent.spawn(number, gpu, tell)

    def lost(self, agent: NodeAgent, why: str) -> None:
        self.why.append(why)
        agent.gone(why)

    async def close(self) -> None:
        await self.agent.close()
        self.links.close()
        if self.process is not None:
            await asyncio.to_thread(self.process.wait, LIMIT)


@pytest.fixture
def marked() -> Iterator[Marked]:
    made = Marked()
    try:
        yield made
    finally:
        made.kill()


def invocation(payload: bytes) -> wire.Pieces:
    return [wire.encode_request(Request(wire.INVOKE, payload))]


def test_an_agent_starts_workers_kills_them_and_tells_how_they_ended_and_leaves_none(marked: Marked) -> None:
    async def run() -> None:
        engine = StandIn(KERNELS / "whoami.py", marked)
        await engine.agent.come_up()
        tell = Tell()
        worker = engine.spawn(15, 7, tell)
        assert (await tell.next())[0] == "ready"
        worker.call(invocation(b""))
        what, (status, payload) = await tell.next()
        said = json.loads(payload)
        assert (what, status, said["CUDA_VISIBLE_DEVICES"], said["WORKER_GPU"]) == ("replied", "ok", "GPU-b", "0")
        assert said["pid"] == worker.pid
        worker.kill()
        assert await tell.end() == ("ended by SIGKILL", True)
        other = Tell()
        left = engine.spawn(14, 7, other)
        assert (await other.next())[0] == "ready"
        left.stop()
        assert [told for told in [await other.next()] if told[0] == "ended"] == [
            ("ended", ("ended with exit code 0", True))
        ]
        assert engine.links.refused == 0
        await engine.close()
        assert engine.why == ["its agent's connection has ended"]

    asyncio.run(run())
    marked.assert_nothing_left()


def test_the_end_of_an_agent_is_the_end_of_its_workers_also_of_one_that_hangs(marked: Marked, tmp_path: Path) -> None:
    async def run() -> None:
        engine = StandIn(KERNELS / "wait.py", marked, kill_after=0.5)
        await engine.agent.come_up()
        tell = Tell()
        worker = engine.spawn(15, 7, tell)
        assert (await tell.next())[0] == "ready"
        worker.call(invocation(str(tmp_path / "never").encode()))
        assert engine.process is not None
        engine.process.kill()
        assert await tell.end() == ("its agent's connection has ended", False)
        await engine.close()

    asyncio.run(run())
    marked.assert_nothing_left()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is one shared memory for all")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_workers_are_here_if_their_nodes_have_our_shared_memory_whatever_their_address(
    marked: Marked, elsewhere: bool
) -> None:
    async def run() -> None:
        cluster = StandIn(KERNELS / "echo.py", marked)
        cluster.before = ELSEWHERE * elsewhere
        cluster.nodes = [cluster.agent.node]
        engine = RayEngine(cluster.settings, cluster.why.append)
        engine.cluster, engine.roster = cluster, Taken()  # type: ignore[assignment]
        await engine._start_agents()
        assert cluster.nodes[0].address == cluster.ours
        assert engine.status()["here"] is not elsewhere
        engine.lost(engine._agents["id"], "for now")
        assert engine.status()["here"] is not elsewhere, "it may come back"
        await engine.close()

    asyncio.run(run())
    marked.assert_nothing_left()


def test_a_kernel_that_a_node_does_not_have_is_named(marked: Marked, tmp_path: Path) -> None:
    async def run() -> None:
        engine = StandIn(tmp_path / "elsewhere.py", marked)
        with pytest.raises(UsageError, match=r"node node-1 has no .*/elsewhere\.py: a kernel outside the project must"):
            await engine.agent.come_up()
        await engine.close()

    asyncio.run(run())
    marked.assert_nothing_left()


def test_other_versions_on_a_node_are_named(marked: Marked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "versions", lambda: {"Python": "3.10.0", "numpy": "1.26.0"})

    async def run() -> None:
        engine = StandIn(KERNELS / "echo.py", marked)
        with pytest.raises(
            UsageError, match=r"^node node-1 is set up otherwise: Python is \S+ there and 3\.10\.0 here"
        ):
            await engine.agent.come_up()
        await engine.close()

    asyncio.run(run())
    marked.assert_nothing_left()


def test_a_kernel_that_does_not_load_on_a_node_is_its_own_fault(marked: Marked) -> None:
    async def run() -> None:
        engine = StandIn(KERNELS / "broken_import.py", marked)
        with pytest.raises(UsageError, match="the kernel does not start: it cannot load the kernel"):
            await engine.agent.come_up()
        await engine.close()

    asyncio.run(run())
    marked.assert_nothing_left()


def test_an_agent_that_does_not_come_is_waited_for_no_longer_than_a_boot_may_take(marked: Marked) -> None:
    async def run() -> None:
        engine = StandIn(KERNELS / "echo.py", marked)
        engine.settings = Settings(KERNELS / "echo.py", boot_timeout=0.05)
        engine.starts = False  # its GPUs are another's
        with pytest.raises(ProcessFailed, match=r"node node-1: no agent within 0\.05 s .*: are its GPUs in use\?"):
            await engine.agent.come_up()
        engine.agent.gone("")
        await engine.close()

    asyncio.run(run())


def test_versions_differ_only_where_they_do() -> None:
    ours = {"Python": "3.12.1", "numpy": "2.4.6", "numba": "none"}
    assert facts.difference(ours, dict(ours)) == ""
    assert facts.difference(ours, ours | {"numpy": "2.0"}) == "numpy is 2.0 there and 2.4.6 here"
    assert (
        facts.difference(ours, {"Python": "3.12.1", "numpy": "2.4.6", "ray": "2.60"})
        == "ray is 2.60 there and none here"
    )
