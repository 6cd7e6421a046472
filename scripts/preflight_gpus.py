"""The part of the preflight that is about GPUs: which are used, who else does, and whether MPS can be had."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import bare_kaas  # noqa: F401
import gpu_record
import mps
from preflight_settings import Report, Settings

from kaas import nvidia, programs
from kaas.nvidia import VISIBLE, Gpu

MPS_CLIENTS = 48
MPS_CLIENTS_LATER = 60
MPS_CLIENTS_BEFORE_VOLTA = 16
"""Contexts that MPS admits for each GPU up to CUDA 13.0, later, and on old cards (NVIDIA, Multi-Process Service)."""
VOLTA = (7, 0)
LIMIT = 60.0


def check_gpus(settings: Settings, report: Report) -> list[Gpu]:
    """Find the GPUs that would be used."""
    found, answer = nvidia.found()
    if not found:
        reason = answer.said or "it lists none"
        report.problem(f"no NVIDIA GPU: nvidia-smi finds none ({reason}); without one, run ./autoscale-cpu.sh")
        return []
    setting = os.environ.get(VISIBLE)
    names, note = nvidia.given(setting, found)
    if note:
        report.note(note)
    if not names:
        report.problem(f"{VISIBLE} is {setting!r} and gives no GPU: name some, or unset it")
        return []
    by_uuid = {gpu.uuid: gpu for gpu in found}
    used = [by_uuid[name] for name in names[: settings.gpus] if name in by_uuid]
    parts = [name for name in names if name not in by_uuid] + [f"GPU {gpu.number}" for gpu in used if gpu.mig]
    if parts:
        report.problem(f"MIG is on ({', '.join(parts)}), but the experiment needs whole GPUs: switch it off")
    if not used:
        return []
    kinds = ", ".join(sorted({gpu.name for gpu in used}))
    report.ok(f"{len(names)} GPUs, {len(used)} to be used ({kinds}), driver {used[0].driver}")
    if len(names) < settings.gpus:
        report.note(f"AVAILABLE_GPUS is {settings.gpus}, but only {len(names)} are there: fewer are used")
    if settings.mps:
        check_others(used, report)
    else:
        check_modes(settings, used, report)
    return used


def check_others(used: Sequence[Gpu], report: Report) -> None:
    """See that nobody computes on the GPUs: in exclusive mode neither they nor we could go on."""
    answer = programs.run(
        "nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader", limit=nvidia.PATIENCE
    )
    ours = tuple(f"{gpu.uuid}," for gpu in used)
    apps = [line.strip() for line in answer.out.splitlines() if line.strip().startswith(ours)]
    apps = [line for line in apps if "nvidia-cuda-mps" not in line]
    report.check(
        not apps, "nobody else computes on a GPU", f"in use by others: {'; '.join(apps[:4])}; wait, or run with MPS=off"
    )


def check_modes(settings: Settings, used: Sequence[Gpu], report: Report) -> None:
    """See that, without MPS, every worker can have the GPU."""
    shut = [str(gpu.number) for gpu in used if gpu.mode == "PROHIBITED"]
    if shut:
        report.problem(f"GPU {', '.join(shut)}: its compute mode PROHIBITED lets nobody compute: nvidia-smi -c DEFAULT")
    exclusive = [str(gpu.number) for gpu in used if gpu.mode.startswith("EXCLUSIVE")]
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or mps.DEFAULT_PIPE
    if not exclusive or settings.workers_per_gpu == 1:
        return
    if mps.answers(Path(pipe)):
        report.note(f"MPS=off, but an MPS control daemon runs at {pipe}, and workers will be its clients")
    else:
        report.problem(
            f"GPU {', '.join(exclusive)}: in its exclusive compute mode it takes one worker, not "
            f"{settings.workers_per_gpu}: run with MPS=on or MAX_MPL_PER_GPU=1, or set it to DEFAULT (nvidia-smi -c)"
        )


def check_mps(settings: Settings, used: Sequence[Gpu], report: Report) -> None:
    """See that MPS can be started, and the compute mode be set."""
    if not settings.mps:
        report.note("MPS=off: no setting of any GPU is changed, and workers share a GPU in turns")
        return
    report.check(
        shutil.which(mps.PROGRAM) is not None,
        f"MPS: {mps.PROGRAM} is there",
        f"MPS: {mps.PROGRAM} is not on PATH: install the driver's utilities, or run with MPS=off",
    )
    trouble = gpu_record.trouble()
    if trouble:
        report.problem(trouble)
    if used:
        most = most_clients(settings.workers_per_gpu, used)
        report.check(
            settings.workers_per_gpu <= most,
            f"MPS: {settings.workers_per_gpu} workers per GPU, of {most} that it admits",
            f"MPS: MAX_MPL_PER_GPU is {settings.workers_per_gpu}, but MPS admits {most} on this card and driver",
        )
    if os.geteuid() == 0:
        report.ok("rights: root, so the compute mode can be set")
    elif not settings.sudo:
        report.problem("rights: setting the compute mode needs root, and SUDO is empty: set it, or run with MPS=off")
    else:
        check_sudo(settings.sudo, report)


def check_sudo(sudo: str, report: Report) -> None:
    # sudo may allow nothing but nvidia-smi: that is all that is needed.
    command = [*sudo.split(), *(["-n", "-l", "nvidia-smi"] if sudo == "sudo" else ["true"])]
    if programs.run(*command, limit=LIMIT).code == 0:
        report.ok(f"rights: {sudo} works, so the compute mode can be set")
    else:
        report.problem(f"rights: {sudo} does not work here by itself: run sudo -v first, set SUDO, or run with MPS=off")


def most_clients(wanted: int, used: Sequence[Gpu]) -> int:
    """Tell how many clients MPS admits on each GPU; what takes another question is asked only if it matters."""
    if any(gpu.capability is not None and gpu.capability < VOLTA for gpu in used):
        return MPS_CLIENTS_BEFORE_VOLTA
    if wanted <= MPS_CLIENTS:
        return MPS_CLIENTS
    answer = programs.run("nvidia-smi", "-q", "-d", "COMPUTE", limit=nvidia.PATIENCE)
    # Drivers from 610 on call it by another name.
    version = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", answer.out)
    return MPS_CLIENTS_LATER if version and (int(version[1]), int(version[2])) > (13, 0) else MPS_CLIENTS
