"""The cells of a CSV file, line by line, however malformed some lines are."""

import csv
import io
import re
from collections.abc import Mapping

import pandas as pd

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")


def split_line(line: bytes) -> list[str]:
    """Give the cells of a line, such as a header, without blanks around them, nor quotes."""
    text = line.decode(errors="replace").strip()
    try:
        cells = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error:  # a stray quote
        cells = text.split(",")
    return [cell.strip() for cell in cells] or [""]


def foreign(content: bytes) -> str:
    """Say in words why these lines are no CSV as it is read here, if a spreadsheet saved them in its own way.

    That is with other separators, with decimal commas or in UTF-16; "" if none of it is so.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is text in UTF-16: save it as CSV in UTF-8"
    first, _, rest = content[:4000].decode(errors="replace").partition("\n")
    for separator, name in _OTHER_SEPARATORS.items():
        if first.count(separator) > first.count(","):
            numbers = [cell.strip('" \r') for line in (first, *rest.split("\n")[:1]) for cell in line.split(separator)]
            commas = " and its numbers have decimal commas" if any(map(_DECIMAL_COMMA.fullmatch, numbers)) else ""
            points = ", and points in numbers" if commas else ""
            return f"its cells are separated by {name}{commas}: save it as CSV with commas between cells{points}"
    return ""


def has_decimal_commas(cells: "pd.Series[str]") -> bool:
    """Say if most of the cells of a column, as text, are numbers with a decimal comma."""
    some = cells.dropna().astype("str").head(100)
    return len(some) > 0 and bool(some.str.fullmatch(_DECIMAL_COMMA).mean() > 0.5)  # noqa: PLR2004


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
