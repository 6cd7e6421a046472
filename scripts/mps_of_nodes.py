"""Says, in one line, how many workers of a server over several nodes are clients of MPS: `mps_of_nodes.py HOST:PORT`.

The exit code is 1 if some are not, or if that cannot be told.
"""

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kaas import cli
from kaas.client import Connection

LIMIT = 30.0


def main() -> int:
    with Connection(sys.argv[1]) as server:
        deadline = time.monotonic() + LIMIT
        while True:  # a query has the agents look, and a later one has what they found
            agents = server.status()["engine"]["agents"]
            if all(agent["mps"] for agent in agents) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    print("; ".join(f"node {agent['node']}: {agent['mps'] or 'not told'}" for agent in agents))
    counted = [re.match(r"(\d+) of (\d+) workers ", agent["mps"]) for agent in agents]
    return 0 if all(found and found[1] == found[2] for found in counted) else 1


if __name__ == "__main__":
    cli.run(main)
