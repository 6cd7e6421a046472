"""The figures of scripts/test-gpu, gathered and put into words.

    gpu_results.py gather FOLDER     the pieces in a folder of scripts/test-gpu's, as one JSON
    gpu_results.py run FOLDER        what a results folder holds in numbers, as JSON
    gpu_results.py page [FILE...]    docs/gpu-results.md: of no, one or more figures.json
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Figures = dict[str, Any]
_TEST = re.compile(r"^tests/\S*?([^/:\s]+::\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", re.MULTILINE)
_LIBRARIES = ("numba-cuda", "numba", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
NOTHING = "not measured"


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; print it."""
    match arguments:
        case ["gather", folder]:
            print(json.dumps(gather(Path(folder)), indent=1))
        case ["run", folder]:
            print(json.dumps(numbers_of(Path(folder)), indent=1))
        case ["page", *files]:
            print(page([json.loads(Path(file).read_text(encoding="utf-8")) for file in files]), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def gather(folder: Path) -> Figures:
    """Put the pieces in a folder together: each JSON under its name, steps, tests, cards, and what machine it is.

    A piece that cannot be read, since it was being written when all was cut off, is left out.
    """
    from kaas import machine  # noqa: PLC0415 - the page needs no library

    figures: Figures = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cards": _text(folder / "cards.txt").splitlines(),
        "machine": machine.describe(),
        "revision": os.environ.get("REVISION", ""),
        "packages": {
            found.name: found.version
            for found in importlib.metadata.distributions()
            if re.match(r"(nvidia|cuda|numba)-|numba$|numpy$", found.name or "")
        },
        "steps": [
            {"name": name, "limit_s": int(limit), "code": int(code), "seconds": int(seconds)}
            for name, limit, code, seconds in csv.reader(_text(folder / "steps.csv").splitlines())
        ],
        "tests": [{"test": name, "result": result.lower()} for name, result in _TEST.findall(_text(folder / "tests.txt"))],
    }
    for path in sorted(folder.glob("*.json")):
        try:
            figures[path.stem] = json.loads(_text(path))
        except ValueError:
            continue
    return figures


def numbers_of(folder: Path) -> Figures:
    """Give the numbers of the first run in a results folder: the report's, and each boot's seconds by phase."""
    from kaas.analysis import breakdown, runs, tables  # noqa: PLC0415 - only this needs pandas

    run = runs.find_runs(folder)[0]
    (row,) = json.loads(tables.per_repeat([run]).to_json(orient="records"))
    return {
        "task": run.task,
        "parameters": dict(run.parameters),
        "numbers": row,
        "boots": json.loads(breakdown.boots(run).to_json(orient="records")),
        "notes": list(run.notes),
    }


def page(every: Sequence[Figures]) -> str:
    """Write the page: what was run without a GPU, and a part for each machine with one."""
    parts = [ABOUT]
    if not every:
        parts.append("## On a GPU\n\n**Nothing yet: this project has not been run on a GPU.** No number stands here before it has been\nmeasured.")
    for figures in every:
        parts += [
            about(figures),
            kernels(figures.get("kernels")),
            *(experiment(figures[name], name) for name in ("experiment", "experiment-mps") if name in figures),
            cold_starts(figures),
            report("A process of its own each time, or a warm KaaS", figures.get("naive")),
            report("nvidia-smi's samples", figures.get("samples")),
            how_it_went(figures),
        ]
    return "\n\n".join(parts) + "\n"


def about(figures: Figures) -> str:
    """Say what machine it was, and when."""
    machine, packages = figures["machine"], figures["packages"]
    libraries = ", ".join(f"{name} {packages[name]}" for name in _LIBRARIES if name in packages)
    rows = [
        ("Card, driver, compute capability, memory", "; ".join(figures["cards"])),
        ("Date", figures["date"]),
        ("Revision", figures["revision"] or machine["Git revision"]),
        ("Libraries", libraries),
        *((name, machine[name]) for name in ("Python", "CPU", "Memory", "OS")),
    ]
    name = figures["cards"][0].split(",")[0] if figures["cards"] else "a GPU"
    return f"## On {name}, {figures['date']}\n\n" + table(("", ""), rows)


def kernels(found: Figures | None) -> str:
    """Show what benchmarks/gpu_kernels.py measured."""
    text = "### The kernels\n\n"
    if not found:
        return text + _missing()
    columns = ("N", "kernel", "GPU only, ms", "GFLOP/s", "of cuBLAS", "call, pageable, ms", "call, pinned, ms", "product")
    rows = [
        (
            row["n"],
            row["kernel"],
            _number(row["gpu_ms"]),
            _number(row["gflops"]),
            f"{row['share_of_cublas']:.0%}" if row["share_of_cublas"] is not None else "-",
            _number(row["pageable_ms"]),
            _number(row["pinned_ms"]),
            "right" if row["right"] else "**WRONG**",
        )
        for row in found["results"]
    ]
    prepared = [
        f"{kernel} kernel: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in phases.items())
        for kernel, phases in found["prepare_seconds"].items()
    ]
    cublas = f"cuBLAS {found['cublas']}." if found["cublas"] else "cuBLAS was not found there."
    return (
        text
        + f"Medians of {found['rounds']} rounds that alternate. GPU only: on float32 matrices that are there already. A call is all "
        f"that a worker does,\nwith float64 matrices in shared memory. {cublas}\n\n"
        + table(columns, rows)
        + "\n\nTo get ready in one process, one after the other, with nothing compiled before: "
        + "; ".join(prepared)
        + "."
    )


def experiment(found: Figures, name: str) -> str:
    """Show the numbers of a run, and its boots."""
    parameters = found["parameters"]
    settings = ", ".join(f"{key} {value}" for key, value in parameters.items() if key in SETTINGS)
    text = f"### A short experiment, MPS {'on' if name.endswith('mps') else 'off'}\n\n{found['task']}: {settings}.\n\n"
    known = {key: value for key, value in found["numbers"].items() if value is not None}
    text += table(("number", "value"), [(key, _number(value)) for key, value in known.items()])
    for boot in found["boots"]:
        phases = ", ".join(f"{key} {_number(value)}" for key, value in boot.items() if key not in {"gpu", "elapsed", "worker"})
        text += f"\n\nThe boot of GPU {boot['gpu']}, its slowest worker, in seconds: {phases}."
    return text + f"\n\n![the experiment's figure](autoscaling-{name}.png)"


def cold_starts(figures: Figures) -> str:
    """Show what benchmarks/cold_start.py measured, for each kernel that there is."""
    found = [figures[name] for name in ("cold-start-paper", "cold-start-fast") if figures.get(name)]
    return "\n\n".join(report(one["title"], one) for one in found) or "### Cold starts\n\n" + _missing()


def report(title: str, found: Figures | None) -> str:
    """Show what a benchmark program has reported."""
    text = f"### {title}\n\n"
    if not found:
        return text + _missing()
    smoke = "\n\n*A quick run: one round.*" if found["quick"] else ""
    rows = [
        (one["name"], one["unit"], _number(one["value"]), f"{_number(one['low'])} to {_number(one['high'])}", one["rounds"])
        for one in found["results"]
    ]
    parts = [found["about"].strip() + smoke, table(("what", "unit", "median", "from, to", "rounds"), rows)]
    parts += [
        f"{one['title']}:\n\n" + table(one["columns"], [[_number(cell) for cell in row] for row in one["rows"]])
        for one in found["tables"]
    ]
    return text + "\n\n".join([*parts, *found["notes"]])


def how_it_went(figures: Figures) -> str:
    """Say how each step and each test ended."""
    steps = [(one["name"], one["seconds"], one["limit_s"], "well" if not one["code"] else f"**code {one['code']}**") for one in figures["steps"]]
    results = [one["result"] for one in figures["tests"]]
    counts = ", ".join(f"{results.count(kind)} {kind}" for kind in dict.fromkeys(results)) or NOTHING
    failed = [f"- {one['test']}: **{one['result']}**" for one in figures["tests"] if one["result"] in {"failed", "error"}]
    return "\n\n".join(
        [
            "### How the check itself went",
            table(("step", "s", "limit, s", "ended"), steps),
            f"Tests marked `gpu`: {counts}.",
            *(["\n".join(failed)] if failed else []),
        ]
    )


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Write a table of Markdown; a column is aligned right if all in it are numbers."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    numbers = [all(re.fullmatch(r"-|-?[\d.,]+%?", row[at]) for row in cells) for at in range(len(columns))]
    lines = [list(map(str, columns)), ["--:" if right else "---" for right in numbers], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: object) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004


def _missing() -> str:
    return f"*{NOTHING.capitalize()}: the step failed or was cut off; see below.*"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


SETTINGS = ("Input", "Minimum parallel requests", "Maximum parallel requests", "Interval")
ABOUT = """\
# What was measured on GPUs
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
