"""What a node is called, and where a file of the user's lies on it."""

from pathlib import Path
from typing import NamedTuple

from kaas import ROOT


class Node(NamedTuple):
    """A node that Ray has: `id` is Ray's own and never comes again; `gpus` is how many it has."""

    id: str
    address: str
    name: str
    gpus: int

    @property
    def label(self) -> str:
        """What a user calls it, without blanks."""
        return "-".join((self.name or self.address).split())


def place_of(file: Path) -> str:
    """Say where a file is to be found on a node: in the project, which is shipped, else under its own path."""
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
