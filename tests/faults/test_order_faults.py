"""Orders to end that come at a bad moment, and a clock that is stepped."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import eventually
from watch import GATED, StartWatch, faulty_after

from kaas import events

pytest_plugins = "watching"

STEPPED = """
import itertools, time
_real, _steps = time.time, itertools.count()
# An hour back, a day forth, and so on: whoever waits by this clock waits for ever, or not at all.
time.time = lambda: max(_real() + (86_400 if next(_steps) % 2 else -3600), 0.0)
time.time_ns = lambda: int(time.time() * 1e9)  # which logging reads from Python 3.13 on
"""


@pytest.mark.parametrize("in_time", [True, False])
def test_sigterm_while_a_task_runner_boots(watch: StartWatch, tmp_path: Path, gate: Path, in_time: bool) -> None:
    gate.touch()
    kernel = faulty_after(tmp_path / "gated.py", GATED)
    timeout = "60" if in_time else "0.2"
    one = watch(kernel, "-m", "2", "--drain-timeout", timeout, "--kill-after", "1", IMPORT_GATE=str(gate))
    gate.unlink()
    client = one.client()
    asked = client.ask(b"")
    eventually(lambda: one.server.workers("booting"))
    one.send(signal.SIGTERM)
    eventually(lambda: "no new invocations" in one.server.stderr())
    late = client.ask(b"")
    assert client.reply(late).status == "shutting_down"
    if in_time:
        gate.touch()
    assert client.reply(asked).status == ("ok" if in_time else "shutting_down")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_some_are_served_some_queued_and_some_boot(
    watch: StartWatch, tmp_path: Path, gate: Path, number: signal.Signals
) -> None:
    imports = tmp_path / "imports"
    imports.touch()
    kernel = faulty_after(tmp_path / "gated.py", GATED)
    arguments = ("-g", "2", "-m", "2", "--when-full", "queue", "--drain-timeout", "600", "--kill-after", "600")
    one = watch(kernel, *arguments, IMPORT_GATE=str(imports))
    client = one.client()
    asked = [client.wait(gate), client.wait(gate)]
    one.wait_until_busy(2)
    imports.unlink()
    asked += [client.wait(gate) for _ in range(4)]
    eventually(lambda: one.server.status()["queued"] == 2 and len(one.server.workers("booting")) == 2)
    one.send(number)
    eventually(lambda: "no new invocations" in one.server.stderr())
    one.send(number)
    assert [client.reply(one_asked).status for one_asked in asked] == ["shutting_down"] * 6


def test_sigterm_while_a_worker_hangs(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1", "--drain-timeout", "0.2", "--kill-after", "0.2")
    client = one.client()
    asked = client.ask("ignore-signals-and-hang")
    one.wait_until_busy(1)
    one.send(signal.SIGTERM)
    assert client.reply(asked).status == "shutting_down"


def test_sigterm_while_lost_workers_are_replaced(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2")
    assert one.invoke("exit-at-once").status == "worker_lost"
    one.send(signal.SIGTERM)


def test_a_clock_that_is_stepped_all_the_time_changes_nothing(watch: StartWatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STEPPED)
    limits = ("--idle-timeout", "1", "--call-timeout", "3", "--queue-timeout", "0.5", "--when-full", "queue")
    one = watch("faulty", "-m", "1", *limits, PYTHONPATH=str(tmp_path))
    for _ in range(3):
        assert one.invoke().status == "ok"
    client = one.client()
    hangs, queued = client.ask("hang"), client.ask(b"")
    assert b"--queue-timeout" in client.reply(queued).payload
    assert one.invoke("hang", timeout=0.2).status == "timeout"
    assert b"--call-timeout" in client.reply(hangs).payload
    assert one.invoke().status == "ok"
    eventually(lambda: "stopped" in one.server.names_of_events())
    assert one.invoke().cold_start
    said = one.server.events()
    assert {event.event for event in said} <= set(events.EVENTS)
    stamps = [event.timestamp for event in said]
    assert stamps == sorted(stamps)
    logged = [line.partition(" server ")[0] for line in one.server.stderr().splitlines() if " server " in line]
    assert logged == sorted(logged)
    asked = "import time; print(abs(time.time() - time.time()) > 3600)"
    line = [sys.executable, "-c", asked]
    stepped = subprocess.run(line, env={"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, text=True, check=True)
    assert stepped.stdout == "True\n", "the clock is not stepped"


def test_sigterm_twice_ends_a_server_whose_fork_server_is_stopped(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "2", "--drain-timeout", "600", "--kill-after", "600")
    client = one.client()
    asked = client.wait(gate)
    one.wait_until_busy(1)
    one.server.forkserver().suspend()
    one.send(signal.SIGTERM)
    eventually(lambda: "no new invocations" in one.server.stderr())
    one.send(signal.SIGTERM)
    assert client.reply(asked).status == "shutting_down"
