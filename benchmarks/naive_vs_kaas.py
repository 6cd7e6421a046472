#!/usr/bin/env python3
"""How much sooner is a task done by a warm KaaS than by a process of its own? The paper's headline.

Naively, each task is a fresh process (naive.py): it starts, imports, creates the context if the kernel is for a GPU,
loads its compiled code from the cache, reads the matrix from a file, computes, and ends. With KaaS, the task is one
invocation of a warm worker by the matrix kernels' client, the copy of the matrix into shared memory included: memory
that is fresh for each task, which is the paper's way, or kept from task to task. In turns; the paper (Middleware '23)
reports up to 96.0 % less on a GPU for fine-grained tasks.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import common
from common import Options, Report
from overhead import load_matmul_client, make_ready, matmul_server

from kaas import cli, kernels, matrices
from kaas.errors import KaasError

SIZES = (16, 50, 100, 200, 500, 1000, 2000)
LARGE = 2000
"""Rows of a matrix from which on a request takes seconds."""
KERNEL = "cuda-matmul-cpu"
NAIVE = Path(__file__).with_name("naive.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this program alone is told."""
    parser.add_argument("sizes", type=cli.positive_int, nargs="*", default=SIZES, metavar="N", help=f"default: {SIZES}")
    parser.add_argument("--kernel", default=KERNEL, help="cuda-matmul-fn for a GPU (default %(default)s)")
    common.add_figure_option(parser)


def measure(options: Options) -> Report:
    """Measure each N both ways, in turns, and draw it if that is asked for."""
    assert __doc__ is not None
    kernel = kernels.find(options.kernel)
    report = Report(f"Naive or KaaS: {kernel.stem}", __doc__.partition("\n\n")[2])
    sizes = [16, 50] if options.quick else options.sizes
    with tempfile.TemporaryDirectory(prefix="kaas-") as scratch:
        os.environ["KAAS_SCRATCH"] = scratch
        with matmul_server(kernel, "fresh") as server, matmul_server(kernel, "kept") as keeping:
            client = load_matmul_client(server.address)
            try:
                found = common.alternate(
                    {
                        f"{way}, N={n}": partial(task, n)
                        for n in sizes
                        for way, task in (
                            ("naive", partial(_naive_ms, kernel, Path(scratch))),
                            ("KaaS", partial(_kaas_ms, client, server.address, "fresh")),
                            ("KaaS, kept", partial(_kaas_ms, client, keeping.address, "kept")),
                        )
                    },
                    options.rounds,
                )
            finally:
                client.cleanup()
    naive, kaas, kept = (
        {n: statistics.median(found[f"{way}, N={n}"]) for n in sizes} for way in ("naive", "KaaS", "KaaS, kept")
    )
    less = {
        n: [100 * (1 - share) for share in common.ratios(found[f"KaaS, N={n}"], found[f"naive, N={n}"])] for n in sizes
    }
    for n in sizes:
        report.add(f"N={n}: completion time with KaaS", "% less", less[n])
    report.add_table(
        "Completion time, medians",
        ("N", "naive, ms", "KaaS, ms", "KaaS with segments kept, ms"),
        [(n, naive[n], kaas[n], kept[n]) for n in sizes],
    )
    if options.figure:
        draw(options.figure, kernel.stem, naive, (kaas, kept), {n: statistics.median(one) for n, one in less.items()})
        report.figure = options.figure.name
    return report


def _naive_ms(kernel: Path, scratch: Path, n: int) -> float:
    matrix = matrices.matrix_file(n, scratch)
    return common.times_ns(partial(subprocess.run, [sys.executable, NAIVE, kernel, matrix], check=True), 1)[0] / 1e6


def _kaas_ms(client: ModuleType, address: str, mode: str, n: int) -> float:
    """Make some requests, one of large matrices; the first, with its new matrix and connection, does not count."""
    make_ready(client, address, mode, n)
    outcomes = [client.run_client(str(n)) for _ in range(3 if n < LARGE else 1)]
    for outcome in outcomes:
        if outcome.status != "ok":
            raise KaasError(f"a matrix task was not served: {outcome.status}: {outcome.error}")
    return float(statistics.median(outcome.outer_ms for outcome in outcomes))


def draw(
    path: Path,
    kernel: str,
    naive: dict[int, float],
    fresh_and_kept: tuple[dict[int, float], dict[int, float]],
    less: dict[int, float],
) -> None:
    """Draw the times, and what is saved."""
    import figure as figures  # noqa: PLC0415 - matplotlib takes long to import

    figure, (times, saved) = figures.panels(1, 2)
    times.plot(list(naive), list(naive.values()), "s--", color=figures.VERMILLION, label="a fresh process each time")
    kaas, kept = fresh_and_kept
    times.plot(list(kaas), list(kaas.values()), "o-", color=figures.BLUE, label="warm KaaS")
    times.plot(list(kept), list(kept.values()), "^:", color=figures.GREEN, label="warm KaaS, segments kept")
    figures.log_log(times, "N (matrix of N x N)", "completion time (ms)", list(naive))
    times.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.57))  # between the lines
    times.set_title(kernel, fontsize=9)
    saved.plot(list(less), list(less.values()), "o-", color=figures.BLUE)
    figures.log_log(saved, "N (matrix of N x N)", "completion time saved (%)", list(less))
    saved.set_yscale("linear")
    saved.set_ylim(min(0.0, *less.values()), 105)
    figures.save(figure, path)


if __name__ == "__main__":
    common.main(measure, __doc__, add_arguments)
