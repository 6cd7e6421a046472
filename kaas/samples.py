"""One sample of what a GPU does, as a row of `<task>-gpu-monitoring.csv`; kaas.monitor describes the columns."""

import csv
import io
from collections.abc import Iterable
from typing import NamedTuple


class Sample(NamedTuple):
    """One GPU at one time; the columns are described in `kaas.monitor`."""

    timestamp: float
    gpu: int
    bus_id: str
    uuid: str = ""
    utilization_pct: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    memory_mib: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    node: str = ""


HEADER = ",".join(Sample._fields) + "\n"
"""The first line of the file."""


def encode(samples: Iterable[Sample]) -> str:
    """Write samples as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(samples)
    return text.getvalue()
