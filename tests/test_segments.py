import errno
import os
import stat
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from kaas import segments
from kaas.errors import UsageError

FOLDER = Path("/dev/shm")
DESCRIPTORS = Path("/proc/self/fd")
only_linux = pytest.mark.skipif(not FOLDER.is_dir(), reason="only Linux shows which segments there are")


def names(number: int) -> list[str]:
    found = []
    for _ in range(number):
        memory = segments.create(8)
        found.append(memory.name)
        segments.close(memory)
        segments.unlink(memory)
    return found


@only_linux
def test_a_segment_is_its_users_alone() -> None:
    memory = segments.create(8)
    try:
        assert stat.S_IMODE((FOLDER / memory.name).stat().st_mode) == 0o600
    finally:
        segments.close(memory)
        segments.unlink(memory)


def test_names_of_a_run_begin_alike_and_end_each_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_RUN", "0123abcd")
    found = names(20)
    assert {name[:13] for name in found} == {"kaas_0123abcd"}
    assert len({name[13:] for name in found}) == 20
    assert all(segments.NAME.fullmatch(name) and len(name) == 25 for name in found)


def test_without_a_run_nothing_in_a_name_can_be_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAAS_RUN", raising=False)
    assert len({name[5:13] for name in names(20)}) == 20


def test_runs_have_names_that_are_taken() -> None:
    runs = {segments.draw_run() for _ in range(20)}
    assert len(runs) == 20
    assert all(segments.NAME.fullmatch(f"kaas_{run}{'0' * 12}") for run in runs)


@pytest.mark.parametrize("run", ["0123ABCD", "0123abc", "0123abcd0", "../../..", "0123abcd\n"])
def test_a_run_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    monkeypatch.setenv("KAAS_RUN", run)
    with pytest.raises(UsageError, match="8 hexadecimal digits"):
        segments.create(8)


def test_a_segment_is_zero_or_what_it_is_to_contain() -> None:
    content = bytes(range(256)) * 40  # more than two pages, and no whole number of them
    for given, expected in ((None, bytes(len(content))), (memoryview(content), content)):
        memory = segments.create(len(content), given)
        try:
            assert memory.buf is not None
            assert bytes(memory.buf[: len(content)]) == expected
        finally:
            segments.close(memory)
            segments.unlink(memory)


@only_linux
def test_content_that_is_taken_piece_by_piece_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write  # which takes 2 GiB at most
    with monkeypatch.context() as sparing:
        sparing.setattr(os, "write", lambda to, data: write(to, data[:7] if isinstance(data, memoryview) else data))
        memory = segments.create(20, memoryview(b"in pieces of 7 bytes"))
    try:
        assert memory.buf is not None
        assert bytes(memory.buf[:20]) == b"in pieces of 7 bytes"
    finally:
        segments.close(memory)
        segments.unlink(memory)


@only_linux
@pytest.mark.parametrize("content", [None, memoryview(b"content")])
def test_a_segment_that_there_is_no_room_for_is_said_in_one_line_and_removed(
    monkeypatch: pytest.MonkeyPatch, content: memoryview | None
) -> None:
    write = os.write

    def no_room(descriptor: int, *what: object) -> int:
        if what and isinstance(what[0], bytes):  # to the resource tracker
            return write(descriptor, what[0])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = segments.draw_run()
    monkeypatch.setenv("KAAS_RUN", run)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        full.setattr(os, "write", no_room)
        with pytest.raises(UsageError, match=r"no shared memory for a matrix of 7 bytes: .* \(see df /dev/shm\)"):
            segments.create(7, content)
    assert not list(FOLDER.glob(f"kaas_{run}*"))


@only_linux
def test_a_segment_is_removed_when_filling_it_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    run = segments.draw_run()
    monkeypatch.setenv("KAAS_RUN", run)
    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segments.create(7)
    assert not list(FOLDER.glob(f"kaas_{run}*"))


@only_linux
def test_attaching_keeps_no_descriptor_when_it_ends() -> None:
    memory = segments.create(8)
    try:
        before = len(list(DESCRIPTORS.iterdir()))
        mapping = segments.attach(memory.name)
        mapping[:8] = b"attached"
        mapping.close()
        assert len(list(DESCRIPTORS.iterdir())) == before
        assert memory.buf is not None
        assert bytes(memory.buf[:8]) == b"attached"
    finally:
        segments.close(memory)
        segments.unlink(memory)


@only_linux
def test_what_is_left_of_a_run_is_removed_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = segments.draw_run(), segments.draw_run()
    kept = []
    for run in (ours, ours, others):
        monkeypatch.setenv("KAAS_RUN", run)
        kept.append(segments.create(8))
    alike = SharedMemory(f"kaas_{ours}_not-a-name-of-ours", create=True, size=8)
    try:
        assert segments.remove_orphans(ours) == 2
        assert segments.remove_orphans(ours) == 0
        left = {path.name for path in FOLDER.glob("kaas_*")}
        assert {kept[2].name, alike.name} <= left
        assert not {kept[0].name, kept[1].name} & left
    finally:
        for memory in kept:
            segments.close(memory)
        segments.unlink(kept[2])
        alike.close()
        alike.unlink()


def test_where_nothing_shows_the_segments_there_is_nothing_to_remove(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(segments, "FOLDER", tmp_path / "no-such-folder")
    assert segments.remove_orphans(segments.draw_run()) == 0
