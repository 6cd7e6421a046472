"""Workers that do not boot: tried again, then left out, and their GPUs with the last of them; invocations move on."""

from pathlib import Path

from support import Server, StartServer, eventually

FIVE = "left out after 5 failed boots"


def breakable(folder: Path) -> Path:
    """Write a kernel that does not load on GPU `g` once there is a file `bad-g`."""
    kernel = folder / "breakable.py"
    kernel.write_text(f"""
import os
from pathlib import Path

if Path({str(folder)!r}, "bad-" + os.environ["CUDA_VISIBLE_DEVICES"]).exists():
    raise RuntimeError("no such device")


def call(payload):
    return str(os.getpid()).encode()
""")
    return kernel


def details(server: Server, event: str) -> list[str]:
    return [each.detail for each in server.events() if each.event == event]


def test_a_gpu_whose_workers_do_not_boot_is_left_out_and_another_one_serves(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(breakable(tmp_path), "-g", "2", "-m", "2")
    (tmp_path / "bad-0").touch()
    with server.connection() as kaas:
        moved = kaas.invoke(b"")  # from place to place, and at last to the other GPU
        (tmp_path / "bad-0").unlink()
        replies = [moved, *(kaas.invoke(b"") for _ in range(3))]
    assert [(reply.status, reply.gpu) for reply in replies] == [("ok", 1)] * 4
    assert [reply.cold_start for reply in replies] == [True, False, False, False]
    lost = details(server, "lost")
    assert len(lost) == 10
    assert sum(FIVE in detail for detail in lost) == 2
    (stopped,) = [event for event in server.events() if event.event == "stopped"]
    assert (stopped.gpu, stopped.num_workers) == (0, 2)
    assert stopped.detail.startswith("left out: it cannot load the kernel: RuntimeError: no such device")
    assert server.status()["by_gpu"][0] == {"gpu": 0, "booted": False, "in_flight": 0, "workers": 0} | {
        "lost": 10,
        "cold_starts": 1,
    }
    assert [event.gpu for event in server.events() if event.event == "booted"] == [0, 1]


def test_when_all_gpus_are_left_out_invocations_are_rejected_and_told_why(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(breakable(tmp_path), "-m", "1", "--when-full", "queue")
    (tmp_path / "bad-0").touch()
    with server.frames() as frames:
        for number in range(1, 4):
            frames.invoke(b"", number)
        replies = frames.replies(1, 2, 3)
        # The first waited for the one worker that there is; the others for their turn, and their turn to boot it.
        assert {reply.status for reply in replies.values()} <= {"worker_lost", "rejected"}
        eventually(lambda: server.status()["by_gpu"][0]["workers"] == 0)
        frames.invoke(b"", 4)
        reply = frames.reply(4)
    assert reply.status == "rejected"
    assert "no GPU is left" in reply.payload.decode()
    assert "no such device" in reply.payload.decode()
    assert server.status()["in_flight"] == 0
    assert len(details(server, "lost")) == 5


def test_an_invocation_whose_worker_does_not_boot_gets_another_place(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(breakable(tmp_path), "-g", "2", "-m", "1")
    (tmp_path / "bad-0").touch()
    with server.connection() as kaas:
        reply = kaas.invoke(b"")
    assert (reply.status, reply.gpu, reply.waited_for_boot) == ("ok", 1, True)
    assert server.counters() == {"accepted": 1, "ok": 1, "replies": 1, "cold_starts": 2}


def test_an_invocation_whose_worker_does_not_boot_waits_if_others_may_wait(
    start_server: StartServer, tmp_path: Path
) -> None:
    kernel, bad = tmp_path / "bad_once.py", tmp_path / "bad"
    kernel.write_text(f"""
import os

if os.path.exists({str(bad)!r}):
    os.unlink({str(bad)!r})
    raise RuntimeError("once")


def call(payload):
    return payload
""")
    server = start_server(kernel, "-m", "1", "--when-full", "queue")
    bad.touch()
    with server.frames() as frames:
        for number in (1, 2):
            frames.invoke(b"", number)
        replies = frames.replies(1, 2)
    assert [(number, reply.status) for number, reply in replies.items()] == [(1, "ok"), (2, "ok")]
    assert len(details(server, "lost")) == 1
    assert server.counters() == {"accepted": 2, "ok": 2, "replies": 2, "cold_starts": 1}


def test_a_worker_that_is_left_out_does_not_hinder_the_others_of_its_gpu(
    start_server: StartServer, tmp_path: Path
) -> None:
    kernel = tmp_path / "one_place_fails.py"
    # Whoever boots while the other one serves finds its lock taken.
    kernel.write_text(f"""
import fcntl, os

lock = os.open({str(tmp_path / "lock")!r}, os.O_CREAT | os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def call(payload):
    return str(os.getpid()).encode()
""")
    server = start_server(kernel, "-m", "2", "--idle-timeout", "0.5")
    eventually(lambda: not server.worker_processes(), what="the trial's process has ended")
    with server.connection() as kaas:
        assert kaas.invoke(b"").status == "ok"
        eventually(lambda: any(FIVE in detail for detail in details(server, "lost")) or kaas.invoke(b"").status != "ok")
        assert kaas.invoke(b"").status == "ok"
        assert server.status()["by_gpu"][0]["workers"] == 1
        eventually(lambda: server.status()["task_runners"] == 0)
        assert kaas.invoke(b"").status == "ok"
    assert [event.num_workers for event in server.events() if event.event == "booted"] == [2, 1]
