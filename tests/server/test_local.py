"""Workers of this machine that say over their link what no worker of ours says, or what only a kernel can know."""

import os
import signal
from pathlib import Path

import pytest
from support import LIMIT, StartServer, eventually, exists, refusal

FORGED = """
import os, socket, time
from itertools import count
from pathlib import Path
from kaas import wire

here, ids = Path(__file__).parent, count(1)


def say(status, payload, id=0):
    "Writes a frame to this worker's link, whichever of its descriptors that is."
    for descriptor in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as link:
                link.sendall(wire.encode_reply(wire.Reply(status, payload, id)))
        except OSError:
            pass


if (here / "hello").exists():
    status, _, payload = (here / "hello").read_bytes().partition(b" ")
    say(status.decode(), payload)
    os._exit(1)


def call(payload):
    (status, _, text), id = payload.partition(b" "), next(ids)
    if status != b"":
        say(status.decode(), text, id + (text == b"another's"))
        time.sleep(3600)
    return str(os.getpid()).encode()
"""

LEAVES = """
import os, time


def call(payload):
    if payload:
        child = os.fork()
        if child:
            return str(child).encode()
        os.setsid()  # and so stays when the worker's group is killed, with the worker's link
        time.sleep(3600)
    return b""
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel that says a reply of its own, and then hangs; and as its first frame what the file `hello` says."""
    path = tmp_path / "forged.py"
    path.write_text(FORGED)
    return path


def test_an_error_text_that_is_no_utf_8_is_passed_on_and_the_next_is_served(
    start_server: StartServer, kernel: Path
) -> None:
    server = start_server(kernel, "-m", "1", "--call-timeout", "1")
    with server.connection() as kaas:
        reply = kaas.invoke(b"kernel_error \xff no text")
        assert (reply.status, reply.payload) == ("kernel_error", b"\xff no text")
        # The worker hangs in a call that is answered; the next one's takes too long.
        assert kaas.invoke(b"").status == "timeout"
        eventually(lambda: server.workers("idle"))
        assert kaas.invoke(b"").status == "ok"
    assert r"worker 0 on GPU 0: \xff no text" in server.stderr()


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (b'ok {"pid": "\xff"}', "no sense in its first frame"),
        (b"ok []", "no sense in its first frame"),
        (b'ok {"pid": 1, "phases": {"import": "long"}}', "no sense in its first frame"),
        (b"kernel_error \xff no text", r"it cannot load the kernel: \xff no text"),
    ],
)
def test_a_first_frame_that_makes_no_sense_is_told_in_one_line(kernel: Path, hello: bytes, text: str) -> None:
    (kernel.parent / "hello").write_bytes(hello)
    assert text in refusal(kernel)


def test_a_first_frame_that_makes_no_sense_in_mid_run_counts_as_a_failed_boot(
    start_server: StartServer, kernel: Path
) -> None:
    server = start_server(kernel, "-m", "1")
    (kernel.parent / "hello").write_bytes(b'ok {"pid": "\xff"}')
    with server.connection() as kaas:
        assert kaas.invoke(b"").status == "worker_lost"
        (kernel.parent / "hello").unlink()
        assert kaas.invoke(b"").status == "ok"


def test_boots_that_the_machine_refuses_never_leave_a_worker_out(start_server: StartServer, kernel: Path) -> None:
    server = start_server(kernel, "-m", "8")
    (kernel.parent / "hello").write_bytes(b"rejected MPS is not ready")
    with server.frames() as frames:
        frames.invoke(b"")
        eventually(lambda: server.names_of_events().count("lost") >= 16)
        (kernel.parent / "hello").unlink()
        assert frames.reply().status == "ok", "it has moved from place to place"
        eventually(lambda: len(server.workers("idle")) == 8)
    assert server.status()["by_gpu"][0]["workers"] == 8


def test_a_worker_that_says_it_is_of_no_more_use_is_lost_with_its_own_reason_and_replaced(
    start_server: StartServer, kernel: Path
) -> None:
    server = start_server(kernel, "-m", "1", "--kill-after", "0.5")
    with server.connection() as kaas:
        before = int(kaas.invoke(b"").payload)
        reply = kaas.invoke(b"worker_lost its GPU context is lost: 719")
        assert (reply.status, reply.payload) == ("worker_lost", b"its GPU context is lost: 719")
        after = int(kaas.invoke(b"").payload)
    assert before != after
    assert not exists(before), "it hangs, and was killed"
    assert [event.detail for event in server.events() if event.event == "lost"] == ["its GPU context is lost: 719"]


def test_a_worker_that_answers_another_request_than_it_was_given_is_replaced(
    start_server: StartServer, kernel: Path
) -> None:
    server = start_server(kernel, "-m", "1")
    with server.connection() as kaas:
        reply = kaas.invoke(b"ok another's")
        assert (reply.status, "a reply that nobody waits for" in reply.error) == ("worker_lost", True)
        assert kaas.invoke(b"").status == "ok"


def test_a_link_that_outlives_its_worker_does_the_next_one_no_harm(start_server: StartServer, tmp_path: Path) -> None:
    kernel = tmp_path / "leaves.py"
    kernel.write_text(LEAVES)
    server = start_server(kernel, "-m", "1")
    with server.connection() as kaas:
        child = int(kaas.invoke(b"leave").payload)
        eventually(lambda: os.getsid(child) == child)
        os.kill(server.workers("idle")[0]["pid"], signal.SIGKILL)
        eventually(lambda: server.names_of_events() == ["booted", "ready", "lost", "ready"])
        os.kill(child, signal.SIGKILL)  # which ends the link of the worker before
        eventually(lambda: not exists(child))
        assert [kaas.invoke(b"", timeout=LIMIT / 4).status for _ in range(3)] == ["ok"] * 3
    assert server.names_of_events() == ["booted", "ready", "lost", "ready"]
