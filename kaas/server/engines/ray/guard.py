"""Holds a node's GPUs for the agent there, by the same guard as on one machine: scripts/gpu_guard.py.

That puts them back when it is told to end, or when the agent is gone, however that was.
"""

import asyncio
import os
import sys
from collections.abc import Sequence

from kaas import ROOT, nvidia
from kaas.errors import ProcessFailed
from kaas.leftovers import Scratch

PATIENCE = 150.0
"""Seconds that it may take to put everything back: the daemon of MPS has its own, and so has each GPU."""
_GUARD = str(ROOT / "scripts" / "gpu_guard.py")
_PIPE = "CUDA_MPS_PIPE_DIRECTORY"
_EVERY = 0.1
# Ray kills the children of an actor that ends, and the guard must not be cut short: it is a grandchild, in a session of
# its own, and finds that its parent is gone.
_BETWEEN = """
"$@" & guard=$!
trap 'kill "$guard"' TERM
while kill -0 "$guard" 2>/dev/null; do wait "$guard"; code=$?; done
exit "$code"
"""


class Guard:
    """One node's GPUs, from `hold` to `release`.

    Args:
        sudo: how to become root; "" for not at all.
    """

    def __init__(self, sudo: str) -> None:
        self._sudo = sudo
        self._scratch = Scratch("guard.")
        self._process: asyncio.subprocess.Process | None = None
        self._said: asyncio.Task[bytes] | None = None

    async def hold(self, devices: Sequence[str]) -> None:
        """Have GPUs in exclusive mode, under MPS; what is started from now on is a client of it.

        Args:
            devices: what CUDA calls them here.

        Raises:
            ProcessFailed: they cannot be had, and are as they were.
        """
        found, answer = nvidia.found()
        names, note = nvidia.given(",".join(devices) or None, found)
        if not names:
            raise ProcessFailed(f"no GPU for MPS: {note or answer.said or 'nvidia-smi finds none'}")
        folder = self._scratch.folder
        ready = folder / "pipe"
        own = ("--supervised", str(os.getpid()), "--ready", str(ready), "--logs", str(folder / "none"))
        guard = (sys.executable, _GUARD, "hold", *own, *names)
        self._process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _BETWEEN, "sh", *guard),
            env=os.environ | {"SUDO": self._sudo},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._said = asyncio.create_task(self._process.stdout.read())
        while not ready.exists():
            if self._said.done():
                raise ProcessFailed(f"the GPUs could not be prepared: {await self.release() or 'the guard ended'}")
            await asyncio.sleep(_EVERY)
        os.environ[_PIPE] = pipe = ready.read_text()
        if pipe.startswith("/tmp/kaas-mps."):  # noqa: S108 - what a site sets for a daemon of its own is none of ours
            os.environ.pop("CUDA_MPS_PROTOCOL_VERSION", None)

    async def prove(self, pids: Sequence[int]) -> str:
        """Say how many of these processes are clients of MPS."""
        asked = await asyncio.create_subprocess_exec(
            *(sys.executable, _GUARD, "proof", *map(str, pids)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asked.communicate()
        return " ".join(said.decode(errors="replace").split())

    async def release(self) -> str:
        """Put everything back as it was found; return what went wrong, if anything did."""
        said, code = b"", 0
        if self._process is not None and self._said is not None:
            if self._process.returncode is None and not self._said.done():
                self._process.terminate()
            said = await self._said
            code, self._process = await self._process.wait(), None
        self._scratch.close()
        return " ".join(said.decode(errors="replace").split()) if code else ""
