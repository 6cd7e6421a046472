"""What a run needs, checked before anything is changed: every problem in one pass, exit code 2 if there is one.

    preflight.py SCRIPT [--virtual [--emulated]] [--list-gpus | --head | --node NODES]

SCRIPT is the one that would run, whose settings come in the environment. With --virtual its GPUs are virtual ones, and
with --emulated their work is none of the cores'.
With --list-gpus the report goes to stderr, and to stdout what CUDA calls the GPUs to be used, with commas between them.
Where the run is one over the nodes of a cluster, --head looks at what is needed on the machine that starts it, and
--node at this one as one of so many NODES; that is one line, which calls this node `{node}`, and one for each problem.

Uses the standard library only, since the libraries may not be set up yet.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import bare_kaas
import gpu_record
from preflight_gpus import check_gpus, check_mps
from preflight_settings import MIB, NodeReport, Report, Settings, amount, duration, note_near_names, read_settings

from kaas import cgroup, programs
from kaas.nvidia import Gpu
from kaas.ramp import Ramp

CONTEXT_BYTES = 400 * 2**20
"""What a worker's CUDA context and code take on a GPU, generously."""
RESULTS_BYTES = 256 * MIB
"""What a run and its figures take on disk, generously."""
LIBRARIES_BYTES = 620 * MIB, 1100 * MIB
"""What scripts/setup puts into .venv, and what more for GPUs."""
SECONDS_AROUND_A_REPEAT = {True: 4, False: 15}
"""Of virtual GPUs and of real ones: the server's start and end, and the clients'."""
SECONDS_TO_DRAW = 12
IMPORT_LIMIT = 60.0


def main() -> int:
    script, options = Path(sys.argv[1]), sys.argv[2:]
    lists, virtual, head = ("--list-gpus" in options, "--virtual" in options, "--head" in options)
    nodes = int(options[options.index("--node") + 1]) if "--node" in options else 0
    report = NodeReport() if nodes else Report(sys.stderr if lists else sys.stdout)
    report.title("Preflight: nothing is changed")
    if not nodes:
        note_near_names(report, script)
    settings = read_settings(report, virtual=virtual)
    if settings is not None and nodes:
        folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - the rows are sent from there
        settings = settings._replace(results=folder)
    if not virtual and gpu_record.is_there():
        report.note(f"an earlier run was cut off: a run with MPS, or --restore, puts back {gpu_record.RECORD}")
    gpus: list[Gpu] = []
    if settings is not None:
        if "--emulated" in options:
            report.note("GPUs: emulated, so that nothing of this run is a measurement, and every file says so")
        elif virtual and not head:
            tell_cores(settings, report)
        elif not head:
            gpus = check_gpus(settings, report)
            check_mps(settings, gpus, report)
            check_python(settings, report)
            if nodes:
                report.ok(f"Python {platform.python_version()}")
        check_room(settings, gpus, report, clients=0 if head else sharing_clients(settings, max(nodes, 1)))
        if not nodes:
            check_port(settings, report)
            tell_duration(settings, report)
    if isinstance(report, NodeReport):
        report.tell()
        return 2 if report.problems else 0
    if report.problems:
        report.title(f"{report.problems} problem{'' if report.problems == 1 else 's'}: the experiment would fail")
        return 2
    if lists:
        print(",".join(gpu.uuid for gpu in gpus))
    return 0


def tell_cores(settings: Settings, report: Report) -> None:
    """Say how many workers would share how many cores."""
    cores, busy = cgroup.cores(), min(settings.gpus * settings.workers_per_gpu, settings.shape.most)
    text = f"cores: {cores:g}, and at most {busy} workers busy at once"
    if busy <= cores:
        report.ok(text)
    else:
        report.note(f"{text}, which take turns: throughput cannot grow as on GPUs")


def check_python(settings: Settings, report: Report) -> None:
    """See that numba can use CUDA, if the libraries are set up."""
    if shutil.which(settings.python) is None:
        report.note(
            "Python: .venv is not there yet; the run sets it up first (some minutes, some GB of CUDA libraries)"
        )
        return
    # Its registries are what every compilation begins with, and take no GPU; to import it shows less than half.
    load = (
        f"import sys; sys.path.insert(0, {str(bare_kaas.ROOT)!r}); import kaas.gpu; from numba import cuda; "
        "from numba.cuda.descriptor import cuda_target; cuda_target.target_context.refresh(); "
        "print(getattr(cuda, 'implementation', 'built-in'))"
    )
    code, out, err = programs.run(settings.python, "-c", load, limit=IMPORT_LIMIT)
    said = ((out if code == 0 else out + err).strip().splitlines() or [""])[-1]
    report.check(
        code == 0, f"Python: numba.cuda is ready to compile ({said})", f"Python: numba.cuda cannot compile ({said})"
    )
    if code == 0 and said != "NVIDIA":
        report.note("Python: numba-cuda is not installed, only Numba's old built-in part: run scripts/setup --gpu")


def sharing_clients(settings: Settings, nodes: int) -> int:
    """Tell how many clients a node has whose matrices are in shared memory; over several, they travel in messages."""
    how = os.environ.get("KAAS_TRANSPORT") or "auto"
    return -(-settings.shape.most // nodes) if how == "shm" or (how == "auto" and nodes == 1) else 0


def check_room(settings: Settings, gpus: Sequence[Gpu], report: Report, *, clients: int) -> None:
    """See that matrices and results fit: on disk, in shared memory of so many clients, on each GPU."""
    matrix, both = settings.matrices_bytes // 2, settings.matrices_bytes
    shared = clients * both
    libraries = sum(LIBRARIES_BYTES[: 1 if settings.virtual else 2]) * (shutil.which(settings.python) is None)
    for what, folder, wanted in (
        ("libraries, set up once", bare_kaas.ROOT, libraries),
        ("results", settings.results, RESULTS_BYTES),
        ("the clients' matrix file", Path(os.environ.get("TMPDIR", "/tmp")), matrix),  # noqa: S108 - as tempfile does
        ("the clients' matrices in shared memory", Path("/dev/shm"), shared),  # noqa: S108
    ):
        if wanted:
            check_folder(what, folder, wanted, report)
    wanted = settings.workers_per_gpu * (both + CONTEXT_BYTES)
    for gpu in gpus:
        if gpu.total and wanted > gpu.free:  # some do not tell how much they have
            report.problem(
                f"GPU {gpu.number}: {settings.workers_per_gpu} workers need {amount(wanted)}, and {amount(gpu.free)} "
                "are free: lower N or MAX_MPL_PER_GPU"
            )
    if gpus and all(wanted <= gpu.free for gpu in gpus):
        report.ok(f"GPU memory: needs about {amount(wanted)} on each, {amount(min(gpu.free for gpu in gpus))} are free")
    place = existing(settings.results)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        report.problem(f"results: {settings.results} cannot be written: set RESULTS to a folder of yours")


def check_folder(what: str, folder: Path, wanted: int, report: Report) -> None:
    if folder == Path("/dev/shm") and not folder.is_dir():  # noqa: S108 - as on macOS, which does not tell what is free
        report.ok(f"{what}: needs {amount(wanted)}")
        return
    free = shutil.disk_usage(existing(folder)).free
    text = f"{what}: needs {amount(wanted)}, {amount(free)} are free in {folder}"
    report.check(wanted <= free, text, f"{text}: lower N or MAX_MPL, or make room")


def existing(folder: Path) -> Path:
    """Give a folder, or the nearest above it that is there already."""
    return next(place for place in (folder, *folder.parents) if place.exists())


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
            report.ok(f"port {settings.port} is free" if settings.port else "port: any that is free")


def tell_duration(settings: Settings, report: Report) -> None:
    """Say how long the run will take."""
    shape = settings.shape
    each = shape.duration + SECONDS_AROUND_A_REPEAT[settings.virtual]
    about = duration(settings.repeats * each + SECONDS_TO_DRAW)
    most = "at most " if os.environ.get("REPEAT_UNTIL") else ""
    if isinstance(shape, Ramp):
        what = f"{shape.steps} step{'s' * (shape.steps != 1)} x {shape.interval:g} s"
    else:
        what = f"{shape.duration:g} s of {shape.name} with at most {shape.most} clients"
    report.ok(f"duration: {most}{settings.repeats} x {what}, about {about}")


if __name__ == "__main__":
    code = 2  # what nobody has read to its end has not been checked
    with contextlib.suppress(BrokenPipeError):
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
