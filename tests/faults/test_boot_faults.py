"""Kernels whose import fails or takes too long, here and there: what cannot serve is left out, and the rest serves."""

from pathlib import Path

import pytest
from support import eventually
from watch import StartWatch, Watch, faulty_after

pytest_plugins = "watching"

LICENCES = """
# There are two licences, as it were: each worker takes one and keeps it to its end.
import fcntl as _fcntl, os as _os
for _number in range(3):
    _licence = open(_os.path.join(_os.environ["LICENCES"], str(_number)), "w")
    try:
        _fcntl.flock(_licence, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        break
    except OSError:
        pass
if _number == 2:
    raise RuntimeError("no licence is left")
"""

FAILS_ON = """
import os as _os
if _os.environ["CUDA_VISIBLE_DEVICES"] in _os.environ["BROKEN"].split(","):
    raise RuntimeError("this GPU is broken")
"""

FAILS_UNLESS = """
import os as _os
if not _os.path.exists(_os.environ["WORKS"]):
    {deed}
"""


def left_out(one: Watch) -> list[int]:
    """Give the workers that an event says were left out, in order."""
    events = (event for event in one.server.events() if event.event == "lost" and "left out" in event.detail)
    return sorted(event.worker for event in events if event.worker is not None)


def trial_is_over(one: Watch) -> None:
    eventually(lambda: not one.server.worker_processes(), what="the trial's process has ended")


def test_an_import_that_fails_on_the_third_worker_only(watch: StartWatch, tmp_path: Path) -> None:
    one = watch(faulty_after(tmp_path / "licensed.py", LICENCES), "-m", "3", LICENCES=str(tmp_path))
    trial_is_over(one)
    assert one.invoke().status == "ok"
    eventually(lambda: left_out(one), what="one worker is left out")
    assert len(left_out(one)) == 1
    assert one.workers() == 2
    assert one.server.names_of_events().count("lost") == 5
    assert "no licence is left" in one.server.stderr()


def test_a_gpu_whose_boots_always_fail_is_left_out_and_the_others_serve(
    watch: StartWatch, tmp_path: Path, gate: Path
) -> None:
    one = watch(faulty_after(tmp_path / "fails_on.py", FAILS_ON), "-g", "3", "-m", "2", BROKEN="1")
    client = one.client()
    asked = [client.wait(gate) for _ in range(3)]
    eventually(lambda: any("left out" in event.detail for event in one.server.events() if event.event == "stopped"))
    (stopped,) = (event for event in one.server.events() if event.event == "stopped")
    assert (stopped.gpu, "this GPU is broken" in stopped.detail) == (1, True)
    assert left_out(one) == [2, 3]
    last = client.wait(gate)
    gate.touch()
    assert [client.reply(number).status for number in asked[:2]] == ["ok", "ok"]
    assert (client.reply(asked[2]).status, client.reply(asked[2]).gpu) == ("ok", 2), "it moves on, for it was not begun"
    assert (client.reply(last).status, client.reply(last).gpu) == ("ok", 2)
    assert [gpu["workers"] for gpu in one.server.status()["by_gpu"]] == [2, 0, 2]


def test_when_every_gpu_is_left_out_clients_are_told_why(watch: StartWatch, tmp_path: Path) -> None:
    works = tmp_path / "works"
    works.touch()
    kernel = faulty_after(tmp_path / "fails.py", FAILS_UNLESS.format(deed="raise RuntimeError('out of order')"))
    one = watch(kernel, "-g", "2", "-m", "2", "--when-full", "queue", WORKS=str(works))
    works.unlink()
    client = one.client()
    asked = [client.ask(b"") for _ in range(8)]
    replies = [client.reply(number) for number in asked]
    assert {reply.status for reply in replies} <= {"rejected", "worker_lost"}
    eventually(lambda: left_out(one) == [0, 1, 2, 3])
    reply = one.invoke()
    assert reply.status == "rejected"
    assert b"no GPU is left" in reply.payload
    assert b"out of order" in reply.payload
    assert one.workers() == 0


@pytest.mark.parametrize(
    ("deed", "limit"), [("raise RuntimeError", "60"), ("import time; time.sleep(3600)", "1")], ids=["fails", "hangs"]
)
def test_an_import_that_does_not_succeed_for_some_time(
    watch: StartWatch, tmp_path: Path, deed: str, limit: str
) -> None:
    works = tmp_path / "works"
    works.touch()
    kernel = faulty_after(tmp_path / "fails.py", FAILS_UNLESS.format(deed=deed))
    one = watch(kernel, "-m", "2", "--boot-timeout", limit, WORKS=str(works))
    trial_is_over(one)
    works.unlink()
    client = one.client()
    asked = client.ask(b"")
    eventually(lambda: one.server.names_of_events().count("lost") >= 2)
    works.touch()
    assert client.reply(asked).status in {"ok", "worker_lost"}
    one.wait_until_idle(2)
    assert not left_out(one)
