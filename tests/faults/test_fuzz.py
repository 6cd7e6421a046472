"""Bytes that are no requests are refused, no worker is lost, and nothing stays. benchmarks/fuzz.py sends more."""

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from random import Random

import psutil
from bad_frames import MESSAGE_SIZE, exchange, make_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import LIMIT, StartServer
from watch import StartWatch

from kaas import ROOT, segments, wire
from kaas.client import split_address

pytest_plugins = "watching"

MEGABYTE = 1024 * 1024
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
randoms = st.randoms(use_true_random=False)


def test_each_frame_is_answered_or_refused_no_worker_is_lost_and_memory_stays_flat(watch: StartWatch) -> None:
    one = watch("faulty", "-m", "2", "--when-full", "queue", "--message-size", str(MESSAGE_SIZE))
    process, address = psutil.Process(one.server.process.pid), split_address(one.server.address)
    got, memory = Counter[str](), list[int]()

    @settings(quick, max_examples=1500)
    @given(randoms)
    def send(random: Random) -> None:
        exchanged = exchange(address, make_stream(random).data, LIMIT)
        one.note(*exchanged)
        got.update(exchanged.received)
        memory.append(process.memory_info().rss)

    send()
    assert min(got["ok"], got["bad_request"]) > 10, "these streams try nothing"
    assert "lost" not in one.server.names_of_events()
    assert memory[-1] - memory[len(memory) // 4] < 8 * MEGABYTE


def test_who_shows_no_token_is_served_nothing_whatever_it_sends(start_server: StartServer) -> None:
    server = start_server("echo", "-m", "1", "--message-size", str(MESSAGE_SIZE), KAAS_TOKEN="secret")
    address = split_address(server.address)

    @settings(quick, max_examples=400)
    @given(randoms)
    def send(random: Random) -> None:
        with socket.create_connection(address, timeout=LIMIT) as connection:
            connection.sendall(make_stream(random).data)
            connection.shutdown(socket.SHUT_WR)
            decoder, replies = wire.reply_decoder(), list[wire.Reply]()
            while data := connection.recv(65536):
                replies += decoder.feed(data)
        assert [reply.status for reply in replies] in ([], ["unauthorized"])

    send()
    with server.connection("secret") as kaas:
        counters = kaas.status()["counters"]
        assert (counters["accepted"], counters["unauthorized"]) == (0, counters["replies"])
        assert kaas.invoke(b"x").status == "ok"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = ("", "/", "..", "../../etc/passwd", "/dev/zero", "kaas_", f"kaas_{20 * 'g'}", f"kaas_{20 * '0'}\n", "psm_1\0")


@contextlib.contextmanager
def segment(size: int) -> Iterator[str]:
    """Create a segment of our own; give its name."""
    memory = segments.create(size)
    try:
        yield memory.name
    finally:
        segments.close(memory)
        segments.unlink(memory)


def test_a_matrix_kernel_refuses_every_payload_that_is_no_task(start_server: StartServer) -> None:
    server = start_server(ROOT / "cuda-matmul-blas.py", "-m", "1")
    with server.connection() as kaas, segment(8) as small:
        names = st.sampled_from((small, small, f"kaas_{20 * '0'}", *PATHS)) | st.text(max_size=30) | anything
        sizes = st.sampled_from((0, -1, 1, 2, 10**6, 10**6 + 1, 2**64)) | st.integers(1, 10**6) | anything
        dtypes = st.sampled_from(("float64", "float64", "float32", "int8", "object", "O8", "f8,f8")) | anything
        tasks = st.fixed_dictionaries(
            {"a": names, "c": names, "n": sizes}, optional={"dtype": dtypes, "extra": anything}
        )
        payloads = st.one_of(tasks.map(json.dumps), anything.map(json.dumps), st.text()).map(str.encode) | st.binary()

        @settings(quick, max_examples=400)
        @given(payloads)
        def send(payload: bytes) -> None:
            reply = kaas.invoke(payload)
            if reply.status != "kernel_error":
                task = json.loads(payload)
                assert (task["a"], task["c"], task["n"], reply.status) == (small, small, 1, "ok"), task
                assert task.get("dtype", "float64") in {"float64", "float32"}

        send()
        assert set(server.counters()) <= {"accepted", "kernel_error", "ok", "replies", "cold_starts"}
    assert server.status()["in_flight"] == 0
    assert server.names_of_events() == ["booted", "ready"]
