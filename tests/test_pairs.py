"""Segments that stay: the client's pair, and what a worker keeps attached."""

import contextlib
import gc
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from support import StartServer, eventually

from kaas import ROOT, kernels, matrices, pairs, segments
from kaas.errors import UsageError
from kaas.matrices import random_matrix
from kaas.pairs import Fresh, Kept
from kaas.segments import Attachments

CLIENT = ROOT / "cuda-matmul-client.py"
N = 50
MAPS = Path("/proc/self/maps")
only_where_maps_tell = pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what a process has mapped")
CLIENTS = """
import os, signal, sys
from kaas import ROOT, kernels
client = kernels.load(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)
for copy in range(int(sys.argv[1])):
    if os.fork() == 0:
        client.prepare(sys.argv[2], copy)
        while any(client.run_client(sys.argv[2]).status != "ok" for _ in range(2)):
            pass
        os.write(1, b"served\\n")
        signal.pause()
signal.pause()
"""


def mapped(run: str, pid: int | str = "self") -> set[str]:
    """The segments of a run that a process has in its memory, unlinked or not."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {name for line in lines for name in line.split() if f"kaas_{run}" in name}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The digits of a run of this test's own."""
    run = segments.draw_run()
    monkeypatch.setenv("KAAS_RUN", run)
    yield run
    assert segments.unlink_all(run) == (0, 0)


@pytest.mark.usefixtures("run")
def test_a_kept_pair_is_the_same_for_all_requests_and_is_filled_for_each() -> None:
    kept, matrix = Kept(random_matrix(4)), random_matrix(4)
    names = []
    for _ in range(3):
        with kept.filled() as (a, c):
            names.append((a.name, c.name))
            assert np.array_equal(a.matrix, matrix)
            a.matrix[:] = 0.0
    assert len(set(names)) == 1
    kept.forget()
    with kept.filled() as (a, _):
        assert a.name not in names[0]
    kept.forget()


@pytest.mark.usefixtures("run")
def test_a_pair_is_not_used_again_after_a_request_that_was_cut_short() -> None:
    kept, names = Kept(random_matrix(4)), []
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), kept.filled() as (a, _):
            names.append(a.name)
            raise KeyboardInterrupt
    assert names[0] != names[1]


def test_a_fresh_pair_is_another_for_each_request(run: str) -> None:
    fresh, names = Fresh(random_matrix(4)), set()
    for _ in range(3):
        with fresh.filled() as (a, c):
            names |= {a.name, c.name}
    assert len(names) == 6
    assert segments.unlink_all(run) == (0, 0)


def test_the_environment_says_which_and_nonsense_is_refused_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text, kind in ("", Fresh), ("fresh", Fresh), ("kept", Kept):
        monkeypatch.setenv("SEGMENTS", text)
        assert isinstance(pairs.of(random_matrix(1)), kind)
    monkeypatch.setenv("SEGMENTS", "keep")
    with pytest.raises(UsageError, match="SEGMENTS is 'keep': give fresh or kept"):
        kernels.check_input(CLIENT, "5")


@only_where_maps_tell
def test_a_segment_stays_attached_until_it_is_unlinked(run: str) -> None:
    attachments = Attachments(8)
    first, second = (segments.create(mmap.PAGESIZE) for _ in range(2))
    for segment in (first, second):
        assert attachments.attach(segment.name) is attachments.attach(segment.name)
        segment.close()
    assert len(mapped(run)) == 2
    first.unlink()
    attachments.attach(second.name)
    assert {name.rpartition("/")[2] for name in mapped(run)} == {second.name}
    second.unlink()
    with pytest.raises(FileNotFoundError):
        attachments.attach(second.name)
    assert not mapped(run)


@only_where_maps_tell
@pytest.mark.parametrize("is_unlinked", [True, False])
def test_a_name_that_is_used_again_is_not_taken_for_the_segment_that_had_it(run: str, is_unlinked: bool) -> None:
    attachments, name, elsewhere = Attachments(8), f"kaas_{run}{12 * '0'}", f"kaas_{run}{12 * '1'}"
    for content in 1, 2:
        segment = SharedMemory(name, create=True, size=mmap.PAGESIZE)
        assert segment.buf is not None
        segment.buf[0] = content
        assert attachments.attach(name)[0] == content
        segment.close()
        if not is_unlinked and content == 1:
            (segments.FOLDER / name).rename(segments.FOLDER / elsewhere)
        else:
            segment.unlink()
    (segments.FOLDER / elsewhere).unlink(missing_ok=True)


@only_where_maps_tell
def test_no_more_stay_attached_than_may_and_those_used_last_do(run: str) -> None:
    attachments, made = Attachments(2), [segments.create(mmap.PAGESIZE) for _ in range(3)]
    first, second, third = (segment.name for segment in made)
    for name in (first, second, first, third):
        attachments.attach(name)
    for segment in made:
        segment.close()
    assert {name.rpartition("/")[2] for name in mapped(run)} == {first, third}
    for segment in made:
        segment.unlink()


@only_where_maps_tell
def test_a_matrix_that_somebody_holds_stays_readable_when_its_segment_is_let_go(run: str) -> None:
    attachments = Attachments(1)
    with matrices.shared_matrix(2) as segment, matrices.shared_matrix(2) as other:
        with matrices.attached_matrix(segment.name, 2, "float64", attachments) as attached:
            held = attached.matrix
            held[:] = 3.0
        attachments.attach(other.name)
        assert held[1, 1] == 3.0
    del held, attached
    gc.collect()
    with pytest.raises(FileNotFoundError):
        attachments.attach(other.name)
    assert not mapped(run)


@only_where_maps_tell
def test_of_20_clients_that_are_killed_at_once_no_memory_is_left_after_the_next_request(
    start_server: StartServer, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ("SEGMENTS", "kept"), ("KAAS_SCRATCH", str(tmp_path)):
        monkeypatch.setenv(name, value)
    server = start_server(ROOT / "cuda-matmul-blas.py", "-g", "1", "-m", "1", "--when-full", "queue")
    monkeypatch.setenv("KAAS_ADDRESS", server.address)
    arguments = [sys.executable, "-c", CLIENTS, "20", str(N)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as clients:
        try:
            assert clients.stdout is not None
            assert [clients.stdout.readline() for _ in range(20)] == 20 * [b"served\n"]
        finally:
            os.killpg(clients.pid, signal.SIGKILL)  # with the resource tracker that would tidy up after them
    (worker,) = server.workers("idle")
    assert len(mapped(run, worker["pid"])) == matrices._MOST_ATTACHED, "what it served last is still attached"
    assert segments.remove_orphans(run) == 40  # as the load generator does for its clients
    client = kernels.load(CLIENT, kernels.CLIENT_FUNCTION)
    try:
        assert [client.run_client(str(N)).status for _ in range(3)] == 3 * ["ok"]
        assert len(mapped(run, worker["pid"])) == 2, "those of the one client that there is"
    finally:
        client.cleanup()
    eventually(lambda: not list(segments.FOLDER.glob(f"kaas_{run}*")))
