"""What the system tells of a process of this machine by its number: its parent, and when it started; and a quick end.

The standard library only, and nothing of `kaas`: scripts/ use it before the libraries are installed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from pathlib import Path

_PS_LIMIT = 5.0
_STATE, _PARENT, _START = 0, 1, 19
"""Of what /proc/PID/stat says behind the process's name (Linux, proc_pid_stat(5))."""


def parent_of(process: int) -> int:
    """Give the number of a process's parent; 0 if that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_stat(process)[_PARENT] if sys.platform == "linux" else _ps(process, "ppid="))
    return 0


def start_of(process: int) -> str:
    """Say when a process started, in some words of the system; "" if it has ended, reaped or not."""
    with contextlib.suppress(OSError, IndexError):
        if sys.platform == "linux":
            stat = _stat(process)
            return "" if stat[_STATE] in "ZX" else stat[_START]
        state, _, started = _ps(process, "stat=,lstart=").partition(" ")
        return "" if state.startswith("Z") else " ".join(started.split())
    return ""


def seconds_from_boot(process: int) -> float:
    """Tell how many seconds after the machine's boot a process started (Linux).

    Raises:
        OSError, ValueError, IndexError: that is not known.
    """
    return int(_stat(process)[_START]) / os.sysconf("SC_CLK_TCK")


def at_once(code: int) -> None:
    """End this process as `sys.exit` does, but take nothing apart before: that takes a third as long as to start.

    Not for a process with a CUDA context: the driver's library closes that at the end.
    """
    if threading := sys.modules.get("threading"):
        main = threading.main_thread()
        if any(not thread.daemon and thread is not main for thread in threading.enumerate()):
            sys.exit(code)  # which waits for them
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # it is closed, by whoever reads it or here
            stream.flush()
    os._exit(code)


def _stat(process: int) -> list[str]:
    # The name before it may have blanks and brackets.
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _ps(process: int, fields: str) -> str:
    import subprocess  # noqa: PLC0415 - where there is /proc nobody needs it

    command = ["ps", "-o", fields, "-p", str(process)]
    environment = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=_PS_LIMIT, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from None
    return done.stdout.strip()
