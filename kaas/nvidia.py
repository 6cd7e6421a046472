"""Which NVIDIA GPUs this machine has, as nvidia-smi tells, and which of them CUDA_VISIBLE_DEVICES gives.

One question for all GPUs and all that is to be known of them: a driver without persistence mode sets up every GPU
each time that it is asked, which takes seconds for each. Lines that are an answer count, whatever else nvidia-smi
prints and whatever its exit code is: it warns of a damaged infoROM, say, and ends with 14.

The standard library only: scripts/ use it before the libraries are installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kaas import programs
from kaas.programs import Answer

PATIENCE = 120.0
"""Seconds that nvidia-smi may take for an answer: without persistence mode some, times the number of GPUs."""
MODES = {
    "Default": "DEFAULT",
    "Exclusive_Thread": "EXCLUSIVE_THREAD",
    "Exclusive_Process": "EXCLUSIVE_PROCESS",
    "Prohibited": "PROHIBITED",
}
"""A compute mode as nvidia-smi prints it, and as its -c takes it."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "memory.free",
    "compute_mode",
    "mig.mode.current",
)
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')


class Gpu(NamedTuple):
    """A GPU; memory in bytes. What nvidia-smi does not tell is empty, 0 or None."""

    number: int
    uuid: str
    name: str
    driver: str
    capability: tuple[int, int] | None
    total: int
    free: int
    mode: str
    """The compute mode, as `nvidia-smi -c` takes it."""
    mig: bool


class Asked(NamedTuple):
    """The fields that this driver knows, a row of them for each GPU, and all that nvidia-smi said."""

    fields: list[str]
    rows: list[dict[str, str]]
    answer: Answer


class Given(NamedTuple):
    """What CUDA_VISIBLE_DEVICES gives: a name for CUDA of each GPU, and why the list ends early, if it does."""

    names: list[str]
    note: str


def ask(fields: Iterable[str], only: Sequence[str] = ()) -> Asked:
    """Ask nvidia-smi for fields of each GPU, and again without what this driver does not know, until it answers.

    Args:
        fields: `index` among them, by which a row is told from any other line.
        only: the options that choose the GPUs.
    """
    known = list(fields)
    while True:
        answer = programs.run(
            "nvidia-smi", f"--query-gpu={','.join(known)}", "--format=csv,noheader,nounits", *only, limit=PATIENCE
        )
        unknown = [field for field in _UNKNOWN_FIELD.findall(answer.out + answer.err) if field in known]
        if not unknown:
            return Asked(known, [row for line in answer.out.splitlines() if (row := _row(line, known))], answer)
        known = [field for field in known if field not in unknown]


def found() -> tuple[list[Gpu], Answer]:
    """List the GPUs of this machine; give what nvidia-smi said, too, in case there are none."""
    asked = ask(_FIELDS)
    return [_gpu(row) for row in asked.rows if row.get("uuid", "").startswith("GPU-")], asked.answer


def given(setting: str | None, gpus: Sequence[Gpu]) -> Given:
    """Read CUDA_VISIBLE_DEVICES as CUDA does.

    Unset it gives all GPUs, empty none. Else it lists numbers (in the order of the PCI bus, as nvidia-smi numbers
    them), UUIDs or beginnings of UUIDs that fit one GPU only, and ends at the first entry that fits none. A GPU named
    twice makes CUDA find no GPU at all. Parts of a GPU under MIG (`MIG-...`) keep their names.

    Source: NVIDIA, CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if setting is None:
        return Given([gpu.uuid for gpu in gpus], "")
    names: list[str] = []
    if not setting.strip():
        return Given(names, "")
    for entry in setting.split(","):
        name = _match(entry.strip(), gpus)
        if not name:
            return Given(names, f"{VISIBLE}={setting}: {entry.strip() or 'an empty entry'} is no GPU here and ends it")
        if name in names:
            return Given([], f"{VISIBLE}={setting} names {name} twice, and so CUDA finds no GPU")
        names.append(name)
    return Given(names, "")


def for_workers(count: int) -> tuple[tuple[str, ...], str]:
    """Choose what a server's GPUs are called that was told nothing about them; say what is to be known about that.

    Where CUDA_VISIBLE_DEVICES is unset there are no names: the GPUs' numbers do. Where it gives too few, the others
    are named "": a worker of one sees no GPU, and so never somebody else's.
    """
    setting = os.environ.get(VISIBLE)
    if setting is None:
        return (), ""
    gpus = found()[0]
    # Where nvidia-smi lists none, nobody here can tell what fits; CUDA still can.
    names, note = given(setting, gpus) if gpus else Given(list(filter(None, map(str.strip, setting.split(",")))), "")
    if len(names) < count:
        note = (
            f"{note or f'{VISIBLE}={setting}'}: it gives {len(names)} of {count} GPUs; a worker of any other sees "
            "none, and only a kernel that needs none can run there"
        )
    return (*names[:count], *[""] * (count - len(names))), note


def _match(entry: str, gpus: Sequence[Gpu]) -> str:
    """Find what an entry names; nothing if that is no GPU, or more than one."""
    number = re.match(r"\+?([0-9]+)", entry)  # whatever follows it: CUDA reads it so
    if number:
        fitting = [gpu.uuid for gpu in gpus if str(gpu.number) == (number[1].lstrip("0") or "0")]
    elif entry.startswith("MIG-"):
        fitting = [entry] if any(gpu.mig for gpu in gpus) else []
    else:
        fitting = [gpu.uuid for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else ""


def _row(line: str, fields: Sequence[str]) -> dict[str, str] | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(fields):
        return None
    row = {field: cells[number] for number, field in enumerate(fields)}
    return row if row["index"].isdecimal() else None


def _gpu(row: dict[str, str]) -> Gpu:
    capability = re.fullmatch(r"(\d+)\.(\d+)", row.get("compute_cap", ""))
    total, free = (
        int(match[0]) * 2**20 if (match := re.match(r"\d+", row.get(f"memory.{what}", ""))) else 0
        for what in ("total", "free")
    )
    return Gpu(
        int(row["index"]),
        row["uuid"],
        row.get("name", ""),
        row.get("driver_version", ""),
        (int(capability[1]), int(capability[2])) if capability else None,
        total,
        free,
        MODES.get(row.get("compute_mode", ""), ""),
        row.get("mig.mode.current") == "Enabled",
    )
