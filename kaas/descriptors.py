"""How many files, connections among them, a process may have open."""

import resource

from kaas.errors import UsageError

_FEWEST = 32
"""Descriptors with which our programs get as far as to say themselves what they have no room for."""
_RESERVE = 64
"""Descriptors that clients leave to the rest of the server, besides two for each worker."""


def raise_limit() -> None:
    """Allow as many connections as the system lets us.

    Raises:
        UsageError: that is too few for anything.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _FEWEST:
        raise UsageError(f"only {hard} files may be open at a time: allow {_FEWEST} at least (ulimit -n)")
    if soft != hard:
        # macOS names a hard limit of infinity and takes no soft one above OPEN_MAX.
        most = 10240 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def most_connections(others: int) -> int:
    """Tell how many connections of clients the descriptors allow, where `others` are kept for something else."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(descriptors - _RESERVE - others, descriptors // 2)
