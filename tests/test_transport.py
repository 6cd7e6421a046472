"""KAAS_TRANSPORT: matrices in the messages, and which way is taken where it is not said."""

import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support import LIMIT, Server, StartServer

from kaas import ROOT, inline, kernels, matrices, segments, transport
from kaas.errors import TaskError, UsageError
from kaas.matrices import Matrix, random_matrix

CLIENT = ROOT / "cuda-matmul-client.py"
N = 300  # whose matrix is a large payload


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The matrix client; a server is named by KAAS_ADDRESS."""
    monkeypatch.setenv("KAAS_SCRATCH", str(tmp_path))
    module = kernels.load(CLIENT, kernels.CLIENT_FUNCTION)
    yield module
    module.cleanup()


@pytest.fixture(scope="module")
def server(start_shared_server: StartServer) -> Server:
    """A server of a matrix kernel."""
    return start_shared_server(ROOT / "cuda-matmul-blas.py", "-m", "1", "--when-full", "queue")


def multiply(a: Matrix, c: Matrix) -> None:
    np.matmul(a, a, out=c)


@pytest.mark.parametrize("dtype", matrices.DTYPES)
@pytest.mark.parametrize("n", [1, 7, N])
def test_a_matrix_in_a_message_is_answered_with_its_product(n: int, dtype: str) -> None:
    matrix = random_matrix(n).astype(dtype)
    payload = inline.request(matrix)
    reply = matrices.answer(payload, multiply)
    assert np.array_equal(inline.product(reply, matrix), matrix @ matrix)
    assert inline.inner_ms(reply) > 0
    assert max(len(payload), len(reply)) <= inline.size(n, dtype)


def test_a_kernel_sees_a_matrix_that_is_as_one_in_shared_memory() -> None:
    seen: list[Matrix] = []
    matrices.answer(inline.request(random_matrix(3)), lambda a, c: seen.extend((a, c)))
    for matrix in seen:
        assert matrix.flags.aligned
        assert matrix.flags.writeable
        assert matrix.flags.c_contiguous
        assert (matrix.shape, matrix.dtype.name) == ((3, 3), "float64")


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"inline ", "begin it with inline"),
        (b"inline 5\n", "begin it with inline"),
        (b'inline {"n": 2}\n', "begin it with inline"),
        (b'inline {"n": 0, "dtype": "float64"}\n', "n is 0: give a whole number"),
        (b'inline {"n": true, "dtype": "float64"}\n', "n is True: give a whole number"),
        (b'inline {"n": 2, "dtype": ["x"]}\n', "dtype is a list: give one of"),
        (b'inline {"n": 2, "dtype": "float64"}\n' + bytes(31), "31 bytes of a matrix, but 2 x 2 of float64 are 32"),
        (b'inline {"n": 1000000, "dtype": "float64"}\n', "0 bytes of a matrix, but 1000000 x 1000000"),
    ],
)
def test_a_message_that_is_no_matrix_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint.replace("(", r"\(")):
        matrices.answer(payload, multiply)


def test_a_reply_without_a_product_is_a_wrong_one() -> None:
    matrix = random_matrix(3)
    for reply in (b"", b"x", b'{"inner_time_ms": 1.0}', b'{"inner_time_ms": 1.0}\n' + bytes(71)):
        assert not matrices.is_square_of(inline.product(reply, matrix), matrix)


def test_the_way_is_shared_memory_where_server_workers_and_client_have_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {"engine": {"name": "local", "here": True}, "shared_memory": transport.place()}
    monkeypatch.delenv("KAAS_TRANSPORT", raising=False)
    assert transport.chosen(here) == "shm"
    assert transport.chosen({}) == "shm", "an older server"
    assert transport.chosen(here | {"shared_memory": "another boot 7"}) == "inline"
    assert transport.chosen(here | {"engine": {"name": "ray", "here": False}}) == "inline"
    for said in ("shm", "inline"):
        monkeypatch.setenv("KAAS_TRANSPORT", said)
        assert transport.chosen(here) == transport.chosen({"shared_memory": "elsewhere"}) == said


def test_nonsense_is_refused_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TRANSPORT", "pigeon")
    with pytest.raises(UsageError, match="KAAS_TRANSPORT is 'pigeon': give auto, shm or inline"):
        kernels.check_input(CLIENT, "5")


@pytest.mark.parametrize(("said", "segments_made"), [("inline", 0), ("shm", 2), ("auto", 2)])
def test_a_client_makes_segments_unless_its_matrices_travel_inline(
    server: Server, client: ModuleType, monkeypatch: pytest.MonkeyPatch, said: str, segments_made: int
) -> None:
    made, create = [], segments.create

    def counted(size: int, content: memoryview | None = None) -> SharedMemory:
        made.append(size)
        return create(size, content)

    monkeypatch.setattr(segments, "create", counted)
    monkeypatch.setenv("KAAS_ADDRESS", server.address)
    monkeypatch.setenv("KAAS_TRANSPORT", said)
    client.prepare(str(N), 0)
    outcome = client.run_client(str(N))
    assert (outcome.status, outcome.error) == ("ok", "")
    assert 0 < outcome.inner_ms < outcome.outer_ms
    assert 0 < outcome.setup_ms < outcome.outer_ms
    assert len(made) == segments_made


def test_a_client_that_sees_other_shared_memory_sends_its_matrices_inline(
    server: Server, client: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAAS_ADDRESS", server.address)
    monkeypatch.setattr(transport, "place", lambda: "another machine")
    monkeypatch.setattr(segments, "create", lambda *_: pytest.fail("a segment"))
    assert client.run_client(str(N)).status == "ok"


def test_a_server_that_is_not_there_when_a_client_prepares_is_asked_at_the_first_request(
    server: Server, client: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "place", lambda: "another machine")
    monkeypatch.setattr(segments, "create", lambda *_: pytest.fail("a segment"))
    monkeypatch.setenv("KAAS_ADDRESS", "127.0.0.1:1")
    client.prepare(str(N), 0)
    monkeypatch.setenv("KAAS_ADDRESS", server.address)
    client._client._connection = server.connection()
    assert client.run_client(str(N)).status == "ok"


def test_a_wrong_product_that_came_inline_is_a_wrong_result(
    start_server: StartServer, client: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAAS_TRANSPORT", "inline")
    monkeypatch.setenv("KAAS_ADDRESS", start_server("echo", "-m", "1").address)
    assert client.run_client(str(N)).status == "wrong_result"


def test_a_matrix_that_the_server_does_not_take_is_said_in_one_line_before_the_first_request(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(ROOT / "cuda-matmul-blas.py", "-m", "1", "--message-size", "100000")
    environment = server.marked.environment | {"KAAS_ADDRESS": server.address, "KAAS_TRANSPORT": "inline"}
    line = [sys.executable, str(CLIENT), str(N)]
    done = subprocess.run(
        line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 2
    said = f"N={N} takes messages of 720200 bytes, and the server takes 100000: start it with --message-size 720200"
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert server.counters() == {}
