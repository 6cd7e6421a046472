"""Read the CSV files of a run, as whole as they are: sound lines become frames, what hinders becomes a sentence.

Only reads: the files of a run are never written to. How `nvidia-smi` prints its samples stands in
kaas.analysis.nvidia_logs, and which files make up a run in kaas.analysis.runs.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from kaas import events
from kaas.analysis import cells, nvidia_logs
from kaas.errors import ResultsError
from kaas.row import COLUMNS

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # spreadsheets lead with it
_LINES_BESIDE = 8
"""Lines with which a last one is compared that has no end."""

FIRST_SEVEN = tuple(COLUMNS)[:7]
"""The columns that every file of requests has."""

REQUEST_TYPES = {
    "timestamp": "float64",
    "inner_time_ms": "float64",
    "outer_time_ms": "float64",
    "setup_time": "float64",
    "cold_start": "bool",
    "copy": "int64",
    "concurrency": "int64",
    "status": "str",
    "waited_for_boot": "boolean",
    "gpu": "Int64",
    "worker": "Int64",
    "queued_ms": "float64",
    "kernel_ms": "float64",
    "error": "str",
    "arrived": "float64",
    "lag_ms": "float64",
}
EVENT_TYPES = dict(zip(events.COLUMNS, ("int64", "int64", "float64", "str", "Int64", "str", "str"), strict=True))
MONITORING_TYPES = {"timestamp": "float64", "gpu": "int64", "bus_id": "str", "uuid": "str"} | dict.fromkeys(
    ("utilization_pct", "power_w", "energy_j", "memory_mib", "sm_clock_mhz", "temperature_c"), "float64"
)

POSSIBLE = {
    "utilization_pct": (0.0, 100.0),
    "power_w": (0.0, 5000.0),
    "energy_j": (0.0, 1e12),
    "memory_mib": (0.0, 2.0**24),
    "sm_clock_mhz": (0.0, 10_000.0),
    "temperature_c": (-100.0, 200.0),
}
"""What a GPU can be at all. A driver whose reading fails may give all ones, as in 4294967295 % and 2147483.65 W."""


def first_line(path: Path) -> tuple[str, ...]:
    """Give the cells of the first line; none if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return _header(file.readline(1000).removeprefix(_BYTE_ORDER_MARK))
    except OSError:
        return ()


def is_of_requests(path: Path) -> bool:
    """Say if the first line names what a file of requests has, however it is separated: it may have to be refused."""
    cells_of_first = re.split(r"[,;\t|]", ",".join(first_line(path)).replace("\0", ""))
    return tuple(cell.strip('"\ufffd\ufeff ') for cell in cells_of_first[:7]) == FIRST_SEVEN


def has_rows(path: Path) -> bool:
    """Say if there is anything below the first line; not, if the file cannot be read."""
    try:
        return path.read_bytes().count(b"\n") > 1
    except OSError:
        return False


def empty(types: Mapping[str, str]) -> pd.DataFrame:
    """Give a frame of the columns `types` without a row."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})


def read_requests(path: Path, notes: list[str]) -> pd.DataFrame:
    """Read a file of requests, with the columns of kaas.results, in the order of the file.

    Raises:
        ResultsError: it cannot be read, or holds no request.
    """
    try:
        content = _whole_lines(path, notes)
        frame = _read_table(path.name, content, REQUEST_TYPES, len(FIRST_SEVEN), notes) if content else None
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not a file of requests: {_one_line(error)}") from None
    if frame is None or frame.empty:
        raise ResultsError(f"{path} holds no request: move it away, or run the experiment again")
    if (untold := frame["status"] == "").any():
        served = (frame["inner_time_ms"] > 0).map({True: "ok", False: "rejected"})
        frame["status"] = frame["status"].where(~untold, served)
    # Asked for again and again: of a category it is told a hundred times as fast as of texts.
    frame["status"] = frame["status"].astype("category")
    frame["waited_for_boot"] = frame["waited_for_boot"].fillna(False).astype("bool")
    frame["lag_ms"] = frame["lag_ms"].fillna(0.0)
    return frame


def read_events(path: Path, notes: list[str]) -> pd.DataFrame:
    """Read a server log's CSV in its order; what hinders it is noted, and the frame is empty."""
    frame = _read_or_empty(
        path, EVENT_TYPES, lambda content: _read_table(path.name, content, EVENT_TYPES, 3, notes), notes
    )
    # The published files have no column `event`, and hold boots only.
    frame["event"] = frame["event"].replace("", "booted")
    return frame


def read_monitoring(path: Path, notes: list[str]) -> tuple[pd.DataFrame, bool]:
    """Read a monitoring file of any form, and say if its time stamps are host-local (then numbered as if in UTC).

    Its samples stay in the order of the file. What hinders it is noted, and the frame is empty.
    """
    local = False

    def read(content: bytes) -> pd.DataFrame:
        nonlocal local
        if {"timestamp", "gpu"} <= set(_header(content)):
            return _read_table(path.name, content, MONITORING_TYPES, 2, notes)
        local = True
        frame, dropped = nvidia_logs.parse(content)
        _note_dropped(path.name, dropped, notes)
        return frame.reindex(columns=list(MONITORING_TYPES)).astype(MONITORING_TYPES)

    return _only_possible(path.name, _read_or_empty(path, MONITORING_TYPES, read, notes), notes), local


def _only_possible(name: str, monitoring: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    counts = {}
    for column, (least, most) in POSSIBLE.items():
        impossible = monitoring[column].notna() & ~monitoring[column].between(least, most)
        if impossible.any():
            counts[column] = int(impossible.sum())
            monitoring[column] = monitoring[column].mask(impossible)
    if counts:
        values = ", ".join(f"{count} of {column}" for column, count in counts.items())
        notes.append(f"{name} has values that no GPU can have, as where a reading failed: they are unknown ({values}).")
    return monitoring


def _read_or_empty(
    path: Path, types: Mapping[str, str], read: Callable[[bytes], pd.DataFrame], notes: list[str]
) -> pd.DataFrame:
    try:
        content = _whole_lines(path, notes)
        frame = read(content) if content else None
    except FileNotFoundError:
        hindrance = "is missing"
    except OSError as error:
        hindrance = f"cannot be read ({error.strerror})"
    except ValueError as error:
        hindrance = f"cannot be read ({_one_line(error)})"
    else:
        if frame is not None and len(frame):
            return frame
        hindrance = "is empty" if frame is None else "has no rows"
    notes.append(f"{path.name} {hindrance}: what it would show is left out.")
    return empty(types)


def _whole_lines(path: Path, notes: list[str]) -> bytes:
    """Read a file, less a last line that was torn.

    Raises:
        ValueError: a spreadsheet saved it in a way that is not read here.
    """
    content = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    if reason := cells.foreign(content):
        raise ValueError(reason)
    whole, end, last = content.rpartition(b"\n")
    if not last.strip():
        return whole + end
    if _is_whole(last, whole):
        return content + b"\n"
    notes.append(f"{path.name} ends in mid-line: that line was dropped.")
    return whole + end


def _is_whole(last: bytes, before: bytes) -> bool:
    """Say if a line without its end has all its cells, and can have lost no digit of a number in the last of them.

    It may have if that is shorter than every one in the lines before it.
    """
    others = before.rsplit(b"\n", _LINES_BESIDE)[-_LINES_BESIDE:]
    beside, own = [cells.split_line(line) for line in others if line.strip()], cells.split_line(last)
    if not beside or any(len(line) != len(own) for line in beside):
        return False
    is_number = own[-1].replace(".", "", 1).isdecimal()
    return not is_number or len(own[-1]) >= min(len(line[-1]) for line in beside)


def _read_table(name: str, content: bytes, types: Mapping[str, str], required: int, notes: list[str]) -> pd.DataFrame:
    """Read the columns `types` in the file's order; those not in the file are NaN, or "" if they are text.

    Malformed lines, in which a value is none of its type or one of the first `required` is missing, are left out.

    Raises:
        ValueError: a required column is missing, or every line is malformed.
    """
    header = _header(content)
    if missing := [column for column in list(types)[:required] if column not in header]:
        raise ValueError(f"its first line does not name {', '.join(missing)}")
    places = {column: header.index(column) for column in types if column in header}
    texts = [column for column in types if types[column] == "str"]
    text_types = {place: "str" for column, place in places.items() if column in texts}
    lines = content.partition(b"\n")[2]
    try:
        raw = cells.read(lines, len(header), text_types, quoted=True)
    except ValueError:  # a stray quote would swallow all lines after it
        raw = cells.read(lines, len(header), text_types, quoted=False)
    frame = pd.DataFrame({column: _convert(raw[place], types[column]) for column, place in places.items()})
    is_sound = raw.iloc[:, -1].isna() & frame[list(types)[:required]].notna().all(axis="columns")
    for column, place in places.items():
        is_sound &= frame[column].notna() | raw[place].isna()
    frame = frame[is_sound].reindex(columns=list(types))
    if len(raw) and frame.empty:
        commas = cells.has_decimal_commas(raw[places["timestamp"]])
        raise ValueError(
            "its numbers have decimal commas: save it as CSV with points in numbers"
            if commas
            else "every line of it is malformed"
        )
    _note_dropped(name, len(raw) - len(frame), notes)
    frame[texts] = frame[texts].astype("object").fillna("")  # before pandas 3, a "str" of NaN is the word "nan"
    return frame.astype(dict(types)).reset_index(drop=True)


def _convert(raw: pd.Series, kind: str) -> pd.Series:
    """Give the values of a column; NaN where a cell is no value of that type."""
    if kind == "str":
        return raw
    if kind.startswith("bool"):
        return raw.astype("object").map({"True": True, "False": False, True: True, False: False}).astype("boolean")
    numbers = pd.to_numeric(raw, errors="coerce").astype("float64")
    numbers = numbers.where(numbers.abs() < float("inf"))
    return numbers if kind == "float64" else numbers.where(numbers % 1 == 0)


def _note_dropped(name: str, dropped: int, notes: list[str]) -> None:
    if dropped:
        notes.append(f"{name} has {dropped} malformed line{' that was' if dropped == 1 else 's that were'} dropped.")


def _header(content: bytes) -> tuple[str, ...]:
    return tuple(cells.split_line(content.partition(b"\n")[0]))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
