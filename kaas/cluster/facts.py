"""What must be the same on every node and on the server's machine, for a run to be one experiment."""

import platform
from collections.abc import Mapping
from importlib import metadata

from kaas import __version__

_LIBRARIES = ("numpy", "numba", "numba-cuda", "ray")


def versions() -> dict[str, str]:
    """Give the versions here, of Python, this project and the libraries; "none" of what is not installed."""
    return {"Python": platform.python_version(), "this project": __version__} | {
        name: _version(name) for name in _LIBRARIES
    }


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Say in which versions another machine differs from this one; "" if in none."""
    return ", ".join(
        f"{name} is {theirs.get(name, 'none')} there and {ours.get(name, 'none')} here"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name, "none") != theirs.get(name, "none")
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"
