"""For all tests: the fixtures of a real server, the check that no shared memory is left, and the option --slow."""

import contextlib
import fcntl
import gc
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project
from ray_nodes import Cluster, StartCluster
from stand_in_driver import COMPILER, SOURCE, Card, Driver
from support import Marked, Server, StartServer, command, eventually

_SHARED_MEMORY = Path("/dev/shm")
WITHOUT_LOCKS = """
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int descriptor, int how) {
    char link[64], path[9];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    if (readlink(link, path, sizeof path) == sizeof path && !memcmp(path, "/dev/shm/", sizeof path))
        return (int)syscall(SYS_flock, descriptor, how);
    errno = ENOSYS;
    return -1;
}
"""


def pytest_configure() -> None:
    """Have the programs that tests start heed all signals, though these tests run under nohup or in the background."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:
            # What is ignored stays so in a child, and no shell can trap it there; what is caught does not.
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Have one process more than there are cores, since many tests wait for other processes."""
    return min((os.cpu_count() or 1) + 1, 8)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole be asked for, or one history of the pool."""
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")
    parser.addoption("--history", type=int, help="of the pool's random histories, run only the one with this seed")


def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over what is there by now, the libraries above all: it stays."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless it is asked for, and what needs Ray, where that is not set up."""
    lacking = {}
    if not config.getoption("--slow"):
        lacking["slow"] = "slow: needs --slow"
    if importlib.util.find_spec("ray") is None:
        lacking["ray"] = "needs Ray: scripts/setup --ray, or scripts/test --ray"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test, which fails if one leaves a process behind."""
    yield from _starting_servers(tmp_path)


@pytest.fixture(scope="module")
def start_shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers for all tests of a module that leave them as they are."""
    yield from _starting_servers(tmp_path_factory.mktemp("servers"))


def _starting_servers(parent: Path) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(kernel: str | Path, *arguments: str, python: str | Path = sys.executable, **environment: str) -> Server:
        folder = parent / f"server-{len(servers)}"
        folder.mkdir()
        line = command(kernel, "--drain-timeout", "5", "--kill-after", "5", *arguments, python=python)
        servers.append(Server(folder, line, environment))
        servers[-1].wait_until_listening()
        return servers[-1]

    yield start
    problems = []
    for server in servers:
        try:
            server.end()
        except BaseException as error:  # the others must end, too
            problems.append(error)
    if problems:
        raise problems[0]


@pytest.fixture
def start_cluster() -> Iterator[StartCluster]:
    """Start clusters of simulated nodes that end with the test, which fails if one leaves a process behind."""
    made: list[Cluster] = []
    folder = Path(tempfile.mkdtemp(prefix="kr.", dir="/tmp"))  # pytest's names are too long for sockets

    def start(nodes: int, gpus: int, **environment: str) -> Cluster:
        made.append(Cluster(folder / str(len(made)), nodes, gpus, Marked(environment)))
        made[-1].wait_until_there()
        return made[-1]

    try:
        yield start
        for one in made:
            one.end()
            one.marked.assert_nothing_left()
    finally:
        for one in made:
            one.marked.kill()
            with one.process:  # which closes what we read of it, and waits
                pass
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Give a copy of the project whose script is the laptop's; a process that it leaves behind fails the test."""
    yield from _ending_with_the_test(Project(tmp_path / "project", "autoscale-cpu.sh", "results-autoscaling"))


@pytest.fixture
def gpu_project(tmp_path: Path) -> Iterator[Project]:
    """Give a copy of the project whose script is the one for GPUs."""
    yield from _ending_with_the_test(Project(tmp_path / "project", "autoscale.sh", "results-autoscaling"))


def _ending_with_the_test(copy: Project) -> Iterator[Project]:
    try:
        yield copy
        copy.marked.assert_nothing_left()
    finally:
        copy.marked.kill()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Name the file whose appearance lets an example kernel go on that waits; it does appear at the end."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def _segments() -> set[str]:
    found = set()
    for path in _SHARED_MEMORY.glob("kaas_*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_uid == os.getuid():
                found.add(path.name)
    return found


def _ours(names: set[str]) -> set[str]:
    others = _runs_of_others() if names else set()
    return {name for name in names if name[: len("kaas_") + 8] not in others}


def _runs_of_others() -> set[str]:
    """Give what the names of all segments begin with that are of a run which goes on in other processes.

    As long as it does, the segments of its killed clients are still there, too, and it holds the lock of its file.
    """
    used = {path.stem for path in _SHARED_MEMORY.glob("kaas_*.lock") if _is_held(path)}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                used.update(re.findall(r"/dev/shm/(kaas_\w{8})", maps.read_text(errors="replace")))
    return used


def _is_held(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@pytest.fixture(autouse=True)
def no_shared_memory_is_left() -> Iterator[None]:
    """Fail a test that leaves a segment."""
    before = _segments()
    yield
    # Only those that are there now: a run beside this one may make and remove others all the time.
    if left := _segments() - before:
        eventually(lambda: not _ours(left & _segments()), what=f"nothing is left of {left}")


@pytest.fixture(autouse=True)
def signals_are_handled_as_before() -> Iterator[None]:
    """Undo what a program that ran in this process did: what is ignored here, all that later tests start ignore."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the stand-in of NVIDIA's driver; give the folder of the library."""
    folder = tmp_path_factory.mktemp("libcuda")
    assert COMPILER is not None
    options = ["-O3", "-ffast-math", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *options, "-o", folder / "libcuda.so.1", SOURCE, "-ldl"], check=True)
    return folder


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for what Numba compiles, which all tests of this session share."""
    return tmp_path_factory.mktemp("compiled-kernels")


@pytest.fixture
def without_locks(tmp_path: Path) -> dict[str, str]:
    """Give the environment of a program all of whose files on disk lie on file systems without locks.

    Those in shared memory are locked as ever: others, which run beside it, would take a run for dead that has no lock.
    """
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux's LD_PRELOAD")
    source, library = tmp_path / "flock.c", tmp_path / "flock.so"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}


@pytest.fixture
def driver(card: Card, libcuda: Path, compiled_kernels: Path, tmp_path: Path) -> Driver:
    """Give a stand-in of the driver, for the test's parameter `card`."""
    return Driver(libcuda, tmp_path / "driver", compiled_kernels, card.environment, card.capability)
