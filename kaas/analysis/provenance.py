"""Where the numbers of a report come from: the files, byte by byte, the program, and how it was called."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from kaas import machine
from kaas.analysis.runs import Run

HOW_TO_READ = (
    "With the same files, the same revision and the same libraries, this command line gives the same numbers "
    "(`sha256sum` tells if a file is the same; `--output` makes no difference)."
)

_LIBRARIES = ("numpy", "pandas", "matplotlib")


def provenance(found: Sequence[Run], command: str) -> pd.DataFrame:
    """Give what a report was made of (index: what; column: its value).

    These are the command line, the revision of the analysis, Python and the libraries that reckon and draw, and the
    SHA-256 of each file of the runs.

    Args:
        found: the runs, of all folders.
        command: the command line.
    """
    facts = {"command line": command, "revision": machine.revision(), "Python": platform.python_version()}
    facts |= {library: importlib.metadata.version(library) for library in _LIBRARIES}
    facts |= {f"SHA-256 of {path}": digest for run in found for path, digest in checksums(run).items()}
    return pd.DataFrame({"value": facts}).rename_axis("what")


@lru_cache(32)  # for the table, and for summary.json
def checksums(run: Run) -> Mapping[Path, str]:
    """Give the SHA-256 of each file of a run."""
    digests = {}
    for path in run.files:
        with path.open("rb") as file:
            digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
