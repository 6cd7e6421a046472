"""What is drawn: standard normal numbers, the same of a seed whenever and wherever."""

from collections.abc import Iterator

import numpy as np

_AT_ONCE = 4096


def normals(seed: int) -> Iterator[float]:
    """Draw standard normal numbers without end; of numpy's generators, this one's numbers never change."""
    generator = np.random.RandomState(seed)
    while True:
        yield from generator.standard_normal(_AT_ONCE).tolist()
