#!/usr/bin/env python3
"""The monitor: logs the utilization of every GPU to a CSV file, until SIGTERM or Ctrl-C.

A laptop's virtual GPUs are measured by the CPU time of their workers. The columns are described in kaas/monitor.
"""

import argparse
from pathlib import Path

from kaas import cli
from kaas.client import Connection
from kaas.monitor.cpu import cpu_monitor
from kaas.monitor.samples import record


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("output", type=Path, metavar="OUTPUT", help="the CSV file to write; it must not be there yet")
    add(
        "--interval-ms",
        type=cli.positive_int,
        default=250,
        metavar="MS",
        help="milliseconds between two samples (default %(default)s; CPU time is counted in steps of 10)",
    )
    cli.add_server_option(parser)
    cli.add_supervised_option(parser)
    return parser.parse_args()


def main() -> None:
    """Log until told to stop."""
    arguments = parse_arguments()
    with Connection(arguments.server) as connection:
        monitor = cpu_monitor(connection)
        record(monitor.take, arguments.output, arguments.interval_ms / 1000, arguments.supervised)


if __name__ == "__main__":
    cli.run(main)
