"""Samples of NVIDIA GPUs, from one `nvidia-smi` that prints a line for each GPU again and again.

The fields asked for, and where each goes:

| nvidia-smi                 | column            |                                        |
| -------------------------- | ----------------- | -------------------------------------- |
| `index`                    |                   | numbers the GPU where no UUIDs are given |
| `pci.bus_id`               | `bus_id`          |                                        |
| `uuid`                     | `uuid`            |                                        |
| `utilization.gpu`          | `utilization_pct` | %                                      |
| `power.draw`               | `power_w`         | W                                      |
| `total_energy_consumption` | `energy_j`        | mJ, in case the driver knows it; else see nvml.py |
| `memory.used`              | `memory_mib`      | MiB                                    |
| `clocks.sm`                | `sm_clock_mhz`    | MHz                                    |
| `temperature.gpu`          | `temperature_c`   | degrees Celsius                        |

A field that this driver does not know is left out of the question, and a value that is none (`[N/A]`,
`[Not Supported]`, a GPU under MIG) is an empty cell. Rows are stamped when they arrive. An nvidia-smi that ends is
started again, and whatever else it says is said once.
"""

import contextlib
import re
import select
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from kaas import nvidia
from kaas.errors import UsageError
from kaas.monitor.stream import Ended, Stream
from kaas.monitor.troubles import Troubles
from kaas.samples import Sample

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
_LONGEST_LINE = 300
_PATIENCE_S = 5.0
"""Without a word after which a running nvidia-smi is taken to hang."""
_MANY_AT_ONCE, _LONG_HELD_BACK_S = 3, 0.5


class NvidiaSmi:
    """A running nvidia-smi; or one for each GPU, once one about all of them did not tell of all, or not for long.

    Args:
        interval_ms: milliseconds between two of its samples.
        uuids: the GPUs, in the order in which they are numbered; all of the machine if there are none.
        say: takes a line about what the samples lack.
        clock: tells the time, in seconds since the epoch.

    Raises:
        UsageError: there is no nvidia-smi, or it does not work.
    """

    def __init__(
        self, interval_ms: int, uuids: Sequence[str], say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._numbers = {uuid: number for number, uuid in enumerate(uuids)}
        self._fields, known = _fields_of_any(uuids)
        self._uuids = dict.fromkeys((*uuids, *known))  # of all GPUs, as far as they are known
        self._interval_ms = interval_ms
        self._say = say
        self._clock = clock
        self._troubles = Troubles(say)
        self._streams = {tuple(uuids): self._stream(uuids)}
        self._told_of: dict[tuple[str, ...], set[str]] = defaultdict(set)  # by each since it was started
        self._no_samples_since: dict[tuple[str, ...], float] = {}

    def take(self) -> list[Sample]:
        """Give what has arrived, waiting a little for it."""
        outputs = [stream.output for stream in self._streams.values() if stream.output is not None]
        readable = select.select(outputs, [], [], _LONGEST_WAIT)[0]
        samples: list[Sample] = []
        for uuids, stream in list(self._streams.items()):
            lines, ended = stream.take(stream.output in readable)
            now = self._clock()
            arrived = self._samples(lines, now)
            if arrived:
                samples += arrived
                stream.be_of_use()
                self._told_of[uuids].update(sample.uuid for sample in arrived)
                self._note_gap(uuids, now)
            if ended is not None:
                self._note_end(uuids, ended, now)
                asked, told_of = set(uuids or self._uuids), self._told_of.pop(uuids, set())
                if len(asked) > 1 and (ended.soon_again or asked - told_of):
                    self._ask_each_alone(uuids)
        self._note_held_back(samples)
        return samples

    def close(self) -> None:
        """End it, and say how often was what."""
        for stream in self._streams.values():
            stream.close()
        for uuids, since in self._no_samples_since.items():
            self._say(f"no samples{_of(uuids)} since {since:.3f} (seconds since the epoch)")
        self._no_samples_since.clear()
        self._troubles.close()

    def _stream(self, uuids: Sequence[str]) -> Stream:
        patience_s = max(_PATIENCE_S, 20 * self._interval_ms / 1000)
        return Stream([*_query(self._fields, _only(uuids)), "-lms", str(self._interval_ms)], patience_s)

    def _ask_each_alone(self, together: tuple[str, ...]) -> None:
        """Ask for each GPU apart from now on: at one that is lost nvidia-smi ends, whatever of the others is untold."""
        self._streams.pop(together).close()
        since = self._no_samples_since.pop(together)
        for uuid in together or self._uuids:
            self._streams[(uuid,)] = self._stream([uuid])
            self._no_samples_since[(uuid,)] = since
        self._troubles.tell("each GPU is asked alone from now on")

    def _samples(self, lines: Sequence[str], now: float) -> list[Sample]:
        samples = []
        for line in filter(None, map(str.strip, lines)):
            sample = self._parse(line, now)
            if sample is not None:
                samples.append(sample)
                if sample.uuid:
                    self._uuids[sample.uuid] = None
            elif not line.startswith("index,"):  # a header
                self._troubles.tell(f"nvidia-smi said: {line[:_LONGEST_LINE]}")
        return samples

    def _note_end(self, uuids: tuple[str, ...], ended: Ended, now: float) -> None:
        text = f"nvidia-smi{_of(uuids) if len(self._streams) > 1 else ''} {ended.how}"
        kind = re.sub(r"\bfor \d+ s\b", "for long", text)
        self._troubles.tell(kind, f"{text} at {now:.3f} and is started again")
        self._no_samples_since.setdefault(uuids, now)

    def _note_gap(self, uuids: tuple[str, ...], now: float) -> None:
        since = self._no_samples_since.pop(uuids, None)
        if since is not None:
            kind = f"no samples{_of(uuids)} for a while"
            self._troubles.tell(kind, f"no samples{_of(uuids)} from {since:.3f} to {now:.3f} (seconds since the epoch)")

    def _note_held_back(self, samples: Sequence[Sample]) -> None:
        most = max(Counter(sample.gpu for sample in samples).values(), default=0)
        seconds = most * self._interval_ms / 1000
        if most >= _MANY_AT_ONCE and seconds >= _LONG_HELD_BACK_S:
            text = f"{most} samples of one GPU came at once at {samples[0].timestamp:.3f}"
            self._troubles.tell(
                "samples came late, and many bear one time stamp",
                f"{text}: the rows of {seconds:.1f} s bear one time stamp",
            )

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


def _of(uuids: tuple[str, ...]) -> str:
    return f" of {uuids[0]}" if len(uuids) == 1 else ""


def _only(uuids: Sequence[str]) -> list[str]:
    return ["-i", ",".join(uuids)] if uuids else []


def _query(fields: Sequence[str], only: list[str]) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *only]


def _fields_of_any(uuids: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Give the fields that the driver knows, and the UUIDs that it tells; if one GPU is lost, another tells."""
    try:
        return _known(_only(uuids))
    except UsageError:
        for uuid in uuids if len(uuids) > 1 else ():
            with contextlib.suppress(UsageError):
                return _known(_only([uuid]))
        raise


def _known(only: list[str]) -> tuple[list[str], tuple[str, ...]]:
    asked = nvidia.ask(FIELDS, only)
    if asked.answer.code != 0 and not asked.rows:
        raise UsageError(f"nvidia-smi does not work: {asked.answer.said or f'exit code {asked.answer.code}'}")
    return asked.fields, tuple(row["uuid"] for row in asked.rows if row.get("uuid"))
