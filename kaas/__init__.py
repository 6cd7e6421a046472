"""Kernel-as-a-Service: the autoscaling experiment of the Middleware '23 paper.

The scripts beside this folder are thin command lines over the rooms in here: `server`, `load`, `monitor` and
`analysis`. Rooms use the files directly under `kaas/` and never each other.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder: where the scripts, kernels and clients lie."""

SINGLE_THREADED = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
    ),
    "1",
)
"""Environment in which numerical libraries start no threads of their own: one process is one core's work."""

# The commonest stumble: a script started with the system's Python. One line says what to do.
_missing = [name for name in ("numpy", "psutil", "rich") if not find_spec(name)]
if _missing or sys.version_info < (3, 11):
    _what = f"lacks {', '.join(_missing)}" if _missing else "is older than Python 3.11"
    sys.exit(f"{sys.executable} {_what}: run ./scripts/setup once, then `source .venv/bin/activate`")
