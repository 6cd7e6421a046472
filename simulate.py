#!/usr/bin/env python3
"""The experiment without a GPU: the real pool, placement, policy and ramp over a model of GPUs and clients.

Simulates the published run (or any cluster and ramp) in virtual time, and writes the files of a run: as the original
was to results-<experiment name>/, and as this harness does to results-<experiment name>-harness/. Nothing of it is
measured, and every file says so. The folders are made here, or where RESULTS says; an earlier run is moved aside.
`simulate.py calibrate FOLDER` fits the model to a results folder.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from kaas import ROOT, cli, results, shape_setting
from kaas.errors import ResultsError, UsageError
from kaas.ramp import Ramp
from kaas.simulation import calibration
from kaas.simulation.setting import Setting

_PAPER = Setting()
_MOST_WORKERS = 10_000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--preset", choices=("paper",), default="paper", help="what is simulated; options change it (default paper)")
    add(
        "--calibration",
        default="published",
        metavar="NAME",
        help=f"of the model: a TOML file, or one of {', '.join(calibration.names())} (default %(default)s)",
    )
    add("--seed", type=cli.count, default=1, metavar="N", help="of the first repeat (default %(default)s)")
    add("--repeats", type=cli.positive_int, default=1, metavar="N", help="each of the next seed (default %(default)s)")
    add("--experiment-name", type=cli.file_name, default="simulated", help="names the folders (default %(default)s)")
    for name, short, help_text in (
        ("num-gpus", "-g", "GPUs of the server"),
        ("max-req-per-gpu", "-m", "workers of each"),
        ("min-parallel", None, "clients at the start"),
        ("max-parallel", None, "clients at the end"),
        ("step-size", None, "clients added at each step"),
    ):
        add(
            *filter(None, (short, f"--{name}")),
            type=cli.positive_int,
            metavar="N",
            help=f"{help_text} (default: the preset's)",
        )
    add("--interval", type=cli.positive_seconds, metavar="SECONDS", help="length of a step (default: the preset's)")
    add(
        "--shape",
        default=shape_setting.DEFAULT,
        help=f"the load over time: {shape_setting.GRAMMAR} (default %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="instead of all that:")
    fit = commands.add_parser("calibrate", help="fit the model to a results folder", description=fit_runs.__doc__)
    fit.add_argument("folder", metavar="FOLDER", type=Path, help="a results folder")
    fit.add_argument("--output", type=Path, default=Path("calibration.toml"), help="default %(default)s")
    fit.add_argument(
        "--repeat", type=cli.positive_int, metavar="N", help="use this run only, by its order (default: all)"
    )
    for name, default, help_text in (
        ("num-gpus", _PAPER.gpus, "GPUs of the server"),
        ("max-req-per-gpu", _PAPER.workers_per_gpu, "workers of each"),
    ):
        fit.add_argument(
            f"--{name}",
            type=cli.positive_int,
            default=argparse.SUPPRESS,  # what stands before the command counts, too
            metavar="N",
            help=f"{help_text} (default {default})",
        )
    compare = commands.add_parser("policies", help="put policies side by side", description=compare_policies.__doc__)
    compare.add_argument("--seeds", type=cli.positive_int, default=14, metavar="N", help="default %(default)s")
    compare.add_argument("--output", type=Path, default=Path("policies.csv"), help="default %(default)s")
    validate = commands.add_parser(
        "validate", help="predict a run's other repeats from its first", description=predict_repeats.__doc__
    )
    validate.add_argument("folder", metavar="FOLDER", type=Path, help="a results folder with two repeats at least")
    validate.add_argument("--seeds", type=cli.positive_int, default=20, metavar="N", help="default %(default)s")
    emulate = commands.add_parser(
        "emulate", help="be the GPUs and the clients' host of a rehearsal", description=be_the_emulator.__doc__
    )
    emulate.add_argument(
        "--time-scale", type=cli.positive_seconds, default=1.0, metavar="X", help="so many times as fast (default 1)"
    )
    emulate.add_argument("--ready", type=Path, metavar="FILE", help="write the socket's path there, once it listens")
    emulate.add_argument("--check", action="store_true", help="only check the arguments, and say nothing")
    cli.add_supervised_option(emulate)
    return parser.parse_args()


def fit_runs(arguments: argparse.Namespace) -> None:
    """Fit the model's parameters to the runs of a results folder, and write them as TOML."""
    from kaas.simulation import fitting  # noqa: PLC0415 - none of it is needed for --help

    gpus, workers = _cluster(arguments)
    print(fitting.calibrate(arguments.folder, arguments.repeat, gpus, workers, arguments.output))


def compare_policies(arguments: argparse.Namespace) -> None:
    """Simulate every policy on the same load and seeds; write what each costs and gives as a table, and draw it."""
    from kaas.simulation import policies  # noqa: PLC0415 - see above

    if arguments.output.exists():  # before all is simulated
        raise UsageError(f"{arguments.output} is there already: move it away, or give another --output")
    model = calibration.load(arguments.calibration).model
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    found = policies.compare(model, setting_of(arguments), seeds)
    policies.write(found, arguments.output)
    print(policies.table(found))
    print(policies.HOW_TO_READ.format(seeds=len(seeds)))
    print(f"Table: {arguments.output}", flush=True)
    # A process of its own: what draws is of another room.
    drawn = [sys.executable, "-m", "kaas.analysis.policies", str(arguments.output.absolute())]
    if subprocess.run(drawn, cwd=ROOT, check=False).returncode:
        raise ResultsError("the figure could not be drawn: see above")


def predict_repeats(arguments: argparse.Namespace) -> None:
    """Fit the model to the first repeat of a run, and say how far it predicts the others, over many seeds."""
    from kaas.simulation import validation  # noqa: PLC0415 - see above

    print(validation.validate(arguments.folder, range(arguments.seed, arguments.seed + arguments.seeds)))


def be_the_emulator(arguments: argparse.Namespace) -> None:
    """Be what ./autoscale-cpu.sh --rehearse-paper has for GPUs: the model in real time, for the live server.

    Says what KAAS_EMULATOR has to be for server, clients and monitor.
    """
    calibrated, setting = calibration.load(arguments.calibration), setting_of(arguments)
    if arguments.check:
        return
    import asyncio  # noqa: PLC0415 - see above

    from kaas.simulation.emulator import emulate  # noqa: PLC0415

    ready, scale = arguments.ready, arguments.time_scale
    asyncio.run(emulate(calibrated, setting, scale, arguments.seed, ready=ready, supervised=arguments.supervised))


def _cluster(arguments: argparse.Namespace) -> tuple[int, int]:
    return arguments.num_gpus or _PAPER.gpus, arguments.max_req_per_gpu or _PAPER.workers_per_gpu


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Make the setting that the options describe."""
    ramp = _PAPER.shape
    assert isinstance(ramp, Ramp)
    changes = {
        "min_clients": arguments.min_parallel,
        "max_clients": arguments.max_parallel,
        "step_size": arguments.step_size,
        "interval": arguments.interval,
    }
    steps = replace(ramp, **{name: value for name, value in changes.items() if value is not None})
    shape = shape_setting.read(arguments.shape, steps, "--shape")
    gpus, workers = _cluster(arguments)
    if gpus * workers > _MOST_WORKERS:
        raise UsageError(f"{gpus} GPUs x {workers} workers are over {_MOST_WORKERS}")
    return replace(_PAPER, shape=shape, gpus=gpus, workers_per_gpu=workers)


def simulate(arguments: argparse.Namespace) -> None:
    """Simulate each repeat in both ways, and write the files of their runs."""
    from kaas.simulation import ways  # noqa: PLC0415 - see above

    calibrated, setting = calibration.load(arguments.calibration), setting_of(arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.repeats)
    parent, summaries = Path(os.environ.get("RESULTS") or "").absolute(), {}
    experiments = {ways.PUBLISHED: arguments.experiment_name, ways.HARNESS: f"{arguments.experiment_name}-harness"}
    folders = {way: parent / f"results-{experiment}" for way, experiment in experiments.items()}
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(results.claimed(folder))
        for way, folder in folders.items():
            if (aside := results.move_aside(folder)) is not None:
                print(f"The earlier run in {_shown(folder)} is now in {_shown(aside)}")
            found = ways.run(calibrated, setting, way, seeds, parent=parent, experiment=experiments[way])
            summaries[way.name] = ways.summary(found)
    print(ways.table(summaries))
    print(f"Simulated, not measured: {' and '.join(f'{_shown(folder)}/' for folder in folders.values())}")


def _shown(folder: Path) -> Path:
    """Give a folder's path as short as can be, from where the user is."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def main() -> None:
    """Do what the command line says."""
    arguments = parse_arguments()
    commands = {
        "calibrate": fit_runs,
        "policies": compare_policies,
        "validate": predict_repeats,
        "emulate": be_the_emulator,
        None: simulate,
    }
    commands[arguments.command](arguments)


if __name__ == "__main__":
    cli.run(main, cli.at_once)
