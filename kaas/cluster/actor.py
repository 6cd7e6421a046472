"""What Ray makes an actor of, whatever the agent in it is for."""

import asyncio
import importlib
from typing import Any


class Actor:
    """Runs one agent on its node."""

    def run(self, module: str, orders: dict[str, Any]) -> None:
        """Be an agent, to the end of its link.

        Args:
            module: name of the module whose `serve` it is.
            orders: `host`, `port` and `secret` of the link, and what else that module says.
        """
        asyncio.run(importlib.import_module(module).serve(orders))
