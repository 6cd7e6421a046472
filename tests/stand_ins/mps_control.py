"""A stand-in for nvidia-cuda-mps-control: a daemon that is a real process, and every call recorded.

Its daemon belongs to the pipe folder that CUDA_MPS_PIPE_DIRECTORY names. Every worker whose environment names that
folder counts as a client of its one server. STAND_INS is the folder of its state: `calls`, `pipes` (the folder of each
daemon that was started), and, to be set by a test:

    no-daemon     the daemon does not start
    old-daemon    it does not know start_server and get_server_status
    initializing  so many times a server's status is not yet ACTIVE
    deaf          the daemon does not end when it is told to quit
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

STATE = Path(os.environ["STAND_INS"])
PIPE = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", str(STATE / "default-pipe")))
PROGRAM = "nvidia-cuda-mps-control"
PID_FILE = PIPE / f"{PROGRAM}.pid"
SERVER = "4711"
SERVER_RUNS = PIPE / "server-runs"
PROTOCOL = "CUDA_MPS_PROTOCOL_VERSION"


def daemon() -> "psutil.Process | None":
    """Find the process of the pid file, if that is a daemon and not what has got its number since."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(PID_FILE.read_text()))
        is_it = process.cmdline()[:1] == [PROGRAM] and process.create_time() <= PID_FILE.stat().st_mtime + 1
        return process if is_it else None
    return None


def clients() -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_worker = "kaas.server.worker" in process.cmdline()
            if is_worker and process.environ().get("CUDA_MPS_PIPE_DIRECTORY") == str(PIPE):
                found.append(process.pid)
    return found


def start() -> int:
    if daemon() is not None:
        print("An instance of this daemon is already running")
        return 1
    if (STATE / "no-daemon").exists():
        print("Failed to start the daemon")
        return 1
    PIPE.mkdir(exist_ok=True)
    asleep = subprocess.Popen(
        [PROGRAM, "-c", "import time; time.sleep(100_000)  # the stand-in of the daemon"],
        executable=sys.executable,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    PID_FILE.write_text(str(asleep.pid))
    with (STATE / "pipes").open("a") as pipes:
        pipes.write(f"{PIPE}\n")
    return 0


def obey(order: str) -> int:
    process = daemon()
    if process is None:
        print("Cannot find MPS control daemon process")
        return 1
    known = ["quit", "get_server_list", "get_client_list"]
    if not (STATE / "old-daemon").exists() and PROTOCOL not in process.environ() | os.environ:
        known += ["start_server", "get_server_status"]
    name = order.partition(" ")[0]
    if name not in known:
        print(f"Unknown command: {order}")
        return 1
    runs = SERVER_RUNS.exists() or bool(clients())
    if name == "quit":
        if not (STATE / "deaf").exists():
            process.send_signal(signal.SIGKILL)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(10)
            PID_FILE.unlink()
            SERVER_RUNS.unlink(missing_ok=True)
    elif name == "start_server":
        SERVER_RUNS.touch()
    elif name == "get_server_status":
        print(status())
    elif runs and name == "get_server_list":
        print(SERVER)
    elif runs:
        print(*clients(), sep="\n")
    return 0


def status() -> str:
    left = STATE / "initializing"
    count = int(left.read_text()) if left.exists() else 0
    if count:
        left.write_text(str(count - 1))
    return "INITIALIZING" if count else "ACTIVE"


def main() -> int:
    order = "-d" if "-d" in sys.argv[1:] else sys.stdin.readline().strip()
    with (STATE / "calls").open("a") as calls:
        calls.write(f"{PROGRAM} {order}\n")
    return start() if order == "-d" else obey(order)


if __name__ == "__main__":
    sys.exit(main())
