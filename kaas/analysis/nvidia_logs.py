"""Read the samples that `nvidia-smi --query-gpu=... --format=csv` printed, and tell the zone of their time stamps.

With or without header, units and blanks, and of any fields that name a time and a GPU. The time stamps are local to the
host and name no zone: they are counted here as if they were UTC, and `zone_offset_h` tells how far they are from it.
Nothing here depends on the zone of the machine that it runs on.
"""

import re
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from kaas.analysis import cells
from kaas.errors import ResultsError

_TIME, _INDEX = "timestamp", "index"
_COLUMNS = {
    "timestamp": _TIME,
    "index": _INDEX,
    "pci.bus_id": "bus_id",
    "gpu_bus_id": "bus_id",
    "uuid": "uuid",
    "gpu_uuid": "uuid",
    "utilization.gpu": "utilization_pct",
    "power.draw": "power_w",
    "power.draw.average": "power_w",
    "power.draw.instant": "power_w",
    "total_energy_consumption": "energy_j",
    "memory.used": "memory_mib",
    "clocks.sm": "sm_clock_mhz",
    "clocks.current.sm": "sm_clock_mhz",
    "temperature.gpu": "temperature_c",
}
_GPU_KEYS = ("bus_id", _INDEX, "uuid")  # the index follows the bus ids, the UUID is drawn at random
_TEXTS = ("bus_id", "uuid")
_FACTORS = {"energy_j": 1e-3}  # nvidia-smi counts mJ

# Without a header, a column is told by what is in it: units where there are some, else as the published files have it.
_LOOKS = {
    _TIME: re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)?"),
    "bus_id": re.compile(r"[\dA-Fa-f]{4,8}:[\dA-Fa-f]{2}:[\dA-Fa-f]{2}\.[\dA-Fa-f]"),
    "uuid": re.compile(r"(GPU|MIG)-\S+"),
    "utilization_pct": re.compile(r"\d+ ?%"),
    "power_w": re.compile(r"\d+\.\d+( ?W)?"),
    "energy_j": re.compile(r"\d+ ?mJ"),
    "memory_mib": re.compile(r"\d+ ?MiB"),
    "sm_clock_mhz": re.compile(r"\d+ ?MHz"),
}
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?: ?[A-Za-z%]+)?")  # a unit may follow
_NO_VALUE = re.compile(r"\[.*\]|N/A")
_HEADER_WITHIN = 20
"""Lines in which the first of the samples or their header is looked for: what a shell said may stand before."""

_Values: TypeAlias = "npt.NDArray[np.float64] | npt.NDArray[np.object_]"

_ENOUGH = 100
"""Different cells of a column by which it is told."""

_OFFSETS_H = [quarters / 4 for quarters in range(-12 * 4, 14 * 4 + 1)]
_BUSY_PCT = 5.0
_TELLING_S = 60.0
"""By how much an offset must fit better than every other. Where the samples are of the run it is far more."""


def parse(content: bytes) -> tuple[pd.DataFrame, int]:
    """Give the samples in the order of the file, and how many malformed lines were left out.

    Columns, as far as the file has them: `timestamp` (seconds since the epoch, if the host's clock showed UTC), `gpu`
    (numbered from 0 in the order of bus ids or, without these, of indices), `bus_id`, `uuid`, `utilization_pct`,
    `power_w`, `energy_j`, `memory_mib`, `sm_clock_mhz` and `temperature_c`. A value that `nvidia-smi` did not know is
    NaN.

    Raises:
        ValueError: this is no output of `nvidia-smi`, or it names no time or no GPU.
    """
    before, first = _beginning(content)
    has_header = "timestamp" in first
    lines = content.split(b"\n", before + has_header)[-1]
    raw = cells.read(lines, len(first), "category", quoted=False)
    places = _places_by_name(first) if has_header else _places_by_content(raw)
    key = next((column for column in _GPU_KEYS if column in places), None)
    if _TIME not in places or key is None:
        raise ValueError("it names no time or no GPU")
    is_sound = raw.iloc[:, :-1].notna().all(axis="columns") & raw.iloc[:, -1].isna()
    columns = {}
    for column, place in places.items():
        columns[column], is_value = _values(column, raw[place])
        is_sound &= is_value
    frame = pd.DataFrame(columns)[is_sound]
    numbers = {gpu: number for number, gpu in enumerate(sorted(frame[key].unique()))}
    frame = frame.assign(gpu=frame[key].map(numbers)).drop(columns=_INDEX, errors="ignore")
    return frame.reset_index(drop=True), len(raw) - len(frame)


def zone_offset_h(monitoring: pd.DataFrame, start: float, end: float) -> float:
    """Tell by how many hours the clock of the samples was ahead of UTC, a multiple of a quarter from -12 to +14.

    Taken is the offset at which begin and end fit those of the requests best, both of all samples and of those with a
    GPU at work: a monitor may have been left running, and GPUs may idle during a run. The best must be telling, as a
    run of over 15 minutes overlaps with its samples at several offsets.

    Args:
        monitoring: the samples, with `timestamp` in seconds since the epoch, if the host's clock showed UTC.
        start: when the first request began, in seconds since the epoch.
        end: when the last request ended.

    Raises:
        ResultsError: two offsets fit alike, or the samples cover less than half of the requests' time at the best.
    """
    stamps = monitoring["timestamp"]
    begins_ends = [(float(stamps.min()), float(stamps.max()))]
    busy = stamps[monitoring["utilization_pct"] >= _BUSY_PCT]
    if len(busy):
        begins_ends.append((float(busy.min()), float(busy.max())))

    def misfit(offset_h: float) -> float:
        shift = offset_h * 3600
        return sum(abs(first - shift - start) + abs(last - shift - end) for first, last in begins_ends)

    best, second = sorted(_OFFSETS_H, key=misfit)[:2]
    first, last = (stamp - best * 3600 for stamp in begins_ends[0])
    if min(last, end) - max(first, start) < (end - start) / 2:
        raise ResultsError(
            "the zone of its time stamps cannot be told: at no offset from UTC do they cover half of the requests' time"
        )
    if misfit(second) - misfit(best) < _TELLING_S:
        raise ResultsError(
            f"the zone of its time stamps cannot be told: {best:+g} h and {second:+g} h from UTC fit the requests alike"
        )
    return best


def _beginning(content: bytes) -> tuple[int, list[str]]:
    """Find the header or, without one, the first sample: how many lines stand before it, and its cells."""
    for before, line in enumerate(content.split(b"\n", _HEADER_WITHIN)[:_HEADER_WITHIN]):
        found = cells.split_line(line)
        if "timestamp" in found or _LOOKS[_TIME].fullmatch(found[0]):
            return before, found
    raise ValueError("it is neither in the form of this project's monitor nor in that of nvidia-smi")


def _places_by_name(header: list[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, cell in enumerate(header):
        column = _COLUMNS.get(cell.partition(" [")[0])
        if column:
            places.setdefault(column, place)
    return places


def _places_by_content(raw: pd.DataFrame) -> dict[str, int]:
    places: dict[str, int] = {}
    unnamed = []
    for place in range(raw.shape[1] - 1):
        known = [text for text in _texts(raw[place]) if not _NO_VALUE.fullmatch(text)]
        some = known[:: len(known) // _ENOUGH + 1]
        # A few cells may be torn; what the most look like is meant.
        looks = [column for column, look in _LOOKS.items() if 2 * sum(map(bool, map(look.fullmatch, some))) > len(some)]
        if looks:
            places.setdefault(looks[0], place)
        else:
            unnamed.append(place)
    after_gpu = [place for place in unnamed if place > places.get("bus_id", place)]
    if "utilization_pct" not in places and after_gpu:
        places["utilization_pct"] = after_gpu[0]
    return places


def _values(column: str, raw: pd.Series) -> tuple[_Values, "npt.NDArray[np.bool_]"]:
    """Give the value of each cell, and if it is one; a text is looked at once, however often it stands there."""
    texts = _texts(raw)
    values: _Values
    if column == _TIME:
        values = _epoch_seconds(texts)
        is_value = np.isfinite(values)
    elif column in _TEXTS:
        values = np.array([*map(str.upper, texts)] if column == "bus_id" else texts, dtype="object")
        is_value = np.array(
            [column != "bus_id" or bool(_LOOKS[column].fullmatch(text)) for text in texts], dtype="bool"
        )
    else:
        matches = [_NUMBER.fullmatch(text) for text in texts]
        values = np.array([float(match[1]) if match else np.nan for match in matches]) * _FACTORS.get(column, 1.0)
        is_value = ~np.isnan(values)
        for place in np.flatnonzero(~is_value):
            is_value[place] = _NO_VALUE.fullmatch(texts[place]) is not None
    codes = raw.cat.codes.to_numpy()
    missing = "" if column in _TEXTS else np.nan
    # The code of a missing cell is -1, and takes the last.
    return np.append(values, missing)[codes], np.append(is_value, False)[codes]


def _epoch_seconds(texts: list[str]) -> "npt.NDArray[np.float64]":
    stamps = pd.Series([text if "." in text else f"{text}.0" for text in texts], dtype="str")
    times = pd.to_datetime(stamps, format="%Y/%m/%d %H:%M:%S.%f", errors="coerce")
    microseconds = times.to_numpy(dtype="datetime64[us]").astype("int64")
    return np.where(times.notna(), microseconds / 1e6, np.nan)


def _texts(raw: pd.Series) -> list[str]:
    return [str(text).strip() for text in raw.cat.categories.tolist()]
