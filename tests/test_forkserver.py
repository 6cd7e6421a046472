"""The fork server by itself, as a process whose parent this test is, and what its children print."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT

from kaas import ROOT
from kaas.forkserver import Config

TARGET = """
import sys
import time
from pathlib import Path


def preload(config):
    print("preloading", flush=True)
    while not Path(config["gate"]).exists():
        time.sleep(0.005)


def clean_up(config):
    Path(config["cleaned"]).touch()
"""


def test_a_parent_that_is_gone_before_the_libraries_are_there_is_cleaned_up_after(tmp_path: Path, gate: Path) -> None:
    (tmp_path / "target.py").write_text(TARGET)
    cleaned = tmp_path / "cleaned"
    ours, theirs = socket.socketpair()
    settings = json.dumps({"config": {"gate": str(gate), "cleaned": str(cleaned)}, "kill_after": 1})
    with (
        theirs,
        subprocess.Popen(
            [sys.executable, "-m", "kaas.forkserver", str(theirs.fileno()), "target", settings],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "preloading\n"
        theirs.close()
        ours.close()
        gate.touch()
        _, said = process.communicate(timeout=LIMIT)

    assert (process.returncode, said) == (0, "")
    assert cleaned.exists()


PRINTS = """
import os, sys

def preload(config):
    print("preloads", flush=True)

def run(link, config):
    print("runs", flush=True)
    os.write(2, b"is run\\n")
    if "name" in config:
        raise ValueError("no\\nreason")
    return 0

def clean_up(config):
    print("cleans up", flush=True)
"""

PRINTING = """
import asyncio, sys
from kaas.children import ForkServer

async def main():
    ended = asyncio.Event()
    def on_ended(child, code):
        print("ended", code)
        ended.set()
    forkserver = ForkServer("prints", {}, on_ended, 60)
    await forkserver.start()
    forkserver.spawn(eval(sys.argv[1]))
    await ended.wait()
    await forkserver.close()

asyncio.run(main())
"""


def have_printed(folder: Path, config: Config, shell: str = "") -> "subprocess.CompletedProcess[str]":
    (folder / "prints.py").write_text(PRINTS)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", PRINTING, repr(config)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_what_children_print_comes_to_stderr(tmp_path: Path) -> None:
    done = have_printed(tmp_path, {})
    assert (done.stdout, done.stderr.splitlines()) == ("ended 0\n", ["preloads", "runs", "is run", "cleans up"])


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_without_stderr_what_children_print_does_not_come_to_stdout(tmp_path: Path, closed: str) -> None:
    assert have_printed(tmp_path, {}, closed).stdout == "ended 0\n"


@pytest.mark.parametrize("tracebacks", [False, True])
def test_what_a_child_raises_is_said_in_one_line_with_its_name(tmp_path: Path, tracebacks: bool) -> None:
    done = have_printed(tmp_path, {"name": "worker 1 on GPU 0", "tracebacks": tracebacks})
    assert done.stdout == "ended 1\n"
    said = done.stderr.splitlines()
    assert "worker 1 on GPU 0 ended by an error: ValueError: no reason" in said
    assert (len(said) == 5, "Traceback (most recent call last):" in said) == (not tracebacks, tracebacks)
