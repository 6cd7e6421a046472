"""The tests themselves: what they find does not depend on how they are started, or on what runs beside them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, eventually

from kaas import ROOT, segments

HEEDS = """
import signal, subprocess, sys
def test_a_child():
    code = "import signal; print(*(signal.getsignal(n) != signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True True\\n"
"""

LEAVES = """
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
def test_a_leak():
    SharedMemory({name!r}, create=True, size=8).close()
    resource_tracker.unregister("/" + {name!r}, "shared_memory")
"""

WAITS = """
import pathlib, sys, time
def test_nothing():
    pathlib.Path({begun!r}).touch()
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
"""


def suite(test: Path, *shell: str) -> "subprocess.Popen[str]":
    """Start the tests of a file, under this suite's conftest.py."""
    # A limit of 1 s: here it is to be waited out.
    program = "import sys, pytest, support; support.eventually.__defaults__ = (1.0, ''); sys.exit(pytest.main())"
    return subprocess.Popen(
        [
            *shell,
            sys.executable,
            "-c",
            program,
            "-p",
            "conftest",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            test,
        ],
        cwd=test.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_programs_that_tests_start_heed_signals_though_the_suite_was_told_to_ignore_them(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HEEDS)
    process = suite(tmp_path / "test_it.py", "/bin/sh", "-c", 'trap "" HUP INT && exec "$@"', "sh")
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux shows which segments there are")
def test_a_segment_that_a_test_leaves_fails_it_and_one_that_somebody_else_uses_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"kaas_{segments.draw_run()}{12 * '0'}"
    (tmp_path / "test_it.py").write_text(LEAVES.format(name=name))
    try:
        said, _ = suite(tmp_path / "test_it.py").communicate(timeout=LIMIT)
        # There may be others' that were made meanwhile.
        assert re.search(f"nothing is left of {{.*'{name}'.*}}", said), said
    finally:
        Path("/dev/shm", name).unlink(missing_ok=True)

    begun, gate = tmp_path / "begun", tmp_path / "gate"
    (tmp_path / "test_it.py").write_text(WAITS.format(begun=str(begun), gate=str(gate)))
    with suite(tmp_path / "test_it.py") as process:
        eventually(begun.exists)
        monkeypatch.setenv("KAAS_RUN", segments.draw_run())
        of_a_killed_client, ours = segments.create(8), segments.create(8)
        try:
            segments.close(of_a_killed_client)
            gate.touch()
            said, _ = process.communicate(timeout=LIMIT)
        finally:
            segments.close(ours)
            segments.unlink(of_a_killed_client)
            segments.unlink(ours)
    assert process.returncode == 0, said


def test_ci_runs_every_slow_test_over_ray_whichever_file_it_is_in() -> None:
    (line,) = (line for line in (ROOT / ".ci" / "run").read_text().splitlines() if " -m pytest " in line)
    _, _, _, *arguments = shlex.split(line)
    assert arguments[:3] == ["--slow", "-m", "slow and ray"]
    assert not [argument for argument in arguments if argument.startswith("tests")], "by its marks alone"
