"""Samples of NVIDIA GPUs, from one `nvidia-smi` that prints a line for each GPU again and again.

The fields asked for, and where each goes:

| nvidia-smi                 | column            |                                        |
| -------------------------- | ----------------- | -------------------------------------- |
| `index`                    |                   | numbers the GPU where no UUIDs are given |
| `pci.bus_id`               | `bus_id`          |                                        |
| `uuid`                     | `uuid`            |                                        |
| `utilization.gpu`          | `utilization_pct` | %                                      |
| `power.draw`               | `power_w`         | W                                      |
| `total_energy_consumption` | `energy_j`        | mJ, asked for in case the driver knows it |
| `memory.used`              | `memory_mib`      | MiB                                    |
| `clocks.sm`                | `sm_clock_mhz`    | MHz                                    |
| `temperature.gpu`          | `temperature_c`   | degrees Celsius                        |

A field that this driver does not know is left out of the question, and a value that is none (`[N/A]`,
`[Not Supported]`, a GPU under MIG) is an empty cell. Rows are stamped when they arrive. An nvidia-smi that ends is
started again.
"""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from kaas import nvidia, programs
from kaas.errors import UsageError
from kaas.monitor.samples import Sample

FIELDS = {
    "index": "",
    "pci.bus_id": "bus_id",
    "uuid": "uuid",
    "utilization.gpu": "utilization_pct",
    "power.draw": "power_w",
    "total_energy_consumption": "energy_j",
    "memory.used": "memory_mib",
    "clocks.sm": "sm_clock_mhz",
    "temperature.gpu": "temperature_c",
}
_TEXTS = ("bus_id", "uuid")
_FACTORS = {"energy_j": 1e-3}
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?: ?[^\d\s]\S*)?")  # a unit may follow, whatever was asked for
_LONGEST_WAIT = 0.25
_LONGEST_PAUSE = 1.0
_PATIENCE = 5.0
"""Seconds without a sample after which nvidia-smi is taken to hang."""
_CHUNK = 64 * 1024


class NvidiaSmi:
    """A running nvidia-smi.

    Args:
        interval_ms: milliseconds between two of its samples.
        uuids: the GPUs, in the order in which they are numbered; all of the machine if there are none.
        say: takes a line about a gap in the samples.

    Raises:
        UsageError: there is no nvidia-smi, or it does not work.
    """

    def __init__(self, interval_ms: int, uuids: Sequence[str], say: Callable[[str], None]) -> None:
        self._numbers = {uuid: number for number, uuid in enumerate(uuids)}
        self._only = ["-i", ",".join(uuids)] if uuids else []
        self._fields = _known_fields(self._only)
        self._interval_ms = interval_ms
        self._say = say
        self._patience = max(_PATIENCE, 20 * interval_ms / 1000)
        self._heard = time.monotonic()
        self._pause = 0.0
        self._gap_since: float | None = None
        self._rest = b""
        self._process = self._start()

    def take(self) -> list[Sample]:
        """Give what has arrived, waiting a little for it."""
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], _LONGEST_WAIT)[0]:
            if time.monotonic() > self._heard + self._patience:
                self._process.kill()  # it hangs; that it has ended is noticed where its output ends
            return []
        self._heard = time.monotonic()
        data = os.read(stdout.fileno(), _CHUNK)
        now = time.time()
        if not data:
            self._restart(now)
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        samples = [sample for line in lines if (sample := self._parse(line.decode(errors="replace"), now))]
        if samples:
            self._pause = 0.0
            if self._gap_since is not None:
                self._say(f"no samples from {self._gap_since:.3f} to {now:.3f} (seconds since the epoch)")
                self._gap_since = None
        return samples

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*_query(self._fields, self._only), "-lms", str(self._interval_ms)],
            env=programs.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            # A Ctrl-C at the terminal must not end it before the run is over.
            start_new_session=True,
        )

    def _restart(self, now: float) -> None:
        self.close()
        self._say(f"nvidia-smi ended with exit code {self._process.returncode} at {now:.3f} and is started again")
        if self._gap_since is None:
            self._gap_since = now
        time.sleep(self._pause)
        self._pause = min(max(2 * self._pause, 0.1), _LONGEST_PAUSE)
        self._rest = b""
        self._process = self._start()

    def _parse(self, line: str, now: float) -> Sample | None:
        """Read a line; None if it is no sample, such as a header."""
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(self._fields):
            return None
        found = dict(zip(self._fields, cells, strict=True))
        if not found.get("index", "").isdecimal():
            return None
        uuid = found.get("uuid", "")
        if self._numbers and uuid not in self._numbers:
            return None
        values: dict[str, str | float | None] = {}
        for field, cell in found.items():
            column = FIELDS[field]
            if column in _TEXTS:
                values[column] = cell
            elif column:
                number = _NUMBER.fullmatch(cell)
                values[column] = float(number[1]) * _FACTORS.get(column, 1.0) if number else None
        values.setdefault("bus_id", "")
        return Sample(now, self._numbers.get(uuid, int(found["index"])), **values)  # type: ignore[arg-type]


def _query(fields: Sequence[str], only: list[str]) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *only]


def _known_fields(only: list[str]) -> list[str]:
    asked = nvidia.ask(FIELDS, only)
    if asked.answer.code != 0 and not asked.rows:
        raise UsageError(f"nvidia-smi does not work: {asked.answer.said or f'exit code {asked.answer.code}'}")
    return asked.fields
