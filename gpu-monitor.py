#!/usr/bin/env python3
"""The monitor: logs the utilization of every GPU to a CSV file, until SIGTERM or Ctrl-C.

NVIDIA GPUs are asked through nvidia-smi, and their energy counters through NVML; a laptop's virtual GPUs are measured
by the CPU time of their workers, and of emulated ones the emulator tells. With --engine ray, an agent on each node of
the server does so there, and each row is stamped by the clock here. The columns are described in kaas/monitor.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from kaas import cli
from kaas.client import Connection
from kaas.clock import Clock
from kaas.errors import UsageError
from kaas.monitor.cpu import cpu_monitor
from kaas.monitor.emulated import EmulatedMonitor
from kaas.monitor.nvidia_smi import NvidiaSmi
from kaas.monitor.nvml import EnergyCounters
from kaas.monitor.samples import check_new, leave_signals, record


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("output", type=Path, metavar="OUTPUT", help="the CSV file to write; it must not be there yet")
    add(
        "--source",
        choices=("cpu", "nvidia-smi", "emulated"),
        help="what to measure (default nvidia-smi where there is one)",
    )
    add(
        "--interval-ms",
        type=cli.positive_int,
        metavar="MS",
        help="milliseconds between two samples (default 100; 250 for CPU time, which is counted in steps of 10)",
    )
    add("--gpu-ids", type=cli.names, default=(), metavar="UUID,...", help="only these GPUs, numbered in this order")
    cli.add_server_option(parser)
    cli.add_ray_options(parser, "where to look: at this machine, or at the nodes of a Ray cluster", "the server's")
    cli.add_supervised_option(parser)
    return parser.parse_args()


def main() -> None:
    """Log until told to stop."""
    arguments = parse_arguments()
    cli.check_ray_options(arguments)
    interval_ms, clock = arguments.interval_ms, Clock.of_run().now
    if arguments.engine == "ray":
        record_nodes(arguments)
    elif (arguments.source or ("nvidia-smi" if shutil.which("nvidia-smi") else "cpu")) == "nvidia-smi":
        with (
            contextlib.closing(NvidiaSmi(interval_ms or 100, arguments.gpu_ids, say, clock)) as gpus,
            contextlib.closing(EnergyCounters(say)) as counters,
        ):
            # nvidia-smi keeps the pace itself.
            record(lambda: counters.add_to(gpus.take()), arguments.output, 0.0, arguments.supervised)
    elif arguments.source == "emulated":
        with contextlib.closing(EmulatedMonitor(clock)) as emulated:
            record(emulated.take, arguments.output, (interval_ms or 100) / 1000, arguments.supervised)
    else:
        with Connection(arguments.server) as connection:
            take = cpu_monitor(lambda: connection.status(timeout=5.0), clock).take
            record(take, arguments.output, (interval_ms or 250) / 1000, arguments.supervised)


def record_nodes(arguments: argparse.Namespace) -> None:
    """Log what the nodes' agents tell; the file is there when they are."""
    from kaas.cluster.cluster import Joining  # noqa: PLC0415 - who has one machine does not pay for several
    from kaas.monitor.nodes import NodesMonitor  # noqa: PLC0415

    if arguments.gpu_ids:
        raise UsageError("--gpu-ids goes with --engine local: the server says which GPUs its nodes have")
    check_new(arguments.output)
    leave_signals(arguments.supervised)
    joining = Joining(arguments.ray_address, link_host=arguments.link_host, link_port=arguments.link_port, prints=False)
    with Connection(arguments.server) as connection:
        source, interval_ms = arguments.source or "", arguments.interval_ms or 0
        nodes = NodesMonitor(joining, connection, source=source, interval_ms=interval_ms, say=say, clock=Clock.of_run())
        with contextlib.closing(nodes):
            record(nodes.take, arguments.output, 0.0, arguments.supervised)


def say(text: str) -> None:
    """Tell what the samples lack."""
    print(f"gpu-monitor.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main, cli.at_once)
