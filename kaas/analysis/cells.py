"""The cells of a CSV file, line by line, however malformed some lines are."""

import csv
import io
from collections.abc import Mapping

import pandas as pd


def split_line(line: bytes) -> list[str]:
    """Give the cells of a line, such as a header, without blanks around them."""
    return [cell.strip() for cell in line.decode(errors="replace").split(",")]


def read(lines: bytes, width: int, types: str | Mapping[int, str], *, quoted: bool) -> pd.DataFrame:
    """Read lines that should have `width` cells: one row for each that is not blank, its columns numbered from 0.

    NaN is a cell that is empty or missing. One column more, the last, is NaN except where a line is too long.

    Args:
        lines: the lines, without header.
        width: how many cells a sound line has.
        types: pandas dtypes, of all columns or of some by number; the others are what all of their cells are.
        quoted: whether a quote can keep commas together. If not, a stray one does no harm.

    Raises:
        ValueError: a quote is never closed.
    """
    numbers = range(width + 1)
    # pandas takes the width from the first line, and refuses or warns if another is longer: so a line of its own leads.
    frame = pd.read_csv(
        io.BytesIO(b"," * width + b"\n" + lines),
        header=None,
        names=numbers,
        usecols=numbers,
        index_col=False,
        dtype=types if isinstance(types, str) else dict(types),
        keep_default_na=False,
        na_values=[""],
        skipinitialspace=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        encoding_errors="replace",
        low_memory=False,
    )
    return frame.iloc[1:].reset_index(drop=True)
