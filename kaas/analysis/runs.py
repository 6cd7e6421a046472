"""A results folder as frames: find its runs, and read their files.

Each frame has a column `elapsed`: seconds since the run's first request began. What a run lacks (a file, a column's
values, the end of a last line) becomes a sentence in `Run.notes`; only requests that cannot be read are an error.
What is derived from them stands in kaas.analysis.series.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kaas import events, results
from kaas.errors import ResultsError

_REQUEST_TYPES = {
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
}
_FIRST_SEVEN = tuple(results.COLUMNS)[:7]

_EVENT_TYPES = dict(zip(events.COLUMNS, ("int64", "int64", "float64", "str", "Int64", "str"), strict=True))

_MONITORING_TYPES = {"timestamp": "float64", "gpu": "int64", "bus_id": "str", "uuid": "str"} | dict.fromkeys(
    ("utilization_pct", "power_w", "energy_j", "memory_mib", "sm_clock_mhz", "temperature_c"), "float64"
)


@dataclass(frozen=True, eq=False)
class Run:
    """One repeat of the experiment.

    `requests` has the columns of kaas.results and `counted`, the elapsed time at which `concurrency` was true;
    `events` those of kaas.events; `monitoring` those of `<task>-gpu-monitoring.csv`. All are in order of `elapsed`.
    """

    task: str
    parameters: Mapping[str, str]
    requests: pd.DataFrame
    events: pd.DataFrame
    monitoring: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from the begin of the first request to the end of the last."""
        return float((self.requests["elapsed"] + self.requests["outer_time_ms"] / 1000).max())


def find_runs(folder: Path) -> list[Run]:
    """Read every repeat in `folder`, in natural order of their names (`...-2` before `...-10`).

    Raises:
        ResultsError: there is no such folder or no run in it, or the requests of one are empty or malformed.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder} is not a folder: name a results folder, such as results-autoscaling-cpu")
    tasks = sorted((path.stem for path in _request_files(folder)), key=_natural)
    if not tasks:
        raise ResultsError(f"{folder} holds no run (a .csv with the columns {', '.join(_FIRST_SEVEN)})")
    return [_read_run(results.RunFiles(folder, task), tasks) for task in tasks]


def newest_results(parent: Path) -> Path:
    """Give the `results-*` folder in `parent` whose requests were written last.

    Raises:
        ResultsError: none holds a request.
    """
    files = [
        path
        for folder in parent.glob("results-*")
        for path in _request_files(folder)
        if path.read_bytes().count(b"\n") > 1
    ]
    if not files:
        raise ResultsError(f"no results-* folder in {parent} holds a run: run ./autoscale-cpu.sh first")
    return max(files, key=lambda path: path.stat().st_mtime).parent


def _request_files(folder: Path) -> list[Path]:
    """Give the files of requests in `folder`; one of 0 bytes counts, as it is where a run came to nothing."""
    others = ("-serverlogs", "-gpu-monitoring")
    files = [path for path in folder.glob("*.csv") if path.is_file() and not path.stem.endswith(others)]
    return [path for path in files if not path.stat().st_size or _header(path)[:7] == _FIRST_SEVEN]


def _header(path: Path) -> tuple[str, ...]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return tuple(file.readline(1000).strip().split(","))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_run(files: results.RunFiles, tasks: list[str]) -> Run:
    notes: list[str] = []
    requests = _read_requests(files.requests, notes)
    parameters = results.read_description(files.description)
    if not parameters:
        notes.append(f"{files.description.name} is missing or empty: the parameters are not known.")
    serverlogs = _read_or_empty(_beside(files.serverlogs, files.task, tasks, notes), _EVENT_TYPES, 3, notes)
    # The published files have no column `event`, and hold boots only.
    serverlogs["event"] = serverlogs["event"].replace("", "booted")
    monitoring = _read_or_empty(_beside(files.monitoring, files.task, tasks, notes), _MONITORING_TYPES, 2, notes)
    start = requests["timestamp"].iloc[0]
    for frame in (requests, serverlogs, monitoring):
        frame["elapsed"] = frame["timestamp"] - start
    # The original counted the clients when it wrote a row, at the request's end; ours when the request is sent.
    at_end = "status" not in _header(files.requests)
    requests["counted"] = requests["elapsed"] + (requests["outer_time_ms"] / 1000 if at_end else 0.0)
    return Run(files.task, parameters, requests, serverlogs, monitoring, tuple(notes))


def _read_requests(path: Path, notes: list[str]) -> pd.DataFrame:
    try:
        frame = _read_csv(path, _REQUEST_TYPES, _FIRST_SEVEN, notes)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is not a file of requests: {_one_line(error)}") from None
    if frame.empty:
        raise ResultsError(f"{path} holds no request: move it away, or run the experiment again")
    served = (frame["inner_time_ms"] > 0).map({True: "ok", False: "rejected"})
    frame["status"] = frame["status"].where(frame["status"] != "", served)
    frame["waited_for_boot"] = frame["waited_for_boot"].fillna(False).astype("bool")
    return frame


def _read_or_empty(path: Path, types: Mapping[str, str], required: int, notes: list[str]) -> pd.DataFrame:
    """Read a file that a run can do without; what hinders it is noted, and the frame is empty."""
    needed = tuple(types)[:required]
    hindrance = ""
    if not path.exists():
        hindrance = "is missing"
    elif not path.stat().st_size:
        hindrance = "is empty"
    elif not set(needed) <= set(_header(path)):
        hindrance = f"has another format (its first line does not name {', '.join(needed)})"
    else:
        try:
            frame = _read_csv(path, types, needed, notes)
        except (OSError, ValueError) as error:
            hindrance = f"cannot be read ({_one_line(error)})"
        else:
            if len(frame):
                return frame
            hindrance = "has no rows"
    notes.append(f"{path.name} {hindrance}: what it would show is left out.")
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})


def _read_csv(path: Path, types: Mapping[str, str], required: tuple[str, ...], notes: list[str]) -> pd.DataFrame:
    """Read the columns `types` in order of time; those not in the file are NaN, or "" if they are text."""
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        # Even if it has all its fields: the last number may lack digits.
        notes.append(f"{path.name} ends in the middle of a line: that line was dropped.")
    if not whole:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
    frame = pd.read_csv(io.BytesIO(whole), dtype=dict(types), index_col=False, keep_default_na=False, na_values=[""])
    incomplete = frame[list(required)].isna().any(axis="columns").to_numpy()
    if incomplete.any():
        raise ValueError(f"line {incomplete.argmax() + 2} lacks a value")
    texts = [name for name, kind in types.items() if kind == "str"]
    frame = frame.reindex(columns=list(types))
    frame[texts] = frame[texts].astype("object").fillna("")  # before pandas 3, a "str" of NaN is the word "nan"
    frame = frame.astype(dict(types))
    return frame.sort_values("timestamp", kind="stable", ignore_index=True)


def _beside(path: Path, task: str, tasks: list[str], notes: list[str]) -> Path:
    """Find the file meant by `path`: the published ones are named for a shorter task than their requests are."""
    if path.exists():
        return path
    ending = path.name.removeprefix(task)
    names = [other.name.removesuffix(ending) for other in path.parent.glob("*" + ending)]
    near = [name for name in names if name not in tasks and _shortens(name, task)]
    if len(near) != 1:
        return path
    notes.append(f"{path.name} is missing: {near[0]}{ending} was taken for it.")
    return path.with_name(near[0] + ending)


def _shortens(name: str, task: str) -> bool:
    """Say if `name` is `task` with some words left out, for the same repeat."""
    words, longer = name.split("-"), task.split("-")
    remaining = iter(longer)
    return words[-1] == longer[-1] and all(word in remaining for word in words)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
