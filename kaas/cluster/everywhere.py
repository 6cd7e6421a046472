"""Runs one of the project's scripts on every node of a Ray cluster, and says what each said.

    python -m kaas.cluster.everywhere --ray-address ADDRESS [--link-host HOST] [--link-port PORT]
        [--pass NAME,...] [--count] SCRIPT ARGUMENT...

The variables that --pass names are those of this program there. `{nodes}` in an argument is how many nodes there are;
`{node}` in what a script says is what its node is called, which else stands before each line.
The exit code is the largest of the script's; with --count, what was said goes to stderr, and the number of all GPUs to
stdout.
"""

import argparse
import asyncio
import os
import sys
from typing import TextIO

from kaas import cli
from kaas.cluster.cluster import Joining
from kaas.cluster.lines import Message
from kaas.cluster.members import Member, Members
from kaas.errors import ProcessFailed

_LIMIT = 60.0
_PATIENCE = 300.0
"""Seconds in which an agent is there, and the script has ended."""


class _Everywhere:
    def __init__(self, joining: Joining) -> None:
        self._members = Members(
            joining, "kaas.cluster.program", told=self._told, lost=self._lost, say=_say, limit=_LIMIT
        )
        self._answers: dict[str, asyncio.Future[tuple[int, str]]] = {}  # by the nodes' ids

    async def run(self, command: list[str], environment: dict[str, str], *, count: bool) -> int:
        """Run the script on each node; say what it said, and return the largest exit code."""
        await self._members.start()
        try:
            nodes = self._members.nodes()
            filled = [word.replace("{nodes}", str(len(nodes))) for word in command]
            loop = asyncio.get_running_loop()
            self._answers = {node.id: loop.create_future() for node in nodes}
            orders = {"command": filled, "environment": environment}
            await asyncio.gather(*(self._members.add(node, orders) for node in nodes))
            worst = 0
            for node in nodes:
                await asyncio.wait((self._answers[node.id],), timeout=_PATIENCE)
                if not self._answers[node.id].done():
                    raise ProcessFailed(f"node {node.label}: {command[0]} has not ended after {_PATIENCE:g} s")
                code, said = self._answers[node.id].result()
                worst = max(worst, code)
                for line in said.splitlines():
                    named = line if "{node}" in said else f"node {{node}}: {line}"
                    _say(named.replace("{node}", node.label), sys.stderr if count else sys.stdout)
            if count:
                _say(str(sum(node.gpus for node in nodes)), sys.stdout)
            return worst
        finally:
            await self._members.close()

    def _told(self, member: Member, message: Message) -> None:
        self._answers[member.node.id].set_result((message["code"], message["said"]))

    def _lost(self, member: Member) -> None:
        answer = self._answers[member.node.id]
        if not answer.done():
            answer.set_result((1, f"node {member.node.label} is lost: {member.why}"))


def _say(text: str, file: TextIO | None = None) -> None:
    print(text, file=file or sys.stderr, flush=True)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray-address", required=True)
    parser.add_argument("--link-host", default="")
    parser.add_argument("--link-port", type=cli.port, default=0)
    parser.add_argument("--pass", dest="names", type=cli.names, default=())
    parser.add_argument("--count", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    joining = Joining(arguments.ray_address, link_host=arguments.link_host, link_port=arguments.link_port, prints=False)
    environment = {name: os.environ[name] for name in arguments.names if name in os.environ}

    async def run() -> int:
        return await _Everywhere(joining).run(arguments.command, environment, count=arguments.count)

    return asyncio.run(run())


if __name__ == "__main__":
    cli.run(main)
