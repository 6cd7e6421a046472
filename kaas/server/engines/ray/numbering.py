"""Which numbers the GPUs of the nodes have. Pure: what it was told before is all that it goes by.

Numbers run over all nodes in the order of their addresses, then devices, then names (simulated nodes have one address).
They stay: a node that joins later gets the next ones, and one that comes back, or another with the same address and
name, has those that it had.
"""

import ipaddress
from collections.abc import Iterable

from kaas.cluster.nodes import Node

Key = tuple[bool, int, str, str, int]


class Numbering:
    """Gives out the numbers.

    Args:
        most: how many GPUs there shall be at most; None for all that there are.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._numbers: dict[Key, list[int]] = {}
        self._keys: dict[str, Key] = {}  # of the nodes that are there
        self._given = 0

    def number(self, nodes: Iterable[Node]) -> dict[str, list[int]]:
        """Give the numbers of the GPUs of each node that is there now, by its id, device by device; may be none."""
        there = {node.id: node for node in sorted(nodes, key=lambda node: (*_place(node), node.id))}
        self._keys = {each: key for each, key in self._keys.items() if each in there}
        for node in there.values():
            if node.id not in self._keys:
                self._keys[node.id] = self._free_key(node)
        wanted = []
        for node in there.values():
            key = self._keys[node.id]
            had = len(self._numbers.setdefault(key, []))
            wanted += [(key[:3], device, key) for device in range(had, node.gpus)]
        for _, _, key in sorted(wanted):
            if self._most is None or self._given < self._most:
                self._numbers[key].append(self._given)
                self._given += 1
        return {each: self._numbers[self._keys[each]][: node.gpus] for each, node in there.items()}

    def _free_key(self, node: Node) -> Key:
        taken, occurrence = set(self._keys.values()), 0
        while (key := (*_place(node), occurrence)) in taken:
            occurrence += 1
        return key


def _place(node: Node) -> tuple[bool, int, str, str]:
    try:
        return False, int(ipaddress.ip_address(node.address)), "", node.name
    except ValueError:
        return True, 0, node.address, node.name
