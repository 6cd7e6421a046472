"""Several comparisons at once: which of them are more than chance, when there are many."""

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

ALPHA = 0.05
"""In so many of all sets of comparisons at most does any of a set tell a difference where there is none."""


def holm(p: ArrayLike) -> npt.NDArray[np.float64]:
    """Correct the p of several comparisons for their number, so that chance makes any false one in 5 % at most.

    NaN are no comparison.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. of Statistics 6 (1979).
    """
    found = np.asarray(p, dtype=np.float64)
    corrected = np.full(found.shape, np.nan)
    order = np.argsort(found)[: int((~np.isnan(found)).sum())]
    weights = np.arange(order.size, 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, found[order] * weights))
    return corrected
