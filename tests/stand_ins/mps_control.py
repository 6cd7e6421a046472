"""A stand-in for nvidia-cuda-mps-control: a daemon that is a real process, and every call recorded.

Linux only, as MPS is, and without pathlib, subprocess and psutil: it is started some twenty times in a run, and would
spend most of its time importing them. Its daemon belongs to the pipe folder that CUDA_MPS_PIPE_DIRECTORY names. Every
worker whose environment names that folder counts as a client of its one server. STAND_INS is the folder of its state:
`calls`, `pipes` (the folder of each daemon that was started), and, to be set by a test:

    no-daemon     the daemon does not start
    old-daemon    it does not know start_server and get_server_status
    initializing  so many times a server's status is not yet ACTIVE
    deaf          the daemon does not end when it is told to quit
"""

import contextlib
import os
import signal
import sys
import time

STATE = os.environ["STAND_INS"]
PIPE = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", f"{STATE}/default-pipe")
PROGRAM = "nvidia-cuda-mps-control"
PID_FILE = f"{PIPE}/{PROGRAM}.pid"
STARTED = f"{PIPE}/started"
SERVER = "4711"
SERVER_RUNS = f"{PIPE}/server-runs"
PROTOCOL = "CUDA_MPS_PROTOCOL_VERSION"
_STATE, _START = 0, 19  # of what /proc/PID/stat says behind the name


def read(path: str) -> str:
    """Give the text of a file, or of what the system tells of a process; empty if there is none."""
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return file.read()
    return ""


def write(path: str, text: str, mode: str = "w") -> None:
    with open(path, mode) as file:
        file.write(text)


def started(pid: str) -> str:
    """Say when a process started; empty if it has ended."""
    told = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return told[_START] if told and told[_STATE] not in "ZX" else ""


def daemon() -> str:
    """Find the process of the pid file, if that is a daemon and not what has got its number since."""
    pid = read(PID_FILE)
    is_it = pid and started(pid) and started(pid) == read(STARTED) and read(f"/proc/{pid}/cmdline").startswith(PROGRAM)
    return pid if is_it else ""


def clients() -> list[str]:
    ours = f"CUDA_MPS_PIPE_DIRECTORY={PIPE}"
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    workers = [pid for pid in processes if "kaas.server.worker" in read(f"/proc/{pid}/cmdline").split("\0")]
    return [pid for pid in workers if ours in read(f"/proc/{pid}/environ").split("\0")]


def start() -> int:
    if daemon():
        print("An instance of this daemon is already running")
        return 1
    if os.path.exists(f"{STATE}/no-daemon"):
        print("Failed to start the daemon")
        return 1
    os.makedirs(PIPE, exist_ok=True)
    silence = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)]
    sleep = [PROGRAM, "-ISc", "import time; time.sleep(100_000)  # the stand-in of the daemon"]
    pid = str(os.posix_spawn(sys.executable, sleep, os.environ, file_actions=silence, setsid=True))
    write(STARTED, started(pid))
    write(PID_FILE, pid)
    write(f"{STATE}/pipes", f"{PIPE}\n", "a")
    return 0


def obey(order: str) -> int:
    pid = daemon()
    if not pid:
        print("Cannot find MPS control daemon process")
        return 1
    known = ["quit", "get_server_list", "get_client_list"]
    is_old = os.path.exists(f"{STATE}/old-daemon") or f"{PROTOCOL}=" in read(f"/proc/{pid}/environ")
    if not is_old and PROTOCOL not in os.environ:
        known += ["start_server", "get_server_status"]
    name = order.partition(" ")[0]
    if name not in known:
        print(f"Unknown command: {order}")
        return 1
    runs = os.path.exists(SERVER_RUNS) or bool(clients())
    if name == "quit":
        if not os.path.exists(f"{STATE}/deaf"):
            os.kill(int(pid), signal.SIGKILL)
            while started(pid):
                time.sleep(0.005)
            for path in (PID_FILE, STARTED, SERVER_RUNS):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    elif name == "start_server":
        write(SERVER_RUNS, "")
    elif name == "get_server_status":
        print(status())
    elif runs and name == "get_server_list":
        print(SERVER)
    elif runs:
        print(*clients(), sep="\n")
    return 0


def status() -> str:
    count = int(read(f"{STATE}/initializing") or 0)
    if count:
        write(f"{STATE}/initializing", str(count - 1))
    return "INITIALIZING" if count else "ACTIVE"


def main() -> int:
    order = "-d" if "-d" in sys.argv[1:] else sys.stdin.readline().strip()
    write(f"{STATE}/calls", f"{PROGRAM} {order}\n", "a")
    return start() if order == "-d" else obey(order)


if __name__ == "__main__":
    sys.exit(main())
