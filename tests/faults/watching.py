"""The fixture `watch` of the fault suite: servers that are checked when a test's fault is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Server, command
from watch import StartWatch, Watch, shell_line


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[StartWatch]:
    """Start watched servers. Each is checked when the test is over, and ends."""
    watched: list[Watch] = []
    servers: list[Server] = []

    def start(kernel: str | Path = "faulty", *arguments: str, shell: str = "", **environment: str) -> Watch:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        line = command(kernel, "--drain-timeout", "5", "--kill-after", "5", *arguments)
        servers.append(Server(folder, shell_line(shell, line), environment))
        servers[-1].wait_until_listening()
        watched.append(Watch(servers[-1], folder / "gate"))
        return watched[-1]

    try:
        yield start
        for one in watched:
            one.assert_well()
        for server in servers:
            server.end()
    finally:
        for one in watched:
            one.close()
        for server in servers:
            server.process.kill()
            server.process.wait()
            server.marked.kill()
