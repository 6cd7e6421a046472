"""Where the numbers of a report come from: the files, byte by byte, the program, and how it was called."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence

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
    for path in dict.fromkeys(path for run in found for path in run.files):
        with path.open("rb") as file:
            facts[f"SHA-256 of {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return pd.DataFrame({"value": facts}).rename_axis("what")
