"""What a kernel can say of its process: that it is of no more use, and that it cannot be had for now."""

from pathlib import Path

from support import LIMIT, Server, StartServer, failure

SPENT = """
import os
from kaas.errors import WorkerUnusable


def call(payload):
    if payload:
        raise WorkerUnusable(f"{payload.decode()} is gone")
    return str(os.getpid()).encode()
"""


def lost(server: Server) -> list[str]:
    return [event.detail for event in server.events() if event.event == "lost"]


def test_a_worker_that_is_of_no_more_use_is_replaced_before_anybody_else_gets_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    kernel = tmp_path / "spent.py"
    kernel.write_text(SPENT)
    server = start_server(kernel, "-m", "1", "--when-full", "queue")
    with server.frames() as frames:
        for number, payload in enumerate((b"", "the d\u00e9vice".encode(), b"", b""), start=1):
            frames.invoke(payload, number)
        replies = frames.replies(1, 2, 3, 4)
    assert [replies[number].status for number in (1, 2, 3, 4)] == ["ok", "worker_lost", "ok", "ok"]
    assert "the d\u00e9vice is gone (spent.py, line 8)" in replies[2].payload.decode()
    assert replies[1].payload != replies[3].payload == replies[4].payload
    assert lost(server) == ["the d\u00e9vice is gone (spent.py, line 8)"]
    assert server.counters() == {"accepted": 4, "ok": 3, "worker_lost": 1, "replies": 4, "cold_starts": 1}


def refusing(folder: Path, *boots: str) -> Path:
    """Write a kernel whose boots, the trial's included, each raise what is listed, and which then boots."""
    kernel = folder / "refusing.py"
    kernel.write_text(f"""
from pathlib import Path
from kaas.errors import TemporarilyUnavailable

boots = Path({str(folder / "boots")!r})


def prepare(phase):
    with boots.open("a") as file:
        file.write(".")
    number = len(boots.read_text())
    for error in {list(boots)!r}[number - 1 : number]:
        if error:
            raise eval(error)("the device rests")


def call(payload):
    return payload
""")
    return kernel


def test_the_trial_of_a_kernel_that_is_refused_for_now_is_made_again(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(refusing(tmp_path, "TemporarilyUnavailable"), "-m", "1")
    assert "the device rests (refusing.py, line 14); tried again in 1 s" in server.stderr()
    with server.connection() as kaas:
        assert kaas.invoke(b"x").status == "ok"


def test_a_trial_that_is_refused_for_long_ends_the_server_in_one_line(tmp_path: Path) -> None:
    kernel = refusing(tmp_path, *["TemporarilyUnavailable"] * 9)
    said = failure(1, kernel, "--boot-timeout", "1.5")
    assert "the kernel does not start: it cannot load the kernel now: the device rests" in said
    assert (tmp_path / "boots").read_text() == ".."


def test_a_boot_that_is_refused_for_now_does_not_count_as_failed(start_server: StartServer, tmp_path: Path) -> None:
    boots = ["", *["RuntimeError"] * 4, "TemporarilyUnavailable"]  # the trial's first; five that failed were too many
    server = start_server(refusing(tmp_path, *boots), "-m", "1", "--when-full", "queue")
    with server.connection() as kaas:
        assert kaas.invoke(b"x", timeout=LIMIT).status == "ok"
    assert [detail.partition(":")[0] for detail in lost(server)] == [
        *["it cannot load the kernel"] * 4,
        "it cannot load the kernel now",
    ]
