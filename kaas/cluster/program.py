"""The agent (agent.py) that runs one of the project's scripts on its node, and says how that ended and what it said."""

import asyncio
import os
import sys
from typing import Any

from kaas import ROOT
from kaas.cluster.agent import Agent


async def serve(at: dict[str, Any]) -> None:
    """Be the agent, to the end of its link (actor.py)."""
    await _Agent().run(at)


class _Agent(Agent):
    async def work(self, orders: dict[str, Any]) -> None:
        """Run the script `command`, with more `environment`; say {"code": exit code, "said": text}."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / orders["command"][0]),
            *orders["command"][1:],
            env=os.environ | orders["environment"] | {"KAAS_PYTHON": sys.executable},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        self.link.send({"code": process.returncode, "said": said.decode(errors="replace")})
        await self.over.wait()
