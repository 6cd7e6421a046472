"""Workers that are killed, stopped, hang or do not boot: what they had is answered, and their places serve again."""

import os
import signal
from pathlib import Path

import pytest
from support import eventually, exists
from watch import GATED, StartWatch, faulty_after

pytest_plugins = "watching"

# Nothing at the end of these tests: what follows every fault is checked by the fixture `watch` (watching.py).


def test_a_worker_killed_while_idle(watch: StartWatch) -> None:
    one = watch("faulty", "-g", "2", "-m", "2")
    assert one.invoke().status == "ok"
    for killed, worker in enumerate(one.wait_until_idle(2), 1):
        os.kill(worker["pid"], signal.SIGKILL)
        assert one.invoke().status in {"ok", "worker_lost"}, "the server may not know yet, and hand it over"
        eventually(lambda: one.server.names_of_events().count("lost") == killed)  # noqa: B023
        assert one.invoke().status == "ok"


def test_a_worker_killed_in_a_call(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "2")
    client = one.client()
    asked = [client.wait(gate), client.wait(gate)]
    one.wait_until_busy(2)
    os.kill(one.server.workers("busy")[0]["pid"], signal.SIGKILL)
    assert client.reply(asked[0]).status == "worker_lost"
    gate.touch()
    assert client.reply(asked[1]).status == "ok"


def test_workers_killed_while_they_boot(watch: StartWatch, tmp_path: Path, gate: Path) -> None:
    gate.touch()
    one = watch(faulty_after(tmp_path / "gated.py", GATED), "-m", "2", IMPORT_GATE=str(gate))
    eventually(lambda: not one.server.worker_processes(), what="the trial's process has ended")
    gate.unlink()
    client = one.client()
    asked = client.ask(b"")
    eventually(lambda: len(one.server.worker_processes()) == 2)
    for worker in one.server.worker_processes():
        worker.kill()
    eventually(lambda: one.server.names_of_events().count("lost") == 2)
    gate.touch()
    assert client.reply(asked).status in {"ok", "worker_lost"}


@pytest.mark.parametrize("deed", ["hang", "ignore-signals-and-hang", "change-group"])
def test_a_worker_that_hangs_is_answered_for_and_replaced(watch: StartWatch, deed: str) -> None:
    one = watch("faulty", "-m", "2", "--call-timeout", "1")
    before = int(one.invoke().payload)
    reply = one.invoke(deed)
    assert (reply.status, reply.worker) == ("timeout", 0)
    assert b"--call-timeout" in reply.payload
    assert before not in {worker["pid"] for worker in one.wait_until_idle(2)}
    (lost,) = (event for event in one.server.events() if event.event == "lost")
    assert "--call-timeout" in lost.detail


def test_a_worker_stopped_and_continued_in_a_call(watch: StartWatch, gate: Path) -> None:
    one = watch("faulty", "-m", "1")
    client = one.client()
    asked = client.wait(gate)
    one.wait_until_busy(1)
    pid = one.server.workers("busy")[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    gate.touch()
    assert one.invoke().status == "rejected"
    os.kill(pid, signal.SIGCONT)
    assert int(client.reply(asked).payload) == pid
    assert "lost" not in one.server.names_of_events()


def test_a_worker_stopped_while_idle_serves_when_it_is_continued(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1")
    pid = int(one.invoke().payload)
    os.kill(pid, signal.SIGSTOP)
    client = one.client()
    asked, in_time = client.ask(b""), client.ask(b"", timeout=0.1)
    assert client.reply(in_time).status == "rejected"
    os.kill(pid, signal.SIGCONT)
    assert int(client.reply(asked).payload) == pid


def test_a_worker_stopped_for_longer_than_a_call_may_take_is_replaced(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "1", "--call-timeout", "1")
    pid = int(one.invoke().payload)
    os.kill(pid, signal.SIGSTOP)
    assert one.invoke().status == "timeout"
    assert one.wait_until_idle(1)[0]["pid"] != pid
    assert not exists(pid)


def test_a_fork_server_killed_with_a_worker_that_hangs_and_one_that_boots_leaves_nothing(
    watch: StartWatch, tmp_path: Path, gate: Path
) -> None:
    imports = tmp_path / "imports"
    imports.touch()
    one = watch(faulty_after(tmp_path / "gated.py", GATED), "-g", "2", "-m", "1", IMPORT_GATE=str(imports))
    client = one.client()
    asked = [client.wait(gate)]
    one.wait_until_busy(1)
    imports.unlink()
    asked.append(client.ask(b""))
    eventually(lambda: len(one.server.worker_processes()) == 2)
    orphans = [worker.pid for worker in one.server.worker_processes()]
    one.server.forkserver().kill()
    assert client.reply(asked[0]).status == "worker_lost"
    eventually(lambda: not any(exists(pid) for pid in orphans))
    imports.touch()
    gate.touch()
    assert client.reply(asked[1]).status in {"ok", "worker_lost"}


FAILS_ANEW = """
import os
if os.path.exists(os.environ["BROKEN"]):
    raise RuntimeError("broken since")
"""


def test_a_fork_server_that_does_not_start_again_is_tried_now_and_then(watch: StartWatch, tmp_path: Path) -> None:
    (tmp_path / "scipy.py").write_text(FAILS_ANEW)
    broken = tmp_path / "broken"
    kernel = faulty_after(tmp_path / "imports.py", "import scipy")
    one = watch(kernel, "-m", "4", PYTHONPATH=str(tmp_path), BROKEN=str(broken))
    assert one.invoke().status == "ok"
    one.wait_until_idle(4)
    broken.touch()
    one.server.forkserver().kill()
    reason = "the fork server cannot be started again: RuntimeError: broken since"
    eventually(lambda: sum(event.detail == reason for event in one.server.events()) >= 8, what="each failed twice")
    assert one.server.stderr().count(reason) == 1
    broken.unlink()
    one.wait_until_idle(4)
