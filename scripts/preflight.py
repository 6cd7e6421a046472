"""What autoscale.sh needs, checked before anything is changed: every problem in one pass, exit code 2 if there is one.

With --list-gpus the report goes to stderr, and to stdout what CUDA calls the GPUs to be used, with commas between them.

Uses the standard library only, since the libraries may not be set up yet. The settings come in the environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import bare_kaas
import gpu_record
from preflight_gpus import check_gpus, check_mps
from preflight_settings import GIB, Report, Settings, gib, read_settings

from kaas import programs
from kaas.nvidia import Gpu

CONTEXT_BYTES = 400 * 2**20
"""What a worker's CUDA context and code take on a GPU, generously."""
SECONDS_AROUND_A_RUN = 15
IMPORT_LIMIT = 60.0


def main() -> int:
    lists = sys.argv[1:] == ["--list-gpus"]
    report = Report(sys.stderr if lists else sys.stdout)
    report.title("Preflight: nothing is changed")
    settings = read_settings(report)
    if gpu_record.is_there():
        report.note(f"an earlier run was cut off: a run with MPS, or --restore, puts back {gpu_record.RECORD}")
    gpus: list[Gpu] = []
    if settings is not None:
        gpus = check_gpus(settings, report)
        check_mps(settings, gpus, report)
        check_python(settings, report)
        check_room(settings, gpus, report)
        check_port(settings, report)
        tell_duration(settings, report)
    if report.problems:
        report.title(f"{report.problems} problem{'' if report.problems == 1 else 's'}: the experiment would fail")
        return 2
    if lists:
        print(",".join(gpu.uuid for gpu in gpus))
    return 0


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


def check_room(settings: Settings, gpus: Sequence[Gpu], report: Report) -> None:
    """See that matrices and results fit: on disk, in shared memory, on each GPU."""
    matrix, both = settings.matrices_bytes // 2, settings.matrices_bytes
    for what, folder, wanted in (
        ("results", bare_kaas.ROOT, GIB // 4),
        ("the clients' matrix file", Path(os.environ.get("TMPDIR", "/tmp")), matrix),  # noqa: S108 - as tempfile does
        ("the clients' matrices in shared memory", Path("/dev/shm"), settings.max_clients * both),  # noqa: S108
    ):
        if wanted and folder.is_dir():
            free = shutil.disk_usage(folder).free
            text = f"{what}: {gib(wanted)} of {gib(free)} free in {folder}"
            report.check(wanted <= free, text, f"{text}: not enough, lower N or MAX_MPL, or make room")
    wanted = settings.workers_per_gpu * (both + CONTEXT_BYTES)
    for gpu in gpus:
        if gpu.total and wanted > gpu.free:  # some do not tell how much they have
            report.problem(
                f"GPU {gpu.number}: {settings.workers_per_gpu} workers need {gib(wanted)}, of {gib(gpu.free)} free: "
                "lower N or MAX_MPL_PER_GPU"
            )
    if gpus and all(wanted <= gpu.free for gpu in gpus):
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
            report.ok(f"port {settings.port} is free" if settings.port else "port: any that is free")


def tell_duration(settings: Settings, report: Report) -> None:
    """Say how long the run will take."""
    steps = 1 + -(-(settings.max_clients - settings.min_clients) // settings.step_size)
    seconds = settings.repeats * (steps * settings.interval + SECONDS_AROUND_A_RUN)
    report.ok(
        f"duration: {settings.repeats} x {steps} steps x {settings.interval:g} s, about {seconds / 60:.0f} min in all"
    )


if __name__ == "__main__":
    code = 2  # what nobody has read to its end has not been checked
    with contextlib.suppress(BrokenPipeError):
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
