#!/usr/bin/env python3
"""How does cost grow with connections, virtual GPUs and workers?

A no-op kernel in closed loops; each point has a server of its own. Two processes drive all connections between them, so
that the load costs little. Connections: 1 to 2,048 on 8 GPUs x 4; what finds no worker waits in the queue. GPUs: 1 to
64, of 4 workers each, and as many connections as workers. Placement: acquire plus release in this process, of workers
at random, while a quarter, half, or all but one are busy; the slowest of the three. It has 4 workers on a GPU, and at
the largest sizes also all workers on 8 GPUs and on one.
"""

import random
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import clients
import common
import serving
from common import MODULES, Options, Report, Target
from relay import MESSAGE

from kaas import descriptors
from kaas.placement import Placement
from kaas.policy import Paper

WORKERS_PER_GPU = 4
GPUS = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = (1, 4, 16, 64, 256, 1024, 2048)
ON_GPUS = 8
WORKERS = (8, 64, 512, 4096, 32_768, 100_000)
LARGE = WORKERS[-2:]
FEW_GPUS = (8, 1)
COLUMNS = ("requests/s", "p50, ms", "p99, ms", "server, MB", "CPU of server, µs/request", "CPU of workers, µs/request")


class Point(NamedTuple):
    """One measurement, in the units of `COLUMNS`."""

    rate: float
    p50_ms: float
    p99_ms: float
    server_mb: float
    server_cpu_us: float
    worker_cpu_us: float


Points = Mapping[int, Point]


def measure(options: Options) -> Report:
    """Measure all of it, and draw it if that is asked for."""
    assert __doc__ is not None
    report = Report("How cost grows", __doc__.partition("\n\n")[2])
    descriptors.raise_limit()
    on_gpus, seconds, calls, sizes = (2, 0.05, 500, 2) if options.quick else (ON_GPUS, 0.8, 20_000, None)
    measures = {("connections", number): (on_gpus, number) for number in CONNECTIONS[:sizes]}
    measures |= {("GPUs", number): (number, number * WORKERS_PER_GPU) for number in GPUS[:sizes]}
    found = common.alternate(
        {f"{number} {kind}": partial(measure_point, *at, seconds) for (kind, number), at in measures.items()},
        options.rounds,
        warm_up=False,
    )
    points: dict[str, dict[int, Point]] = {"connections": {}, "GPUs": {}}
    for (kind, number), rounds in zip(measures, found.values(), strict=True):
        points[kind][number] = Point(*map(statistics.median, zip(*rounds, strict=True)))
    placement = common.alternate(
        {
            f"{workers:,} workers": partial(placement_us, workers // WORKERS_PER_GPU, WORKERS_PER_GPU, calls)
            for workers in WORKERS[:sizes]
        },
        options.rounds,
    )
    for workers, times in placement.items():
        report.add(f"placement, {workers}: acquire and release", "µs", times, Target(5))
    on_few = common.alternate(
        {
            f"{gpus} {'GPUs' if gpus > 1 else 'GPU'} x {workers // gpus:,}": partial(
                placement_us, gpus, workers // gpus, calls
            )
            for workers in LARGE[: 0 if options.quick else None]
            for gpus in FEW_GPUS
        },
        options.rounds,
        warm_up=False,
    )
    for size, times in on_few.items():
        report.add(f"placement, {size}: acquire and release", "µs", times)
    for kind, title in (
        ("connections", f"Connections, on {on_gpus} GPUs x {WORKERS_PER_GPU}"),
        ("GPUs", f"GPUs, {WORKERS_PER_GPU} workers each, and as many connections as workers"),
    ):
        report.add_table(title, (kind, *COLUMNS), [(number, *point) for number, point in points[kind].items()])
    if options.figure:
        decisions = {
            number: statistics.median(times) for number, times in zip(WORKERS[:sizes], placement.values(), strict=True)
        }
        draw(options.figure, points["connections"], points["GPUs"], decisions)
        report.figure = options.figure.name
    return report


def measure_point(gpus: int, connections: int, seconds: float) -> Point:
    """Have so many connections make requests of a server with so many GPUs."""
    size = ("-g", str(gpus), "-m", str(WORKERS_PER_GPU), "--idle-timeout", "0")
    queue = ("--when-full", "queue", "--max-queue", str(max(CONNECTIONS)))
    with serving.started(MODULES / "no_op.py", *size, *queue) as server:
        serving.invoke_together(server.address, gpus * WORKERS_PER_GPU, MESSAGE)
        load = clients.many_each(server, connections, seconds)
    return Point(
        load.rate,
        load.percentile_ms(50),
        load.percentile_ms(99),
        load.server_bytes / 1e6,
        load.cpu_us(load.server_cpu),
        load.cpu_us(load.worker_cpu),
    )


def placement_us(gpus: int, workers_per_gpu: int, calls: int) -> float:
    """Time acquire plus release, in microseconds; the slowest of three loads."""
    workers = gpus * workers_per_gpu
    return max(_placement_us(gpus, workers_per_gpu, busy, calls) for busy in (workers // 4, workers // 2, workers - 1))


def _placement_us(gpus: int, workers_per_gpu: int, busy: int, calls: int) -> float:
    placement, policy = Placement(gpus, workers_per_gpu), Paper()
    held = [placement.acquire(gpu) for gpu in range(gpus) for _ in placement.boot(gpu)]
    random.shuffle(held)
    for worker in held[busy:]:
        placement.release(worker)
    del held[busy:]
    chosen = [random.randrange(busy) for _ in range(calls)]
    choose, acquire, release = policy.choose, placement.acquire, placement.release
    begun = time.perf_counter_ns()
    for index in chosen:
        gpu = choose(placement)
        release(held[index])
        held[index] = acquire(gpu)  # type: ignore[arg-type] # one is idle
    return (time.perf_counter_ns() - begun) / calls / 1000


def draw(path: Path, by_connections: Points, by_gpus: Points, placement: Mapping[int, float]) -> None:
    """Draw what grows with what."""
    import figure as figures  # noqa: PLC0415 - matplotlib takes long to import

    def column(points: Points, field: str) -> dict[int, float]:
        return {number: getattr(point, field) for number, point in points.items()}

    panels: list[tuple[str, str, dict[str, Mapping[int, float]]]] = []
    for x, points in (("connections", by_connections), ("virtual GPUs", by_gpus)):
        panels += [
            (x, "requests/s", {"": column(points, "rate")}),
            (x, "completion time (ms)", {"p50": column(points, "p50_ms"), "p99": column(points, "p99_ms")}),
            (
                x,
                "CPU (µs/request)",
                {"server": column(points, "server_cpu_us"), "workers": column(points, "worker_cpu_us")},
            ),
        ]
    panels += [
        ("connections", "server's memory (MB)", {"": column(by_connections, "server_mb")}),
        ("virtual GPUs", "server's memory (MB)", {"": column(by_gpus, "server_mb")}),
        ("workers", "placement (µs)", {"acquire + release": placement, "target": dict.fromkeys(placement, 5.0)}),
    ]
    figure, axes = figures.panels(3, 3)
    for axis, (x, y, lines) in zip(axes, panels, strict=True):
        for (label, line), style, colour in zip(
            lines.items(), ("o-", "s--"), (figures.BLUE, figures.VERMILLION), strict=False
        ):
            axis.plot(list(line), list(line.values()), style, color=colour, label=label, markersize=4)
        figures.log_log(axis, x, y, list(next(iter(lines.values()))))
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    figures.save(figure, path)


if __name__ == "__main__":
    common.main(measure, __doc__, common.add_figure_option)
