"""What a run had that was killed whole is removed by the next, and what is alive or another user's is left."""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import LIMIT, Marked, eventually

from kaas import ROOT, compiled, leftovers, locks, segments
from kaas.leftovers import Scratch
from kaas.locks import Holder

SHARED_MEMORY = Path("/dev/shm")
only_linux = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="only Linux shows which segments there are")
# What says who is alive, apart: other runs of this user on this machine sweep, too.
APART = """
import os
from pathlib import Path
from kaas import leftovers
leftovers._home = lambda: Path(os.environ["TEST_HOME"])
"""
# Makes a scratch folder, a file in it and two segments, and never gives them back.
HOLDS = f"""{APART}
import time
from kaas import segments
from kaas.leftovers import Scratch
scratch = Scratch()
(scratch.folder / "matrix.npy").write_bytes(bytes(1000))
os.environ["KAAS_RUN"] = scratch.run
kept = [segments.create(500_000) for _ in range(2)]
print(scratch.run, scratch.folder, flush=True)
time.sleep(600)
"""
# Makes the folder of a Ray, and has another process beside it that ends that Ray.
HOLDS_RAY = f"""{APART}
import subprocess, sys, time
from kaas.cluster.local_ray import make_folder
scratch = make_folder()
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep, pass_fds=scratch.descriptors(), stdout=subprocess.DEVNULL)
print(scratch.run, scratch.folder, flush=True)
time.sleep(600)
"""
CLIENT = """
import time
from kaas import segments
def run_client(arg):
    memory = segments.create(500_000)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have temporary files, and what says who is alive, of this test alone."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(leftovers, "_home", lambda: tmp_path / "home")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


class Holding:
    """A process that has what a run has."""

    def __init__(self, home: Path, program: str = HOLDS, **environment: str) -> None:
        self._home = home
        self.marked = Marked({"PYTHONPATH": str(ROOT), "TEST_HOME": str(home)} | environment)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=self.marked.environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        with self.process.stdout:
            self.run, folder = self.process.stdout.readline().split()
        self.folder = Path(folder)

    def files(self) -> list[Path]:
        """List its segments, what says that it is alive, and its folder."""
        found = [*SHARED_MEMORY.glob(f"kaas_{self.run}*"), self._home / f"kaas_{self.run}.lock", self.folder]
        return [path for path in found if path.exists()]

    def kill(self) -> None:
        """Kill all of it at once, the process included that would clean up."""
        for line in self.marked.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.partition(":")[0]), signal.SIGSTOP)
        self.marked.kill()
        self.process.wait()
        self.marked.assert_nothing_left()


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Holding]:
    made = Holding(tmp_path / "home")
    yield made
    made.kill()
    leftovers.sweep()


@only_linux
def test_what_a_dead_run_left_is_removed_and_said_in_one_line(holding: Holding) -> None:
    holding.kill()
    assert len(holding.files()) == 4
    said = leftovers.sweep()
    assert re.fullmatch(r"removed what .* had left: 2 segments .*\(1\.0 MB\) and 1 temporary folder", said)
    assert holding.files() == []
    assert leftovers.sweep() == ""


@only_linux
def test_what_a_living_run_has_is_left(holding: Holding) -> None:
    with contextlib.closing(Scratch()) as ours:
        before = holding.files()
        assert len(before) == 4
        assert leftovers.sweep() == ""
        assert holding.files() == before
        assert ours.folder.exists()


@only_linux
def test_where_there_are_no_locks_the_living_are_told_from_the_dead_all_the_same(
    tmp_path: Path, without_locks: dict[str, str]
) -> None:
    holding = Holding(tmp_path / "home", **without_locks)
    sweep = [sys.executable, "-c", f"{APART}\nprint(leftovers.sweep())"]
    sweeping = {"env": holding.marked.environment, "text": True, "timeout": LIMIT}
    try:
        assert subprocess.check_output(sweep, **sweeping) == "\n"  # type: ignore[call-overload]
        assert len(holding.files()) == 4
        holding.kill()
        assert "2 segments" in subprocess.check_output(sweep, **sweeping)  # type: ignore[call-overload]
        assert holding.files() == []
    finally:
        holding.kill()
        leftovers.sweep()


def test_the_folder_of_a_ray_is_left_as_long_as_somebody_is_there_to_end_it_and_then_removed(tmp_path: Path) -> None:
    holding = Holding(tmp_path / "home", HOLDS_RAY)
    try:
        assert holding.folder.name.startswith("kaas-ray.")
        assert len(f"{holding.folder}") <= len("/tmp/kaas-ray.12345678"), "so are its sockets' names"
        holding.process.kill()
        holding.process.wait()
        assert leftovers.sweep() == ""
        assert holding.folder.exists()
        holding.kill()
        assert leftovers.sweep() == "removed what runs that were killed had left: 1 temporary folder"
        assert holding.files() == []
    finally:
        holding.kill()
        shutil.rmtree(holding.folder, ignore_errors=True)


@only_linux
def test_segments_of_which_nothing_is_known_are_left() -> None:
    memory = segments.create(8)  # of a client that was started by hand
    try:
        assert leftovers.sweep() == ""
        assert (SHARED_MEMORY / memory.name).exists()
    finally:
        segments.close(memory)
        segments.unlink(memory)


@pytest.mark.parametrize("folder", ["/etc", "precious", "kaas-link"])
def test_no_folder_is_removed_that_no_run_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(leftovers, "_home", lambda: tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "kaas-link").symlink_to(tmp_path / "precious")
    dead = Holder.of(os.getpid())._replace(started="1")
    (tmp_path / "kaas_01234567.lock").write_text(f"{json.dumps(dead._asdict())}\n{tmp_path / folder}")
    assert leftovers.sweep() == ""
    assert Path(tmp_path, folder).exists()
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_what_is_another_users_is_left(holding: Holding, tmp_path: Path) -> None:
    holding.kill()
    (path,) = (tmp_path / "home").iterdir()
    os.chown(path, 65534, 65534)
    before = holding.files()
    assert leftovers.sweep() == ""
    assert holding.files() == before
    os.chown(path, 0, 0)


@pytest.mark.parametrize("name", ["kaas_.lock", "kaas_0.lock", "kaas_*.lock", "kaas_0123ABCD.lock"])
def test_a_file_that_names_no_run_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(segments, "FOLDER", tmp_path)
    monkeypatch.setattr(leftovers, "_home", lambda: tmp_path)
    (tmp_path / name).touch()
    (tmp_path / f"kaas_0{'1' * 19}").touch()
    assert leftovers.sweep() == ""
    assert len(list(tmp_path.glob("kaas_*"))) == 2


def test_the_temporary_folders_of_a_script_that_was_killed_are_removed_and_of_a_living_one_left(tmp_path: Path) -> None:
    script = f"""
        scratch=$(mktemp -d "$TMPDIR/kaas-report.XXXXXX") sockets=$(mktemp -d "$TMPDIR/kaas.XXXXXX")
        exec 8<>"$scratch/.lock"
        "{sys.executable}" "{ROOT}/scripts/hold.py" 8 "$scratch/.lock" "$scratch" "$sockets"
        echo held
        exec cat
    """
    (tmp_path / "tmp" / "kaas-another's").mkdir()
    process = subprocess.Popen(["bash", "-euc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert leftovers.sweep() == ""
        assert len(list((tmp_path / "tmp").iterdir())) == 3
    finally:
        process.kill()
        process.communicate()
    assert leftovers.sweep() == "removed what runs that were killed had left: 2 temporary folders"
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["kaas-another's"]


def test_the_folder_for_what_is_compiled_is_one_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_unwritable", lambda folder: "" if "kaas-compiled-" in folder.name else "full")
    removers: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: removers.append(functools.partial(*call)))
    monkeypatch.setattr(compiled, "_spare", None)

    compiled.find_room()

    (lock,) = leftovers._home().iterdir()
    assert compiled._spare is not None
    assert str(compiled._spare) in lock.read_text()
    (remove,) = removers
    remove()
    assert not lock.exists()
    assert not compiled._spare.exists()


def test_a_run_leaves_nothing_that_ends_in_order(tmp_path: Path) -> None:
    scratch = Scratch()
    paths = [scratch.folder, *(tmp_path / "home").iterdir()]
    assert len(paths) == 2
    assert all(path.exists() for path in paths)
    scratch.close()
    assert not any(path.exists() for path in paths)


def test_a_file_that_is_taken_for_a_dead_runs_before_it_is_locked_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, True]
    monkeypatch.setattr(locks, "lock", lambda descriptor: answers.pop(0))
    with contextlib.closing(Scratch()) as scratch:
        assert answers == []
        assert scratch.folder.exists()


@only_linux
def test_the_load_generator_says_what_a_load_left_that_was_killed_whole(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    marked = Marked({"PYTHONPATH": str(ROOT), "TEST_HOME": str(tmp_path / "home")})
    program = f"{APART}\nimport runpy\nrunpy.run_path({str(ROOT / 'load.py')!r}, run_name='__main__')"
    ramp = ["--min-parallel", "2", "--max-parallel", "2", "--interval"]

    def load(task: str, client: str, interval: str) -> "subprocess.Popen[str]":
        names = ["--input", "1", "--experiment-name", "x", "--task-name", task, "--server", "none"]
        line = [sys.executable, "-c", program, "--client", client, *names, *ramp, interval]
        environment = marked.environment
        return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    def held() -> set[str]:
        return {path.name for path in SHARED_MEMORY.glob(f"{run.stem}*")}

    killed = load("a", "client.py", "600")
    try:
        (tmp_path / "quick.py").write_text("def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n")
        (run,) = eventually(lambda: list((tmp_path / "home").glob("kaas_*.lock")))
        eventually(lambda: len(held()) == 2)
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that nobody sees another die
            for line in marked.left():
                os.kill(int(line.partition(":")[0]), number)
        killed.communicate()
        marked.assert_nothing_left()
        assert len(held()) == 2
        after = load("b", "quick.py", "0.5")
        said, _ = after.communicate(timeout=LIMIT)
        assert re.search(r"^removed what .* had left: 2 segments .* and 1 temporary folder", said, re.MULTILINE)
        assert after.returncode == 0
        assert not held()
        assert not list((tmp_path / "tmp").iterdir())
    finally:
        marked.kill()
        shutil.rmtree(tmp_path / "tmp")
        (tmp_path / "tmp").mkdir()
