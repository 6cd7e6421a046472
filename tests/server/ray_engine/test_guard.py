"""A node's GPUs in the hands of its agent, over stand-ins of NVIDIA's programs: held under MPS, and put back."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from project import StandIns
from support import Marked, eventually, eventually_swept, read_until

from kaas import ROOT
from kaas.errors import ProcessFailed
from kaas.server.engines.ray.guard import Guard

AS_FOUND = ["Default", "Exclusive_Process"]
HOLDS = """
import asyncio
from kaas.server.engines.ray.guard import Guard
async def run():
    await Guard("").hold(["0", "1"])
    print("held", flush=True)
    await asyncio.sleep(3600)
asyncio.run(run())
"""


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """Put stand-ins of two GPUs on the path, one of them in exclusive mode before anything runs."""
    stand_ins = StandIns(tmp_path / "nvidia", gpus=2)
    stand_ins.set("modes", 1, AS_FOUND[1])
    for name, value in stand_ins.environment.items():
        monkeypatch.setenv(name, value)
    yield stand_ins
    assert stand_ins.modes() == AS_FOUND
    assert not stand_ins.folders_left()


def test_gpus_are_held_under_mps_and_put_back(nvidia: StandIns) -> None:
    async def run() -> None:
        guard = Guard("")
        await guard.hold(["0", "1"])
        assert nvidia.modes() == ["Exclusive_Process", "Exclusive_Process"]
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"].startswith("/tmp/kaas-mps.")
        assert await guard.prove([os.getpid()]) == "0 of 1 workers are clients of MPS server 4711"
        assert await guard.release() == ""

    asyncio.run(run())


def test_what_cannot_be_had_is_said_and_what_was_done_is_undone(nvidia: StandIns) -> None:
    nvidia.set("refuse-mode", "0 EXCLUSIVE_PROCESS")

    async def run() -> None:
        with pytest.raises(ProcessFailed, match="the GPUs could not be prepared: GPUs: GPU GPU-stand-in-0 cannot be"):
            await Guard("").hold(["0", "1"])

    asyncio.run(run())


@pytest.mark.parametrize("whom", ["the agent", "the agent and what it has started, as Ray does"])
def test_when_the_agent_is_killed_all_is_put_back(nvidia: StandIns, whom: str) -> None:
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("kaas-guard.*"))
    marked = Marked({"PYTHONPATH": str(ROOT)} | nvidia.environment)
    with subprocess.Popen([sys.executable, "-c", HOLDS], env=marked.environment, stdout=-1, text=True) as agent:
        read_until(agent, "held\n")
        children = psutil.Process(agent.pid).children() if "started" in whom else []
        assert nvidia.modes() == ["Exclusive_Process", "Exclusive_Process"]
        for process in (psutil.Process(agent.pid), *children):
            process.send_signal(signal.SIGKILL)
    eventually(lambda: nvidia.modes() == AS_FOUND and not nvidia.folders_left())
    marked.assert_nothing_left()
    eventually_swept(lambda: not set(temporary.glob("kaas-guard.*")) - before)
