"""Kernels that do in a call what they should not: their client is told, and nobody else notices."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from support import LIMIT, eventually, exists
from watch import StartWatch, Watch

pytest_plugins = "watching"

MEGABYTE = 1024 * 1024


def only_pid(one: Watch) -> int:
    return int(one.wait_until_idle(1)[0]["pid"])


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("raise a matter of fact", "ValueError: a matter of fact (faulty.py, line "),
        ("raise \x1b[31m red\nnext", r"ValueError: \x1b[31m red next (faulty.py, line "),
        ("raise-speechless", "SpeechlessError: (what it says cannot be had) (faulty.py, line "),
        ("exit", "SystemExit: 3 (faulty.py, line "),
        ("text", "TypeError: call() returned str, not bytes"),
        (f"zeros {MEGABYTE + 1}", "--message-size"),
    ],
    ids=[
        "raises",
        "raises what a terminal obeys",
        "raises what has no text",
        "calls sys.exit",
        "returns the wrong type",
        "returns more than the limit",
    ],
)
def test_its_error_is_told_and_the_worker_stays(watch: StartWatch, deed: str, text: str) -> None:
    one = watch("faulty", "-m", "1", "--message-size", str(MEGABYTE))
    pid = int(one.invoke().payload)
    for _ in range(3):
        reply = one.invoke(deed)
        assert reply.status == "kernel_error"
        assert text in reply.payload.decode()
    assert only_pid(one) == pid
    assert one.invoke(f"zeros {MEGABYTE}").payload == bytes(MEGABYTE)


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("segfault", "ended by SIGSEGV"),
        ("exit-at-once", "ended with exit code 3"),
        pytest.param(
            "signal 35",
            "ended by signal 35",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="real-time signals are Linux's"),
        ),
    ],
)
def test_its_process_ends_and_is_replaced(watch: StartWatch, deed: str, text: str) -> None:
    one = watch("faulty", "-m", "2", shell="ulimit -c 0")
    for _ in range(6):  # more often than boots may fail
        reply = one.invoke(deed)
        assert reply.status == "worker_lost"
        assert text in reply.payload.decode()
    one.wait_until_idle(2)
    assert one.server.names_of_events().count("lost") == 6


def test_it_forks_and_both_processes_come_back(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1")
    pid = int(one.invoke().payload)
    for _ in range(3):
        assert int(one.invoke("fork").payload) == pid
    assert only_pid(one) == pid


@pytest.mark.parametrize("ends", ["crashes", "is killed"])
def test_a_process_that_it_forked_dies_with_its_worker(watch: StartWatch, ends: str) -> None:
    one = watch("faulty", "-m", "1")
    child = int(one.invoke("fork-and-keep").payload)
    assert exists(child)
    if ends == "crashes":
        assert one.invoke("segfault").status == "worker_lost"
    else:
        os.kill(only_pid(one), signal.SIGKILL)
    eventually(lambda: not exists(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_it_forked_ends_with_the_server(watch: StartWatch, number: signal.Signals) -> None:
    one = watch("faulty", "-m", "1")
    child = psutil.Process(int(one.invoke("fork-and-keep").payload))
    one.send(number)
    one.server.wait()
    assert not psutil.wait_procs([child], LIMIT)[1]


@pytest.mark.parametrize("megabytes", [16, pytest.param(3 * 1024, marks=pytest.mark.slow)])
def test_it_prints_a_lot(watch: StartWatch, tmp_path: Path, megabytes: int) -> None:
    # Its stdout is the server's stderr: written to the end of the file, so that it may be cut off.
    one = watch("faulty", "-m", "2", shell="exec 2>>server-stderr")
    said = one.server.stderr()
    reply = one.invoke(f"print {megabytes}")
    file = tmp_path / "server-0" / "server-stderr"
    assert reply.status == "ok"
    assert file.stat().st_size >= megabytes * MEGABYTE
    os.truncate(file, len(said))
    eventually(lambda: one.server.names_of_events() == ["booted", "ready", "ready"])
