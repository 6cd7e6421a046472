#!/usr/bin/env python3
"""What are nvidia-smi's samples worth: how late do they come through a pipe, and what energy do they add up to?

While a warm worker squares matrices, two nvidia-smi print a sample every 100 ms, as the monitor has it do: one into a
pipe, as the monitor's, and one into a pseudo-terminal, for which a program holds no line back. A sample's delay is the
time from its own time stamp to its arrival; its "rounds" are samples. Each round of the energy is 3 s of load: the
integral of the power over it, by the samples' own time stamps, and of the instant power where the driver knows it,
beside what the energy counter says that NVML reads (Volta and later, with nvidia-ml-py).
"""

import argparse
import contextlib
import itertools
import math
import os
import pty
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from types import ModuleType
from typing import NamedTuple

import common
import numpy as np
import serving
from common import Options, Report
from overhead import load_matmul_client

from kaas import cli, kernels
from kaas.errors import KaasError, UsageError

INTERVAL_MS = 100
LOAD_S = 3.0
BETWEEN_S = 1.0
POWER, INSTANT = "power.draw", "power.draw.instant"
# Besides the time and the power: what makes a line as long as the monitor's is.
_FILLING = "pci.bus_id,uuid,utilization.gpu,memory.used,clocks.sm,temperature.gpu"
_NO_COUNTER = "the energy counter: not measured"


class Sample(NamedTuple):
    """A line of nvidia-smi's; times in seconds since the epoch, power in watts by its field's name."""

    stamped: float
    arrived: float
    read: int
    power_w: dict[str, float]


class Smi:
    """A running nvidia-smi, and what it has printed so far.

    Args:
        gpu: the UUID of the GPU that it looks at.
        fields: of power that it asks for.
        through_pipe: it prints into a pipe, else into a pseudo-terminal.
    """

    def __init__(self, gpu: str, fields: list[str], *, through_pipe: bool) -> None:
        self.samples: list[Sample] = []
        self._fields = fields
        self._output, into = os.pipe() if through_pipe else pty.openpty()
        try:
            query = f"--query-gpu=timestamp,{','.join([*fields, _FILLING])}"
            self._process = subprocess.Popen(
                ["nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits", "-lms", str(INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=into,
            )
        finally:
            os.close(into)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._output)

    def _read(self) -> None:
        rest, reads = b"", 0
        with contextlib.suppress(OSError):  # so does a pseudo-terminal say that the other side is closed
            while data := os.read(self._output, 65536):
                now = time.time()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    stamp, *cells = [cell.strip() for cell in line.decode(errors="replace").split(",")]
                    with contextlib.suppress(ValueError):  # a line that is no sample
                        stamped = datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").timestamp()  # local, as it is meant
                        power = {field: _number(cell) for field, cell in zip(self._fields, cells, strict=False)}
                        self.samples.append(Sample(stamped, now, reads, power))
                reads += 1


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # [N/A]
        return math.nan


class EnergyCounter:
    """The energy counter of a GPU, by NVML; `missing` says why there is none."""

    def __init__(self, gpu: str) -> None:
        self.missing = ""
        try:
            import pynvml  # noqa: PLC0415 - not everybody has it

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
            self.joules: Callable[[], float] = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
            self.joules()
        except Exception as error:  # NVML's errors are of many classes, made as it is imported
            self.missing = " ".join(f"{type(error).__name__}: {error}".split())
            self.joules = lambda: math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this program alone is told."""
    parser.add_argument("--kernel", default="cuda-matmul-fn", help="what loads the GPU (default %(default)s)")
    parser.add_argument("--size", type=cli.positive_int, default=2000, metavar="N", help="default %(default)s")


def measure(options: Options) -> Report:
    """Measure rounds of load on the first GPU, and what was sampled meanwhile."""
    assert __doc__ is not None
    report = Report("nvidia-smi's samples", __doc__.partition("\n\n")[2])
    gpu, fields = first_gpu()
    counter = EnergyCounter(gpu)
    joules: dict[str, list[float]] = {"counter": []}
    with (
        serving.started(kernels.find(options.kernel), "-m", "1", "-g", "1", "--gpu-ids", gpu) as server,
        contextlib.closing(Smi(gpu, fields, through_pipe=True)) as piped,
        contextlib.closing(Smi(gpu, fields, through_pipe=False)) as printed,
    ):
        client = load_matmul_client(server.address)
        try:
            client.prepare(str(options.size), 0)
            square_for(client, options.size, BETWEEN_S)  # the first of it boots the worker
            spans = []
            for number in range(options.rounds):
                time.sleep(BETWEEN_S)
                begun, before = time.time(), counter.joules()
                square_for(client, options.size, LOAD_S)
                joules["counter"].append(counter.joules() - before)
                spans.append((begun, time.time()))
                counted = counter.missing or f"{joules['counter'][-1]:.1f} J by the energy counter"
                common.say(f"round {number + 1} of {options.rounds}: {counted}")
            time.sleep(BETWEEN_S)
        finally:
            client.cleanup()
    for field in fields:
        joules[field] = [integral_j(printed.samples, field, *span) for span in spans]
    tell_delays(report, {"a pipe": piped.samples, "a pseudo-terminal": printed.samples})
    tell_energy(report, joules, counter.missing)
    return report


def first_gpu() -> tuple[str, list[str]]:
    """Give the UUID of the first GPU, and the fields of power that its driver knows."""
    said = ""
    for fields in ([POWER, INSTANT], [POWER]):
        command = ["nvidia-smi", f"--query-gpu=uuid,{','.join(fields)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"nvidia-smi does not run ({error})") from None
        said = done.stdout + done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("GPU-"):
                return line.partition(",")[0], fields
    raise UsageError(f"nvidia-smi tells of no GPU: {' '.join(said.split())[:200]}")


def square_for(client: ModuleType, n: int, seconds: float) -> None:
    """Make requests for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        outcome = client.run_client(str(n))
        if outcome.status != "ok":
            raise KaasError(f"a matrix task was not served: {outcome.status}: {outcome.error}")


def integral_j(samples: list[Sample], field: str, begin: float, end: float) -> float:
    """Integrate a power over a span of time; NaN if it was not sampled."""
    every = [(sample.stamped, sample.power_w.get(field, math.nan)) for sample in samples]
    known = [(stamped, watts) for stamped, watts in every if not math.isnan(watts)]
    if not known:
        return math.nan
    times, watts = zip(*known, strict=True)
    grid = [begin, *(time for time in times if begin < time < end), end]
    return float(np.trapezoid(np.interp(grid, times, watts), grid))


def tell_delays(report: Report, by_way: dict[str, list[Sample]]) -> None:
    """Report how late samples came, and how many together."""
    for way, samples in by_way.items():
        if not samples:
            report.notes.append(f"Through {way} no sample arrived at all.")
            continue
        delays = [1000 * (sample.arrived - sample.stamped) for sample in samples]
        report.add(f"delay of a sample through {way}", "ms", delays)
        together = Counter(sample.read for sample in samples)
        report.add(f"samples that arrive together through {way}", "samples", list(map(float, together.values())))
        pauses = [1000 * (later.stamped - one.stamped) for one, later in itertools.pairwise(samples)]
        if pauses:
            report.add(f"from one time stamp to the next through {way}", "ms", pauses)


def tell_energy(report: Report, joules: dict[str, list[float]], missing: str) -> None:
    """Report the energy of a round by each way that is known."""
    if missing:
        report.notes.append(f"{_NO_COUNTER} ({missing}).".capitalize())
    for way, found in joules.items():
        if math.isnan(sum(found)):
            continue
        what = "by the counter" if way == "counter" else f"as the integral of {way}"
        report.add(f"energy of {LOAD_S:g} s of load, {what}", "J", found)
        if way != "counter" and not missing and statistics.median(joules["counter"]) > 0:
            report.add(f"{what[3:]}, of the counter", "x the counter", common.ratios(found, joules["counter"]))


if __name__ == "__main__":
    common.main(measure, __doc__, add_arguments)
