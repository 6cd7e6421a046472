"""The scripts' settings as the preflight reads them from the environment, and the report that it gives."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import bare_kaas

from kaas import shape_setting
from kaas.errors import UsageError
from kaas.ramp import Ramp
from kaas.shapes import Stepwise

MATRIX_CLIENT = "cuda-matmul-client"
GIB = 2**30
MIB = 2**20


class Settings(NamedTuple):
    """The script's settings that matter here; `n` is None if the client's input is no matrix size."""

    gpus: int
    workers_per_gpu: int
    shape: Ramp | Stepwise
    repeats: int
    n: int | None
    port: int
    virtual: bool
    mps: bool
    sudo: str
    python: str
    results: Path

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
        self._print("ok", text)

    def note(self, text: str) -> None:
        self._print("note", text)

    def problem(self, text: str) -> None:
        self.problems += 1
        self._print("PROBLEM", text)

    def check(self, holds: bool, good: str, bad: str) -> None:
        (self.ok if holds else self.problem)(good if holds else bad)

    def _print(self, word: str, text: str) -> None:
        lines, head = [text], f"  {word:9}"
        if self._file.isatty():  # which would break a long line in the middle of a word
            width = max(shutil.get_terminal_size().columns - len(head), 20)
            lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        print(head + f"\n{'':{len(head)}}".join(lines), file=self._file)


class NodeReport(Report):
    """That of a node: all that is well, or to be noted, in one line, and each problem in one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[str] = []
        self._wrong: list[str] = []

    def title(self, text: str) -> None:
        """Say nothing: there is one for all nodes."""

    def ok(self, text: str) -> None:
        self._found.append(text)

    def note(self, text: str) -> None:
        self._found.append(text)

    def problem(self, text: str) -> None:
        self.problems += 1
        self._wrong.append(text)

    def tell(self) -> None:
        if self._found:
            print(f"  {'note' if self._wrong else 'ok':8} node {{node}}: {'; '.join(self._found)}")
        for text in self._wrong:
            print(f"  PROBLEM  node {{node}}: {text}")


def read_settings(report: Report, *, virtual: bool) -> Settings | None:
    """Read the settings, of virtual GPUs or real ones; each that cannot work is a problem."""

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
    mps = "off" if virtual else os.environ.get("MPS", "")
    if mps not in {"on", "off"}:
        report.problem(f"MPS is {mps!r}: give on or off")
    if report.problems:
        return None
    try:
        shape = shape_setting.read(
            os.environ.get("SHAPE") or shape_setting.DEFAULT, Ramp(first, last, step, interval), "SHAPE"
        )
    except UsageError as error:
        report.problem(str(error))
        return None
    return Settings(
        gpus,
        workers,
        shape,
        repeats,
        n,
        port,
        virtual,
        mps == "on",
        os.environ.get("SUDO", ""),
        os.environ.get("KAAS_PYTHON", ""),
        Path(os.environ.get("RESULTS") or bare_kaas.ROOT),
    )


def amount(size: int) -> str:
    """Write a number of bytes in words, of a MiB at least."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{-(-size // MIB)} MiB"


def duration(seconds: float) -> str:
    """Write a time in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004


NEAR_FROM = 5
"""Letters of a setting's name from which on one that is nearly it is no accident."""


def note_near_names(report: Report, script: Path) -> None:
    """Tell of variables whose names are nearly those of a script's settings, which stand in the comment at its head."""
    head = script.read_text(encoding="utf-8").partition("\n[")[0]
    settings = set(re.findall(r"\b([A-Z][A-Z_]+)=", head))
    for name, meant in near_names(os.environ, settings - {"PYTHON"}):  # PYTHON3 and the like are other programs' own
        report.note(f"{name} is no setting: {meant} is one, and this run does not heed {name}")


def near_names(given: Iterable[str], settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Give each name that is no setting's, and the setting from which one letter, or two exchanged, tell it."""
    known = set(settings)
    for name in sorted(set(given) - known):
        for setting in sorted(known):
            if len(setting) >= NEAR_FROM and abs(len(name) - len(setting)) <= 1 and _is_near(name.upper(), setting):
                yield name, setting


def _is_near(one: str, other: str) -> bool:
    if one == other:  # but for capitals
        return True
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[at:], other[at:]
    swapped = one[1:2] + one[0:1] + one[2:]
    return one[1:] == other[1:] or one[1:] == other or one == other[1:] or swapped == other
