"""The fork server by itself, as a process whose parent this test is."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from kaas import ROOT

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
        _, said = process.communicate(timeout=60)

    assert (process.returncode, said) == (0, "")
    assert cleaned.exists()
