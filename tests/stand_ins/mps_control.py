"""A stand-in for nvidia-cuda-mps-control: a daemon that is a real process, and every call recorded.

Its daemon belongs to the pipe folder that CUDA_MPS_PIPE_DIRECTORY names. Every worker whose environment names that
folder counts as a client of its one server. STAND_INS is the folder of its state; with a file `no-daemon` in it the
daemon does not start.
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
PID_FILE = PIPE / "nvidia-cuda-mps-control.pid"
SERVER = "4711"


def daemon() -> "psutil.Process | None":
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(PID_FILE.read_text()))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
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
        [sys.executable, "-c", "import time; time.sleep(100_000)  # the MPS control daemon's stand-in"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    PID_FILE.write_text(str(asleep.pid))
    return 0


def obey(order: str) -> int:
    process = daemon()
    if process is None:
        print("Cannot find MPS control daemon process")
        return 1
    if order.startswith("quit"):
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(10)
        PID_FILE.unlink()
    elif order == "get_server_list":
        print(SERVER if clients() else "", end="\n" if clients() else "")
    elif order == f"get_client_list {SERVER}":
        print(*clients(), sep="\n")
    else:
        print(f"Unknown command: {order}")
        return 1
    return 0


def main() -> int:
    order = "-d" if "-d" in sys.argv[1:] else sys.stdin.readline().strip()
    with (STATE / "calls").open("a") as calls:
        calls.write(f"nvidia-cuda-mps-control {order}\n")
    return start() if order == "-d" else obey(order)


if __name__ == "__main__":
    sys.exit(main())
