"""Running another program with a limit."""

import sys
from pathlib import Path

import pytest
from support import eventually

from kaas import programs


def python(code: str, limit: float = 60.0, told: str = "") -> programs.Answer:
    return programs.run(sys.executable, "-c", code, limit=limit, told=told)


def test_a_program_reads_what_it_is_told_and_what_it_says_comes_back_with_its_exit_code() -> None:
    code = "import sys; print(input()); print('no', file=sys.stderr); sys.exit(3)"

    assert python(code, told="hello\n") == (3, "hello\n", "no\n")


def test_a_program_that_is_not_there_is_said_to_be_so() -> None:
    assert programs.run("no-such-program", limit=1) == (
        programs.NOT_FOUND,
        "",
        "no-such-program is not on PATH",
    )


def test_a_program_that_takes_too_long_is_killed_and_what_it_said_is_kept() -> None:
    code, out, err = python("import time; print('first', flush=True); time.sleep(3600)", limit=2)

    assert (code, out) == (programs.LATE, "first\n")
    assert "took over 2 s and was killed" in err


def test_a_daemon_that_keeps_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    daemon = f"""
import os, pathlib, time
print("starting", flush=True)
if not os.fork():
    while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)
    print("still here", flush=True)
    pathlib.Path({str(done)!r}).touch()
"""
    try:
        assert python(daemon).out == "starting\n"
    finally:
        gate.touch()
    eventually(done.exists, what="the daemon has said more, unharmed")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no file that lies in memory")
def test_no_room_in_the_temporary_folder_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))

    assert python("print('said')").out == "said\n"


def test_bytes_that_are_no_text_hinder_nothing() -> None:
    out = python("import sys; sys.stdout.buffer.write(b'GPU \\xff\\n')").out

    assert out.startswith("GPU ")


def test_the_servers_token_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TOKEN", "secret")

    assert python("import os; print('KAAS_TOKEN' in os.environ)").out == "False\n"


def test_a_program_that_reads_nothing_may_be_told_something() -> None:
    assert python("pass", told="x" * 1_000_000).code == 0
