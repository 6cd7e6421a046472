"""The settings of autoscale.sh as the preflight reads them from the environment, and the report that it gives."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

MATRIX_CLIENT = "cuda-matmul-client"
GIB = 2**30


class Settings(NamedTuple):
    """The script's settings that matter here; `n` is None if the client's input is no matrix size."""

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

    def __init__(self, file: TextIO = sys.stdout) -> None:
        self.problems = 0
        self._file = file

    def title(self, text: str) -> None:
        print(text, file=self._file)

    def ok(self, text: str) -> None:
        print(f"  ok       {text}", file=self._file)

    def note(self, text: str) -> None:
        print(f"  note     {text}", file=self._file)

    def problem(self, text: str) -> None:
        self.problems += 1
        print(f"  PROBLEM  {text}", file=self._file)

    def check(self, holds: bool, good: str, bad: str) -> None:
        (self.ok if holds else self.problem)(good if holds else bad)


def read_settings(report: Report) -> Settings | None:
    """Read the settings; each that cannot work is a problem."""

    def read(name: str, kind: Callable[[str], float], what: str) -> float:
        text = os.environ.get(name, "")
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 10**9 and not (name == "PORT" and text and not text.strip("0")):
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
    # What N means is the client's business: only this project's own takes it for a matrix's size.
    is_matrix = Path(os.environ.get("CLIENT", "")).name.removesuffix(".py") == MATRIX_CLIENT
    n = whole("N") if is_matrix else None
    mps = os.environ.get("MPS", "")
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
        n,
        port,
        mps == "on",
        os.environ.get("SUDO", ""),
        os.environ.get("KAAS_PYTHON", ""),
    )


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
