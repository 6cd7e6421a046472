"""`--metrics-port`: what Prometheus gets to see, and that nobody pays for it who does not want it."""

import contextlib
import errno
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support import LIMIT, Server, StartServer, eventually, exists, listening_socket, refusal

from kaas import ROOT


def url(server: Server) -> str:
    match = re.search(r"metrics on (http://\S+)", server.stderr())
    assert match is not None
    return match[1]


def address(server: Server) -> tuple[str, int]:
    host, port = url(server).removeprefix("http://").removesuffix("/metrics").split(":")
    return host, int(port)


def scrape(server: Server) -> dict[str, float]:
    with urllib.request.urlopen(url(server), timeout=LIMIT) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def total(scraped: dict[str, float], name: str) -> float:
    return sum(value for each, value in scraped.items() if each.partition("{")[0] == name)


def refuses(at: tuple[str, int]) -> bool:
    with contextlib.suppress(ConnectionResetError):
        try:
            socket.create_connection(at, timeout=LIMIT).close()
        except ConnectionRefusedError:
            return True
    return False


METERED = ("wait", "-g", "2", "-m", "1", "--metrics-port", "0", "--when-full", "queue")


@pytest.fixture
def metered(start_server: StartServer) -> Server:
    """A server with metrics that waits in its calls."""
    return start_server(*METERED)


@pytest.fixture(scope="module")
def shared(start_shared_server: StartServer) -> Server:
    """Such a server, which nobody calls."""
    return start_shared_server(*METERED)


def test_a_scrape_shows_how_the_server_stands(metered: Server, gate: Path) -> None:
    with metered.frames() as frames:
        for number in range(1, 4):
            frames.invoke(gate, number)
        eventually(lambda: len(metered.workers("busy")) == 2)
        busy = scrape(metered)
        gate.touch()
        frames.replies(1, 2, 3)
        frames.socket.sendall(b"no frame")
        assert frames.reply(0).status == "bad_request"
    done = scrape(metered)
    for name, before, after in (
        ("kaas_in_flight", 3, 0),
        ("kaas_task_runners", 2, 2),
        ("kaas_queue_length", 1, 0),
        ('kaas_workers{gpu="0",state="busy"}', 1, 0),
        ('kaas_workers{gpu="1",state="idle"}', 0, 1),
        ("kaas_accepted_total", 3, 3),
        ('kaas_requests_total{status="ok"}', 0, 3),
        ('kaas_requests_total{status="bad_request"}', 0, 1),
        ('kaas_requests_total{status="abandoned"}', 0, 0),
        ('kaas_cold_starts_total{gpu="0"}', 1, 1),
        ('kaas_cold_starts_total{gpu="1"}', 1, 1),
        ('kaas_gpu_booted{gpu="1"}', 1, 1),
        ('kaas_gpu_in_flight{gpu="1"}', 1, 0),
        ('kaas_gpu_workers{gpu="0"}', 1, 1),
        ('kaas_gpu_lost_workers_total{gpu="0"}', 0, 0),
    ):
        assert (name, busy[name], done[name]) == (name, before, after)
    for name, before, after in (("boot", 2, 2), ("queue", 0, 3), ("kernel", 0, 3)):
        assert (name, total(busy, f"kaas_{name}_seconds_count"), total(done, f"kaas_{name}_seconds_count")) == (
            name,
            before,
            after,
        )
    assert total(done, "kaas_boot_seconds_sum") > 0
    for gpu in "01":
        assert done[f'kaas_queue_seconds_bucket{{gpu="{gpu}",le="+Inf"}}'] >= 1
        buckets = [done[name] for name in done if name.startswith(f'kaas_kernel_seconds_bucket{{gpu="{gpu}"')]
        assert buckets == sorted(buckets)


def test_a_call_counts_whatever_became_of_its_answer(metered: Server, gate: Path) -> None:
    with metered.frames() as gone, metered.frames() as frames:
        frames.invoke_together(gate, (2, 3))
        gate.touch()
        frames.replies(2, 3)
        eventually(lambda: len(metered.workers("idle")) == 2)  # so that no boot takes the time of the next two
        gate.unlink()
        gone.invoke(gate)
        eventually(lambda: metered.workers("busy"))
        frames.invoke(gate, timeout=0.1)
        assert frames.reply().status == "timeout"
        eventually(lambda: len(metered.workers("busy")) == 2)
        gone.close()
        eventually(lambda: metered.counters().get("abandoned") == 1)
        assert total(scrape(metered), "kaas_kernel_seconds_count") == 2
        gate.touch()
        eventually(lambda: len(metered.workers("idle")) == 2)
    done = scrape(metered)
    assert [done[f'kaas_{name}_seconds_count{{gpu="{gpu}"}}'] for name in ("queue", "kernel") for gpu in "01"] == [
        2
    ] * 4


def test_a_lost_worker_is_counted_for_its_gpu(start_server: StartServer) -> None:
    server = start_server("crashes", "-m", "1", "--metrics-port", "0")
    with server.connection() as kaas:
        assert kaas.invoke(b"crash").status == "worker_lost"
    assert scrape(server)['kaas_gpu_lost_workers_total{gpu="0"}'] == 1


@pytest.mark.parametrize(("path", "code"), [("", 200), ("?name=x", 200), ("/other", 404)])
def test_only_the_metrics_are_there(shared: Server, path: str, code: int) -> None:
    try:
        with urllib.request.urlopen(url(shared) + path, timeout=LIMIT) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
        error.close()
    assert found == code


def test_an_answer_that_is_not_the_metrics_is_plain_text(shared: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url(shared) + "/other", timeout=LIMIT)
    caught.value.close()
    assert caught.value.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_head_is_answered_without_the_body(shared: Server) -> None:
    request = urllib.request.Request(url(shared), method="HEAD")
    with urllib.request.urlopen(request, timeout=LIMIT) as answer:
        assert int(answer.headers["Content-Length"]) > 0
        assert answer.read() == b""


def test_many_scrapes_have_to_wait_and_clients_have_not(metered: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(address(metered), timeout=LIMIT))
        eventually(lambda: "16 connections are open: more have to wait" in metered.stderr())
        assert metered.status()["in_flight"] == 0
    assert scrape(metered)["kaas_in_flight"] == 0


@pytest.mark.parametrize("sent", [b"", b"x", b"\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"x" * 200_000])
def test_what_is_no_scrape_disturbs_nobody(shared: Server, sent: bytes) -> None:
    with socket.create_connection(address(shared), timeout=LIMIT) as stranger:
        answer = b""
        try:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            answer = stranger.recv(100_000)
        except OSError as error:  # of what is too long the server reads no end
            if error.errno not in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}:
                raise
        assert b"200 OK" not in answer
    assert scrape(shared)["kaas_in_flight"] == 0


def test_a_scrape_under_way_does_not_keep_the_server_from_ending(metered: Server) -> None:
    with socket.create_connection(address(metered), timeout=LIMIT) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert metered.stop() == 0


def test_an_exporter_that_is_lost_is_missed_and_the_server_goes_on(metered: Server) -> None:
    scrape(metered)
    metered.child("kaas.exporter").kill()
    eventually(lambda: "there are no more metrics" in metered.stderr())
    eventually(lambda: refuses(address(metered)))  # its end of the link is closed before its listeners
    assert metered.status()["in_flight"] == 0


def test_the_exporter_ends_with_a_server_that_is_killed(metered: Server) -> None:
    exporter = metered.child("kaas.exporter")
    metered.stop(signal.SIGKILL)
    eventually(lambda: not exists(exporter.pid), what="the exporter has ended")
    metered.marked.assert_nothing_left()


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    with listening_socket() as other:
        port = str(other.getsockname()[1])
        assert f"--metrics-port {port} on 127.0.0.1" in refusal("echo", "--metrics-port", port)
        assert f"--metrics-port {port} on 127.0.0.1" in refusal("echo", "--metrics-port", port, "--check")


@pytest.mark.parametrize(("arguments", "host"), [(("--insecure",), "0.0.0.0"), ((), "127.0.0.1")])
def test_metrics_which_take_no_token_are_for_this_machine_unless_told_otherwise(
    start_server: StartServer, arguments: tuple[str, ...], host: str
) -> None:
    server = start_server("echo", "--host", "0.0.0.0", "--metrics-port", "0", *arguments, KAAS_TOKEN="t")
    assert url(server).startswith(f"http://{host}:")


def test_their_library_is_not_imported_unless_they_are_wanted() -> None:
    program = "import sys, kaas.server.tcp; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
