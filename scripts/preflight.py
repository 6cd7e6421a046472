"""What autoscale.sh needs, checked before anything is changed: every problem in one pass, exit code 2 if there is one.

Uses the standard library only, since the libraries may not be set up yet. The settings come in the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
CONTEXT_BYTES = 400 * 2**20
"""What a worker's CUDA context and code take on a GPU, generously."""
MPS_CLIENTS = 48
MPS_CLIENTS_LATER = 60
"""Contexts that MPS admits for each GPU up to CUDA 13.0, and later (NVIDIA, Multi-Process Service)."""
SECONDS_AROUND_A_RUN = 15


class Gpu(NamedTuple):
    """A GPU as nvidia-smi tells of it; memory in bytes."""

    name: str
    driver: str
    total: int
    free: int


class Settings(NamedTuple):
    """The script's settings that matter here; `n` is None if the input is no matrix size."""

    gpus: int
    workers_per_gpu: int
    min_clients: int
    max_clients: int
    step_size: int
    interval: float
    repeats: int
    n: int | None
    port: int
    mps: bool
    sudo: str
    python: str

    @property
    def matrices_bytes(self) -> int:
        """A float64 matrix and its product."""
        return 2 * 8 * self.n**2 if self.n is not None else 0


class Report:
    """Collects what was found and prints it as it comes."""

    def __init__(self) -> None:
        self.problems = 0

    def ok(self, text: str) -> None:
        print(f"  ok       {text}")

    def note(self, text: str) -> None:
        print(f"  note     {text}")

    def problem(self, text: str) -> None:
        self.problems += 1
        print(f"  PROBLEM  {text}")

    def check(self, holds: bool, good: str, bad: str) -> None:
        (self.ok if holds else self.problem)(good if holds else bad)


def main() -> int:
    report = Report()
    print("Preflight: nothing is changed")
    settings = read_settings(report)
    if left_over().exists():
        report.note(f"an earlier run was cut off: a run with MPS, or --restore, puts back what {left_over()} says")
    if settings is not None:
        gpus = check_gpus(settings, report)
        check_mps(settings, bool(gpus), report)
        check_python(settings, report)
        check_room(settings, gpus, report)
        check_port(settings, report)
        tell_duration(settings, report)
    if report.problems:
        print(f"{report.problems} problem{'' if report.problems == 1 else 's'}: the experiment would fail")
        return 2
    return 0


def read_settings(report: Report) -> Settings | None:
    """Read the settings; each that cannot work is a problem."""

    def read(name: str, kind: Callable[[str], float], what: str) -> float:
        text = os.environ.get(name, "")
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 10**9:
            report.problem(f"{name} is {text!r}: give {what} above 0")
        return value

    def whole(name: str) -> int:
        return int(read(name, int, "a whole number"))

    gpus, workers, first, last, step = map(
        whole, ("AVAILABLE_GPUS", "MAX_MPL_PER_GPU", "MIN_MPL", "MAX_MPL", "STEP_SIZE")
    )
    interval, repeats, port = read("INTERVAL", float, "a number"), whole("OUTER_REPEATS"), whole("PORT")
    if last < first:
        report.problem(f"MAX_MPL ({last}) is below MIN_MPL ({first})")
    mps, size = os.environ.get("MPS", ""), os.environ.get("N", "")
    if os.environ.get("CLIENT") == "cuda-matmul-client" and not size.isdecimal():
        report.problem(f"N is {size!r}: give the matrix's size")
    if mps not in {"on", "off"}:
        report.problem(f"MPS is {mps!r}: give on or off")
    if report.problems:
        return None
    return Settings(
        gpus,
        workers,
        first,
        last,
        step,
        interval,
        repeats,
        int(size) if size.isdecimal() else None,
        port,
        mps == "on",
        os.environ.get("SUDO", ""),
        os.environ.get("KAAS_PYTHON", ""),
    )


def left_over() -> Path:
    """Name the file that scripts/gpu_guard.py leaves if it is killed."""
    return Path(os.environ.get("KAAS_GPU_STATE") or "/var/tmp", "kaas-gpus.json")  # noqa: S108 - where it is


def check_gpus(settings: Settings, report: Report) -> list[Gpu]:
    """Find the GPUs that would be used."""
    fields = "name,driver_version,memory.total,memory.free"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    only = ["-i", visible] if visible else []
    code, said = run("nvidia-smi", *only, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    gpus = [gpu for line in said.splitlines() if (gpu := read_gpu(line))] if code == 0 else []
    if not gpus:
        reason = "it is not on PATH" if code is None else (said.strip().splitlines() or ["it lists none"])[-1]
        report.problem(f"no NVIDIA GPU: nvidia-smi finds none ({reason}); without one, run ./autoscale-cpu.sh")
        return []
    used = gpus[: settings.gpus]
    kinds = ", ".join(sorted({gpu.name for gpu in used}))
    report.ok(f"{len(gpus)} GPUs, {len(used)} to be used ({kinds}), driver {used[0].driver}")
    if settings.mps:
        check_others(report)
    if len(gpus) < settings.gpus:
        report.note(f"AVAILABLE_GPUS is {settings.gpus}, but only {len(gpus)} are there: fewer are used")
    return used


def check_others(report: Report) -> None:
    """See that nobody computes on the GPUs: in exclusive mode neither they nor we could go on."""
    _, said = run("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader")
    apps = [line.strip() for line in said.splitlines() if line.startswith("GPU-") and "nvidia-cuda-mps" not in line]
    report.check(
        not apps, "nobody else computes on a GPU", f"in use by others: {'; '.join(apps[:4])}; wait, or run with MPS=off"
    )


def read_gpu(line: str) -> Gpu | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(Gpu._fields) or not cells[1][:1].isdigit():  # a header, or a message
        return None
    total, free = (int(match[0]) * 2**20 if (match := re.match(r"\d+", cell)) else 0 for cell in cells[2:])
    return Gpu(cells[0], cells[1], total, free)


def check_mps(settings: Settings, has_gpus: bool, report: Report) -> None:
    """See that MPS can be started, and the compute mode be set."""
    if not settings.mps:
        report.note("MPS=off: no setting of any GPU is changed, and workers share a GPU in turns")
        return
    report.check(
        shutil.which("nvidia-cuda-mps-control") is not None,
        "MPS: nvidia-cuda-mps-control is there",
        "MPS: nvidia-cuda-mps-control is not on PATH: install the driver's utilities, or run with MPS=off",
    )
    if has_gpus:
        version = cuda_version()
        most = MPS_CLIENTS if version is None or version <= (13, 0) else MPS_CLIENTS_LATER
        report.check(
            settings.workers_per_gpu <= most,
            f"MPS: {settings.workers_per_gpu} workers per GPU, of {most} that it admits",
            f"MPS: MAX_MPL_PER_GPU is {settings.workers_per_gpu}, but MPS admits {most} (CUDA {dotted(version)})",
        )
    if os.geteuid() == 0:
        report.ok("rights: root, so the compute mode can be set")
    elif not settings.sudo:
        report.problem("rights: setting the compute mode needs root, and SUDO is empty: set it, or run with MPS=off")
    else:
        check_sudo(settings.sudo, report)


def check_sudo(sudo: str, report: Report) -> None:
    # sudo may allow nothing but nvidia-smi: that is all that is needed.
    code, _ = run(*sudo.split(), *(["-n", "-l", "nvidia-smi"] if sudo == "sudo" else ["true"]))
    if code == 0:
        report.ok(f"rights: {sudo} works, so the compute mode can be set")
    else:
        report.problem(f"rights: {sudo} does not work here by itself: run sudo -v first, set SUDO, or run with MPS=off")


def check_python(settings: Settings, report: Report) -> None:
    """See that numba can use CUDA, if the libraries are set up."""
    if shutil.which(settings.python) is None:
        report.note(
            "Python: .venv is not there yet; the run sets it up first (some minutes, some GB of CUDA libraries)"
        )
        return
    # Its registries are what every compilation begins with, and take no GPU; to import it shows less than half.
    load = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kaas.gpu; from numba import cuda; "
        "from numba.cuda.descriptor import cuda_target; cuda_target.target_context.refresh(); "
        "print(getattr(cuda, 'implementation', 'built-in'))"
    )
    code, said = run(settings.python, "-c", load)
    said = (said.strip().splitlines() or [""])[-1]
    report.check(
        code == 0, f"Python: numba.cuda is ready to compile ({said})", f"Python: numba.cuda cannot compile ({said})"
    )
    if code == 0 and said != "NVIDIA":
        report.note("Python: numba-cuda is not installed, only Numba's old built-in part: run scripts/setup --gpu")


def check_room(settings: Settings, gpus: list[Gpu], report: Report) -> None:
    """See that matrices and results fit: on disk, in shared memory, on each GPU."""
    matrix, both = settings.matrices_bytes // 2, settings.matrices_bytes
    for what, folder, wanted in (
        ("results", ROOT, GIB // 4),
        ("the clients' matrix file", Path(os.environ.get("TMPDIR", "/tmp")), matrix),  # noqa: S108 - as tempfile does
        ("the clients' matrices in shared memory", Path("/dev/shm"), settings.max_clients * both),  # noqa: S108
    ):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            text = f"{what}: {gib(wanted)} of {gib(free)} free in {folder}"
            report.check(wanted <= free, text, f"{text}: not enough, lower N or MAX_MPL, or make room")
    wanted = settings.workers_per_gpu * (both + CONTEXT_BYTES)
    for number, gpu in enumerate(gpus):
        if wanted > gpu.free:
            report.problem(
                f"GPU {number}: {settings.workers_per_gpu} workers need about {gib(wanted)}, of {gib(gpu.free)} free: "
                "lower N or MAX_MPL_PER_GPU"
            )
    if gpus and not any(wanted > gpu.free for gpu in gpus):
        report.ok(f"GPU memory: about {gib(wanted)} of {gib(min(gpu.free for gpu in gpus))} free on each")


def check_port(settings: Settings, report: Report) -> None:
    """See that the server could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            report.problem(f"port {settings.port}: {reason}; choose another PORT")
        else:
            report.ok(f"port {settings.port} is free")


def tell_duration(settings: Settings, report: Report) -> None:
    """Say how long the run will take."""
    steps = 1 + -(-(settings.max_clients - settings.min_clients) // settings.step_size)
    seconds = settings.repeats * (steps * settings.interval + SECONDS_AROUND_A_RUN)
    report.ok(
        f"duration: {settings.repeats} x {steps} steps x {settings.interval:g} s, about {seconds / 60:.0f} min in all"
    )


def cuda_version() -> tuple[int, int] | None:
    """Ask for the CUDA version of the driver."""
    _, said = run("nvidia-smi", "-q", "-d", "COMPUTE")
    match = re.search(r"CUDA Version\s*:\s*(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


def dotted(version: tuple[int, int] | None) -> str:
    return "version unknown" if version is None else ".".join(map(str, version))


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def run(*command: str) -> tuple[int | None, str]:
    """Run a program; return its exit code, None if there is no such program, and what it says."""
    path = shutil.which(command[0])
    if path is None:
        return None, ""
    try:
        done = subprocess.run(
            [path, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
