#!/usr/bin/env python3
"""The load generator: clients, from few to many or as --shape says, and one row for each request.

Writes results-<experiment name>/<task name>.csv and .md. Ctrl-C once: ends in order and keeps the data; twice: at once.
"""

import argparse
import os
from pathlib import Path

from kaas import cli, emulator, kernels, segments, shape_setting, transport
from kaas.client import split_address
from kaas.errors import UsageError
from kaas.ramp import Ramp
from kaas.results import RunFiles
from kaas.shapes import OpenLoop, Stepwise


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--client", required=True, help="the client module: a name or a path, with or without .py")
    add("--input", required=True, help="handed to the client module: the matrix's size N, for ours")
    add("--experiment-name", type=cli.file_name, required=True, help="names the folder: results-<experiment name>")
    add("--task-name", type=cli.file_name, required=True, help="names the files in it")
    add("--experiment-description", default="", help="a sentence for the description file")
    add("--results", type=Path, default=Path(), metavar="FOLDER", help="where that folder is made (default: here)")
    add("--min-parallel", type=cli.positive_int, required=True, metavar="N", help="clients at the start")
    add("--max-parallel", type=cli.positive_int, required=True, metavar="N", help="clients at the end")
    add("--step-size", type=cli.positive_int, default=1, metavar="N", help="clients added at each step (default 1)")
    add("--interval", type=cli.positive_seconds, default=10.0, metavar="SECONDS", help="length of a step (default 10)")
    add(
        "--shape",
        default=shape_setting.DEFAULT,
        help=f"the load over time: {shape_setting.GRAMMAR} (default %(default)s; kaas/shape_setting.py explains them)",
    )
    add(
        "--backoff",
        type=cli.seconds,
        default=0.1,
        metavar="SECONDS",
        help="how long a client waits after a refusal (default 0.1; 0 is what the original did)",
    )
    cli.add_server_option(parser, "; 'none' if the client needs none")
    for name, help_text in (
        ("ready-timeout", "how long to wait for the server to be ready"),
        ("finish-timeout", "at the end, how long a client's last request may take before the client is killed"),
    ):
        add(f"--{name}", type=cli.positive_seconds, default=60.0, metavar="SECONDS", help=f"{help_text} (default 60)")
    add(
        "--max-failed",
        type=cli.count,
        default=0,
        metavar="N",
        help="exit with 3 if more requests failed; refusals do not count (default 0)",
    )
    add(
        "--max-late",
        type=cli.seconds,
        metavar="SECONDS",
        help="exit with 3 if a step's clients come later (default: a quarter of the step, and at least 0.5)",
    )
    add("--keep-going", action="store_true", help="go on though nothing is served: all fails, or no GPU is left")
    cli.add_ray_options(
        parser, "where the clients are: on this machine, or spread over the nodes of a Ray cluster", "the server's"
    )
    cli.add_supervised_option(parser)
    add(
        "--check",
        action="store_true",
        help="only check the arguments and the client's file, have its check(), if any, look at the input, and end",
    )
    return parser.parse_args()


def shape_of(arguments: argparse.Namespace) -> Ramp | Stepwise:
    """Make the shape that the options describe."""
    try:
        ramp = Ramp(arguments.min_parallel, arguments.max_parallel, arguments.step_size, arguments.interval)
    except UsageError as error:
        raise UsageError(f"{error} (--min-parallel, --max-parallel)") from None
    return shape_setting.read(arguments.shape, ramp, "--shape")


def main() -> int:
    """Run the load that the command line describes."""
    arguments = parse_arguments()
    cli.check_ray_options(arguments)
    client = kernels.find(arguments.client)
    kernels.check(client, kernels.CLIENT_FUNCTION)
    server = None if arguments.server == "none" else arguments.server
    if server is not None:
        split_address(server)
        os.environ["KAAS_ADDRESS"] = server  # the client's file may look, whoever imports it
    shape, kept, carried = shape_of(arguments), segments.are_kept(), transport.mode()
    if arguments.engine == "ray" and isinstance(shape, OpenLoop):
        raise UsageError(f"--shape {arguments.shape} is sent from one machine: give no --engine ray")
    if arguments.check:
        kernels.check_input(client, arguments.input)
        return 0
    from kaas.cluster.cluster import Joining  # noqa: PLC0415 - a check, or --help, is answered without these
    from kaas.load.generator import generate  # noqa: PLC0415
    from kaas.load.settings import Settings  # noqa: PLC0415

    joining = None
    if arguments.engine == "ray":
        joining = Joining(
            arguments.ray_address,
            link_host=arguments.link_host,
            link_port=arguments.link_port,
            kill_after=arguments.finish_timeout,
        )
    settings = Settings(
        client=client,
        input=arguments.input,
        files=RunFiles.of(arguments.experiment_name, arguments.task_name, arguments.results.absolute()),
        parameters=emulator.facts()
        | {
            "Client": arguments.client,
            "Input": arguments.input,
            "Experiment name": arguments.experiment_name,
            "Task name": arguments.task_name,
            "Experiment description": arguments.experiment_description,
            "Minimum parallel requests": arguments.min_parallel,
            "Maximum parallel requests": arguments.max_parallel,
            "Step size": arguments.step_size,
            "Interval": f"{arguments.interval:g}",
            "Backoff": f"{arguments.backoff:g}",
            "Server": arguments.server,
            "Segments": "kept" if kept else "fresh",
            "Transport": carried,
            **shape_setting.noted(shape),
        },
        shape=shape,
        server=server,
        backoff=arguments.backoff,
        ready_timeout=arguments.ready_timeout,
        finish_timeout=arguments.finish_timeout,
        max_failed=arguments.max_failed,
        max_late=arguments.max_late,
        keep_going=arguments.keep_going,
        supervised=arguments.supervised,
        joining=joining,
    )
    return generate(settings)


if __name__ == "__main__":
    cli.run(main, cli.at_once)
