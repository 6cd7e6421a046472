"""How a client's matrices travel, as KAAS_TRANSPORT says: in shared memory, or inline, in the messages themselves.

`auto`, the default, takes shared memory where the server says that all workers have its own, and that is the client's;
else the messages. Whose that is, `place` tells: addresses and host names do not, containers may have the same.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaas import locks
from kaas.errors import UsageError

MODES = ("auto", "shm", "inline")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def mode() -> str:
    """Give the mode that KAAS_TRANSPORT says.

    Raises:
        UsageError: it is no such word.
    """
    said = os.environ.get("KAAS_TRANSPORT") or MODES[0]
    if said not in MODES:
        raise UsageError(f"KAAS_TRANSPORT is {said[:40]!r}: give {', '.join(MODES[:-1])} or {MODES[-1]}")
    return said


def chosen(status: Mapping[str, Any]) -> str:
    """Give `shm` or `inline`, for a server of this status.

    Raises:
        UsageError: KAAS_TRANSPORT says nothing of the kind.
    """
    if (said := mode()) != "auto":
        return said
    # A server that tells neither has its workers on its own machine, and knows no other transport.
    here = status.get("engine", {}).get("here", True) and status.get("shared_memory", place()) == place()
    return "shm" if here else "inline"


@functools.cache
def place() -> str:
    """Name the shared memory that this process sees: two that have the same boot and file system see each other's."""
    boot = locks.boot_id() or os.uname().nodename
    try:
        return f"{boot} {_SHARED_MEMORY.stat().st_dev}"
    except OSError:  # as on macOS, which has one for all
        return boot
