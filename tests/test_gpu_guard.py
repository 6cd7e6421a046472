"""The guard by itself, against stand-ins of NVIDIA's programs: it takes what it may, and gives it back."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import StandIns
from support import LIMIT, Marked, eventually, exists

from kaas import ROOT

GUARD = ROOT / "scripts" / "gpu_guard.py"
UUIDS = ("GPU-stand-in-0", "GPU-stand-in-1")
HELD = ["Exclusive_Process", "Exclusive_Process"]
AS_FOUND = ["Default", "Exclusive_Process"]
WARNING = "WARNING: infoROM is corrupted at gpu 0000:16:00.0"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="MPS, and what tells its processes, is Linux's")


class Guard:
    """Runs the guard on two GPUs that it finds in different modes."""

    def __init__(self, folder: Path) -> None:
        self.nvidia = StandIns(folder / "nvidia", gpus=2)
        self.nvidia.set("modes", 1, AS_FOUND[1])
        self.marked = Marked(self.nvidia.environment)
        self.record = self.nvidia.machine / "kaas-gpus.json"
        self.lock = self.nvidia.machine / "kaas-gpus.lock"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.ready = folder / "ready"
        self.folder = folder

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(GUARD), *arguments],
            env=self.marked.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def hold(self, **environment: str) -> "subprocess.Popen[str]":
        """Start to hold the GPUs."""
        return self.start("hold", "--ready", str(self.ready), "--logs", str(self.logs), *UUIDS, **environment)

    def held(self, **environment: str) -> "subprocess.Popen[str]":
        """Hold the GPUs."""
        process = self.hold(**environment)
        eventually(lambda: self.ready.exists() or process.poll() is not None, what="the guard is ready")
        assert self.ready.exists(), process.communicate()
        return process

    def killed(self) -> Path:
        """Hold the GPUs and kill the guard; return the folder of its daemon."""
        process = self.held()
        process.kill()
        process.communicate()
        return Path(self.ready.read_text()).parent

    def restore(self) -> tuple[int, str]:
        return end(self.start("restore"))

    def write(self, modes: dict[str, str], daemon: str = "", **more: str) -> None:
        """Leave a record, as an earlier run would have."""
        self.record.write_text(json.dumps({"modes": modes, "daemon": daemon} | more))
        self.record.chmod(0o600)


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=LIMIT)
    assert "Traceback" not in said, said
    return process.returncode, said


def let_go(process: "subprocess.Popen[str]") -> tuple[int, str]:
    process.terminate()
    return end(process)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    made = Guard(tmp_path)
    try:
        yield made
        made.marked.assert_nothing_left()
        assert not made.nvidia.folders_left()
    finally:
        made.marked.kill()
        for folder in made.nvidia.folders_left():
            shutil.rmtree(folder)


@pytest.fixture
def stale_folder() -> Iterator[Path]:
    """A daemon's folder that a guard has left behind, long ago."""
    # Where a guard would have made it: it acts on no other.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/kaas-mps.XXXXXXXX"], text=True).strip())
    (folder / "pipe").mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_gpus_are_held_and_given_back_with_one_question_for_all_of_them(guard: Guard) -> None:
    process = guard.held()
    assert guard.nvidia.modes() == HELD

    code, said = let_go(process)

    assert (code, said) == (0, "")
    assert guard.nvidia.modes() == AS_FOUND
    assert not guard.record.exists()
    settings = [call for call in guard.nvidia.calls("nvidia-smi") if " -c " in call]
    questions = [call for call in guard.nvidia.calls("nvidia-smi") if " -c " not in call]
    assert settings == [
        "nvidia-smi -i GPU-stand-in-0 -c EXCLUSIVE_PROCESS",
        "nvidia-smi -i GPU-stand-in-0 -c DEFAULT",
    ]
    assert len(questions) == 4, "before and after each of the two"


# MPS


def test_the_server_of_mps_is_ready_before_the_guard_says_so(guard: Guard) -> None:
    guard.nvidia.set("initializing", 3)
    process = guard.held()

    asked = [call.partition(" ")[2] for call in guard.nvidia.calls("nvidia-cuda-mps-control")]
    assert f"start_server -uid {os.getuid()}" in asked
    assert asked.count("get_server_status 4711") == 4
    assert let_go(process) == (0, "")


def test_a_daemon_that_does_not_know_how_to_start_a_server_will_do(guard: Guard) -> None:
    guard.nvidia.set("old-daemon", "")

    process = guard.held()

    assert not guard.nvidia.calls("nvidia-cuda-mps-control get_server_status")
    assert let_go(process) == (0, "")


def test_a_protocol_that_the_site_sets_for_its_own_daemon_is_not_the_guards(guard: Guard) -> None:
    process = guard.held(CUDA_MPS_PROTOCOL_VERSION="3")

    assert guard.nvidia.calls("nvidia-cuda-mps-control get_server_status 4711"), "the daemon knows today's commands"
    assert let_go(process) == (0, "")


# Whatever nvidia-smi says besides


def test_a_warning_of_nvidia_smi_is_not_taken_for_a_mode(guard: Guard) -> None:
    guard.nvidia.set("warns", WARNING)

    process = guard.held()
    assert guard.nvidia.modes() == HELD

    assert let_go(process)[0] == 0
    assert guard.nvidia.modes() == AS_FOUND


def test_on_restore_a_mode_that_cannot_be_read_is_set_all_the_same_and_that_is_said(guard: Guard) -> None:
    process = guard.held()
    guard.nvidia.set("hide-modes", "[Unknown Error]")

    code, said = let_go(process)

    assert code == 0
    assert "GPU GPU-stand-in-0 was set to DEFAULT; nvidia-smi does not tell its mode" in said
    assert guard.nvidia.modes() == AS_FOUND
    assert not guard.record.exists()


def test_a_mode_that_cannot_be_read_at_first_is_left_alone(guard: Guard) -> None:
    guard.nvidia.set("hide-modes", "[Unknown Error]")

    code, said = end(guard.hold())

    assert code == 1
    assert "no compute mode of GPU GPU-stand-in-0 to put back later: run with MPS=off" in said
    assert guard.nvidia.modes() == AS_FOUND


# After a run that was cut off


def test_a_gpu_that_was_replaced_is_forgotten_once_and_aloud(guard: Guard) -> None:
    guard.write({"GPU-gone": "DEFAULT", "GPU-stand-in-1": "DEFAULT"})

    code, said = guard.restore()

    assert code == 0
    assert "GPU GPU-gone is not in this machine any more: its mode DEFAULT is forgotten" in said
    assert guard.nvidia.modes() == ["Default", "Default"]
    assert guard.restore() == (0, "Nothing to put back\n")


def test_a_replaced_gpu_does_not_block_the_next_run(guard: Guard) -> None:
    guard.write({"GPU-gone": "DEFAULT"})

    code, said = let_go(guard.held())

    assert code == 0
    assert "GPU GPU-gone is not in this machine any more" in said


def test_gpus_of_which_nvidia_smi_tells_nothing_at_all_are_not_forgotten(guard: Guard) -> None:
    guard.write({"GPU-stand-in-1": "DEFAULT"})
    for number in (0, 1):
        guard.nvidia.unset("modes", number)

    code, said = guard.restore()

    assert code == 1
    assert "--restore tries again" in said
    assert guard.record.exists()


@linux_only
def test_after_another_start_of_the_machine_no_mode_is_set(guard: Guard) -> None:
    guard.write({"GPU-stand-in-1": "DEFAULT"}, boot="another boot")

    code, said = guard.restore()

    assert code == 0
    assert "The machine was started again since" in said
    assert guard.nvidia.modes() == AS_FOUND, "as the machine has set them since"
    assert not guard.record.exists()


def test_restore_with_nothing_to_restore_leaves_nothing(guard: Guard) -> None:
    assert guard.restore() == (0, "Nothing to put back\n")
    assert list(guard.nvidia.machine.iterdir()) == []


# Which process is a daemon


@pytest.fixture
def innocent() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_that_has_got_the_number_of_a_daemon_long_gone_is_left_alone(
    guard: Guard, stale_folder: Path, innocent: "subprocess.Popen[bytes]"
) -> None:
    (stale_folder / "pipe" / "nvidia-cuda-mps-control.pid").write_text(str(innocent.pid))
    guard.write({}, str(stale_folder))

    code, _ = guard.restore()

    assert code == 0
    assert innocent.poll() is None
    assert not stale_folder.exists()


@linux_only
def test_a_daemon_that_is_younger_than_the_file_with_its_number_is_somebody_elses(
    guard: Guard, stale_folder: Path
) -> None:
    guard.nvidia.pipe.mkdir()
    assert guard.nvidia.control("-d") == 0
    try:
        process = int((guard.nvidia.pipe / "nvidia-cuda-mps-control.pid").read_text())
        stale = stale_folder / "pipe" / "nvidia-cuda-mps-control.pid"
        stale.write_text(str(process))
        an_hour_ago = time.time() - 3600
        os.utime(stale, (an_hour_ago, an_hour_ago))
        guard.write({}, str(stale_folder))

        code, _ = guard.restore()

        assert code == 0
        assert exists(process)
    finally:
        guard.nvidia.control("quit")


@pytest.mark.slow
@linux_only
def test_a_daemon_that_does_not_end_when_told_is_killed(guard: Guard) -> None:
    process = guard.held()
    daemon = int((Path(guard.ready.read_text()) / "nvidia-cuda-mps-control.pid").read_text())
    guard.nvidia.set("deaf", "")

    assert let_go(process) == (0, "")
    assert not exists(daemon)


# The folder that all users may write


@pytest.mark.parametrize("name", ["kaas-gpus.json", "kaas-gpus.part", "kaas-gpus.lock"])
def test_no_link_is_followed(guard: Guard, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text(json.dumps({"modes": {}, "daemon": ""}))
    before = precious.read_text()
    (guard.nvidia.machine / name).symlink_to(precious)

    process = guard.hold()
    eventually(lambda: guard.ready.exists() or process.poll() is not None, what="the guard has decided")
    code, said = let_go(process)

    assert precious.read_text() == before
    assert precious.stat().st_mode & 0o777 == 0o644 & ~umask()
    assert guard.nvidia.modes() == AS_FOUND
    # What it makes itself it makes anew; what is there it does not believe.
    assert code == (0 if name.endswith(".part") else 1), said
    assert name.endswith(".part") or name in said


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_the_record_is_for_nobody_else(guard: Guard) -> None:
    process = guard.held()

    assert guard.record.stat().st_mode & 0o777 == 0o600
    assert guard.lock.stat().st_mode & 0o777 == 0o666, "or other users' runs could not see that this one runs"
    let_go(process)


def no_folder(folder: Path) -> Path:
    return folder / "missing"


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def unwritable(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (folder / "unwritable").mkdir(mode=0o500)
    return folder / "unwritable"


@pytest.mark.parametrize("make", [no_folder, a_file, unwritable])
def test_a_state_folder_that_will_not_do_is_one_line(
    guard: Guard, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path)

    code, said = end(guard.hold(KAAS_GPU_STATE=str(folder)))

    assert code == 1
    assert said.startswith(f"GPUs: {folder}")
    assert len(said.splitlines()) == 1
    assert guard.nvidia.modes() == AS_FOUND


# When things go wrong twice


def test_a_restore_that_fails_does_not_hide_why_the_hold_failed(guard: Guard) -> None:
    guard.nvidia.set("no-daemon", "")
    guard.nvidia.set("refuse-mode", "0 DEFAULT")

    code, said = end(guard.hold())

    assert code == 1
    assert "the MPS control daemon did not start" in said
    assert "GPU GPU-stand-in-0 cannot be set to DEFAULT" in said
    guard.nvidia.set("refuse-mode", "")
    assert guard.restore()[0] == 0


FULL = """
import errno, os, tempfile


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


tempfile.TemporaryFile = tempfile.mkstemp = full
"""


@linux_only
def test_a_full_temporary_folder_does_not_keep_gpus_from_being_put_back(guard: Guard, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL)
    guard.killed()
    assert guard.nvidia.modes() == HELD

    code, said = end(guard.start("restore", PYTHONPATH=str(tmp_path)))

    assert code == 0, said
    assert guard.nvidia.modes() == AS_FOUND


def test_a_guard_that_was_killed_is_made_good_by_the_next(guard: Guard) -> None:
    folder = guard.killed()
    guard.ready.unlink()

    code, said = let_go(guard.held())

    assert code == 0
    assert "as an earlier run, which was killed, had found them" in said
    assert not folder.exists()
    assert guard.nvidia.modes() == AS_FOUND


def test_two_guards_do_not_hold_the_gpus_at_once(guard: Guard) -> None:
    process = guard.held()

    code, said = guard.restore()

    assert code == 1
    assert f"another run is using the GPUs of this machine (process {os.getpid()} of user {os.geteuid()})" in said
    assert let_go(process)[0] == 0


def test_without_locks_of_the_file_system_gpus_are_held_by_one_run_at_a_time_all_the_same(
    guard: Guard, without_locks: dict[str, str]
) -> None:
    first = guard.held(**without_locks)
    assert guard.nvidia.modes() == HELD

    code, said = end(guard.hold(**without_locks))

    assert code == 1
    assert f"another run is using the GPUs of this machine (process {first.pid} on {os.uname().nodename}, since" in said
    assert guard.nvidia.modes() == HELD
    first.kill()  # what is dead holds nothing
    first.communicate()
    code, said = end(guard.start("restore", **without_locks))
    assert code == 0, said
    assert guard.nvidia.modes() == AS_FOUND
