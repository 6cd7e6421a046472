"""The server as process 1, as in a container, where nobody else reaps what has lost its parent."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import LIMIT, Server, command, eventually

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not has_namespaces(), reason="this user, or system, makes no process namespaces")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, [*NAMESPACE, *command("orphans", "-m", "2")], {})
    try:
        server.wait_until_listening()
        yield server
        (process,) = psutil.Process(server.process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT) == 0
        server.marked.assert_nothing_left()
    finally:
        server.marked.kill()
        server.process.wait(LIMIT)


def test_what_a_kernels_programs_leave_behind_is_reaped(started: Server) -> None:
    (first,) = psutil.Process(started.process.pid).children()

    def zombies() -> list[psutil.Process]:
        found = []
        for process in first.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    with started.connection() as kaas:
        for _ in range(40):
            assert kaas.invoke(b"x").status == "ok"
        # The one child of process 1 is the fork server: what was left behind is nobody else's, and then gone.
        eventually(lambda: not zombies() and len(first.children()) == 1)
        (forkserver,) = first.children()
        eventually(lambda: len(forkserver.children()) == 2, what="only the two workers are left")
