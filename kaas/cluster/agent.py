"""What an agent that is told things over its link has in common with all others of its kind: the link, and its clock.

{"clock": number}    to it, answered at once by    {"clock": number, "monotonic": its time.monotonic}
{"versions": {...}}    first, from it
{"orders": {...}}    first, to it: what it is for; not by Ray, which keeps what it is told
{"say": text}    from it: a line for the user
{"error": text}    from it, last: why it cannot go on
{"close": true}    to it: it is to end
"""

import asyncio
import time
from typing import Any

from kaas.cluster import facts
from kaas.cluster.lines import Lines, Message
from kaas.cluster.links import connect_agent
from kaas.errors import KaasError


class Agent:
    """One agent, from its link's begin to its end; a module has its own that says what it does in `work`."""

    def __init__(self) -> None:
        self.link = Lines(self._told, self._link_ended)
        self.over = asyncio.Event()
        self._orders: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def run(self, at: dict[str, Any]) -> None:
        """Be the agent.

        Args:
            at: `host`, `port` and `secret` of the link.

        Raises:
            ProcessFailed: the link cannot be made.
        """
        link = await connect_agent(at)
        await asyncio.get_running_loop().create_connection(lambda: self.link, sock=link)
        self.link.send({"versions": facts.versions()})
        over = asyncio.create_task(self.over.wait())
        await asyncio.wait((over, self._orders), return_when=asyncio.FIRST_COMPLETED)
        try:
            if self._orders.done():
                await self.work(self._orders.result())
        except KaasError as error:
            self.link.send({"error": str(error)})
        over.cancel()
        self.link.close()

    async def work(self, orders: dict[str, Any]) -> None:
        """Do what it is for, until `over` is set."""
        raise NotImplementedError

    def told(self, message: Message) -> None:
        """Take what is said to it besides."""

    def say(self, text: str) -> None:
        """Tell the user a line."""
        self.link.send({"say": text})

    def _told(self, message: Message) -> None:
        if "clock" in message:
            self.link.send({"clock": message["clock"], "monotonic": time.monotonic()})
        elif "orders" in message:
            self._orders.set_result(message["orders"])
        elif "close" in message:
            self.over.set()
        else:
            self.told(message)

    def _link_ended(self) -> None:
        self.over.set()
