"""Which repeats of an experiment are there already, for a run that goes on with the others.

    python -m kaas.resume FOLDER TASK [ASIDE]

TASK is the name of a repeat's files but for its number. Says what is kept and, in the last two lines (`worst: 3`,
`complete: 1 2`), the worst exit code of the complete repeats, and their numbers; what there is of others is moved into
ASIDE, if that is given. The settings of the run come in the environment: they must be those of the repeats that are
there.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kaas import cli, description
from kaas.errors import ResultsError, UsageError
from kaas.results import RunFiles


class _Setting(NamedTuple):
    """What the description of a run calls a setting, what it is unless it is set, and whether a file names it."""

    noted: str
    default: str = ""
    is_file: bool = False


SETTINGS: Mapping[str, _Setting] = {
    "CLIENT": _Setting("Client"),
    "N": _Setting("Input"),
    "MIN_MPL": _Setting("Minimum parallel requests"),
    "MAX_MPL": _Setting("Maximum parallel requests"),
    "STEP_SIZE": _Setting("Step size"),
    "INTERVAL": _Setting("Interval"),
    "SHAPE": _Setting("Shape", "steps"),
    "BACKOFF": _Setting("Backoff"),
    "AVAILABLE_GPUS": _Setting("Server number of GPUs"),
    "MAX_MPL_PER_GPU": _Setting("Server workers per GPU"),
    "SEGMENTS": _Setting("Segments", "fresh"),
    "KAAS_TRANSPORT": _Setting("Transport", "auto"),
    "POLICY": _Setting("Server policy", "paper"),
    "WHEN_FULL": _Setting("Server when full", "reject"),
    "IDLE_TIMEOUT": _Setting("Server idle timeout [s]", "60"),
    "CALL_TIMEOUT": _Setting("Server call timeout [s]", "0"),
    "ENGINE": _Setting("Server engine", "local"),
    "TIME_SCALE": _Setting("Time scale", "1"),
    "CALIBRATION": _Setting("Calibration", "none", is_file=True),
}
EXIT_CODE = "Exit code"
"""What the description calls the exit code of a repeat that was not a clean one."""
_TO_ITS_END = "at the end of the ramp"


def complete(folder: Path, task: str, settings: Mapping[str, str]) -> list[int]:
    """Give the numbers of the repeats of `task` that came to their end in a folder, with all their files.

    Raises:
        UsageError: what is there was run with other settings, or is of another task.
    """
    for path in sorted(folder.glob("*.md")):
        if _number(path.stem, task) is None:
            raise UsageError(f"RESUME: {folder} has {path.stem}, which is no repeat of {task}: set another EXPERIMENT")
    numbers = []
    for number in _begun(folder, task):
        files = RunFiles(folder, f"{task}-{number}")
        noted = description.read(files.description)
        # The events are sorted last of all.
        if noted.get("Ended") == _TO_ITS_END and files.requests.exists() and files.serverlogs.exists():
            _compare(folder, noted, settings)
            numbers.append(number)
    return numbers


def put_aside(folder: Path, aside: Path, task: str, kept: list[int]) -> list[int]:
    """Move what there is of repeats that are not kept into another folder; give their numbers.

    Raises:
        ResultsError: it cannot be moved.
    """
    others = [number for number in _begun(folder, task) if number not in kept]
    try:
        for path in [path for path in folder.iterdir() if _number(path.name, task) in others]:
            aside.mkdir(exist_ok=True)
            path.rename(aside / path.name)
    except OSError as error:
        raise ResultsError(f"RESUME: {folder} cannot be put in order: {error.strerror}") from None
    return others


def _compare(folder: Path, noted: Mapping[str, str], settings: Mapping[str, str]) -> None:
    for name, (known_as, default, is_file) in SETTINGS.items():
        wanted, had = settings.get(name) or default, noted.get(known_as, default)
        if is_file:
            wanted = Path(wanted).stem
        if not _equal(wanted, had):
            raise UsageError(
                f"RESUME: {name} is {wanted}, but the repeats in {folder} had {had}: set that, or another EXPERIMENT"
            )


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _begun(folder: Path, task: str) -> list[int]:
    return sorted({number for path in folder.iterdir() if (number := _number(path.name, task)) is not None})


def _number(name: str, task: str) -> int | None:
    """Give the number of the repeat that a file belongs to, if it is one of the task's."""
    match = re.match(rf"{re.escape(task)}-(\d+)(?![^.-])", name)
    return int(match[1]) if match else None


def main() -> None:
    """Do what the command line says."""
    folder, task, *aside = Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:])
    kept = complete(folder, task, os.environ)
    moved = put_aside(folder, aside[0], task, kept) if aside else []
    print(f"Complete in {folder}: repeat {_words(kept)}" if kept else f"No repeat in {folder} is complete")  # noqa: T201
    if moved:
        print(f"What there was of repeat {_words(moved)} is now in {aside[0]}")  # noqa: T201
    noted = [description.read(RunFiles(folder, f"{task}-{number}").description) for number in kept]
    print("worst:", max((int(of.get(EXIT_CODE, 0)) for of in noted), default=0))  # noqa: T201
    print("complete:", *kept)  # noqa: T201


def _words(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    cli.run(main, cli.at_once)
