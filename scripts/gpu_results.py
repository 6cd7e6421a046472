"""The figures of scripts/test-gpu, gathered and put into words.

gpu_results.py keep PIECES FOLDER
                                 write what a folder of scripts/test-gpu's pieces comes to into FOLDER: figures.json
                                 and gpu-results.md
gpu_results.py run FOLDER        what a results folder holds in numbers, as JSON
gpu_results.py page FILE...      a page of one or more figures.json; of no FILE, of what is published
gpu_results.py publish FOLDER NAME
                                 put what scripts/test-gpu left in FOLDER into docs/, where every file's name begins
                                 with gpu-NAME, and write the part of docs/gpu-results.md that is made of it
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

Figures = dict[str, Any]
_TEST = re.compile(r"^tests/\S*?([^/:\s]+::\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", re.MULTILINE)
_LIBRARIES = ("numba-cuda", "numba", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
NOTHING = "not measured"
SETTINGS = {
    "MPS": "MPS",
    "Server kernel": "kernel",
    "Input": "N =",
    "Minimum parallel requests": "clients from",
    "Maximum parallel requests": "to",
    "Interval": "seconds a step",
    "Server workers per GPU": "workers per GPU",
    "Ended": "ended",
}
"""Of a run's description, and how it is said here."""
MADE_BELOW = "<!-- What follows is made by scripts/gpu_results.py. -->\n"
NOTHING_YET = """\
## On a GPU

**Nothing yet: this project has not been run on a GPU.** No number stands here before it has been measured.
"""


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; print it."""
    match arguments:
        case ["keep", pieces, folder]:
            keep(Path(pieces), Path(folder))
        case ["run", folder]:
            print(json.dumps(numbers_of(Path(folder)), indent=1))
        case ["page", *files]:
            print(page([Path(file) for file in files] or published()), end="")
        case ["publish", folder, name]:
            publish(Path(folder), f"gpu-{name}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def _of_machine() -> dict[str, str]:
    """Describe the machine, without what would name it: its host name, and whose build of the kernel it runs."""
    from kaas import machine  # noqa: PLC0415 - the page needs no library

    facts = machine.describe()
    del facts["Host"]
    return facts | {"OS": re.sub(r"^(\w+-\d+\.\d+).*", r"\1", facts["OS"])}


def _packages() -> dict[str, str]:
    import importlib.metadata  # noqa: PLC0415 - as above

    return {
        found.name: found.version
        for found in reversed(list(importlib.metadata.distributions()))  # of two with one name, the first is used
        if re.match(r"(nvidia|cuda|numba)-|numba$|numpy$", found.name or "")
    }


def _found_once(piece: Path, find: Callable[[], Figures]) -> Figures:
    """Find something out, unless it was for an earlier page of this check: it stays the same, and takes its time."""
    if not piece.exists():
        part = piece.with_suffix(".part")
        part.write_text(json.dumps(find()), encoding="utf-8")
        part.replace(piece)
    found: Figures = json.loads(_text(piece))
    return found


def keep(pieces: Path, folder: Path) -> None:
    """Write what the pieces come to by now into a folder, as figures.json and as a page."""
    figures = folder / "figures.json"
    figures.write_text(json.dumps(gather(pieces), indent=1), encoding="utf-8")
    (folder / "gpu-results.md").write_text(page([figures]), encoding="utf-8")


def gather(folder: Path) -> Figures:
    """Put the pieces in a folder together: each JSON under its name, steps, tests, cards, and what machine it is.

    A piece that cannot be read, since it was being written when all was cut off, is left out.
    """
    figures: Figures = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cards": _text(folder / "cards.txt").splitlines(),
        "machine": _found_once(folder / "machine.json", _of_machine),
        "revision": os.environ.get("REVISION", ""),
        "packages": _found_once(folder / "packages.json", _packages),
        "steps": [
            {"name": name, "limit_s": int(limit), "code": int(code), "seconds": int(seconds)}
            for name, limit, code, seconds in csv.reader(_text(folder / "steps.csv").splitlines())
        ],
        "tests": [
            {"test": name, "result": result.lower()} for name, result in _TEST.findall(_text(folder / "tests.txt"))
        ],
    }
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError):
            figures[path.stem] = json.loads(_text(path))
            figures[path.stem].pop("machine", None)  # it is the same for all of them
    return figures


def numbers_of(folder: Path) -> Figures:
    """Give the numbers of the first run in a results folder: the report's, and each boot's seconds by phase."""
    from kaas.analysis import breakdown, runs, tables  # noqa: PLC0415 - only this needs pandas

    run = runs.find_runs(folder)[0]
    (row,) = json.loads(tables.per_repeat([run]).to_json(orient="records"))
    return {
        "task": run.task,
        "parameters": {name: run.parameters[key] for key, name in SETTINGS.items() if key in run.parameters},
        "numbers": row,
        "boots": json.loads(breakdown.boots(run).to_json(orient="records")),
        "notes": list(run.notes),
        "drawn": (folder / "autoscaling-combined.png").exists(),
    }


def published() -> list[Path]:
    """List the figures that were put into docs/."""
    return sorted(DOCS.glob("gpu-*.json"))


def publish(folder: Path, name: str) -> None:
    """Copy the figures and pictures of a folder into docs/, and write the page of all that is there."""
    shutil.copy(folder / "figures.json", DOCS / f"{name}.json")
    for picture in folder.glob("*.png"):
        shutil.copy(picture, DOCS / f"{name}-{picture.name}")
    results = DOCS / "gpu-results.md"
    by_hand, marker, _ = results.read_text(encoding="utf-8").partition(MADE_BELOW)
    results.write_text(f"{by_hand}{marker}\n{page(published())}", encoding="utf-8")


def page(files: Sequence[Path]) -> str:
    """Write a part for each file of figures."""
    parts = []
    for file in files:
        figures = json.loads(file.read_text(encoding="utf-8"))
        # Pictures lie beside the figures: in a folder of their own under their own names, in docs/ named for them.
        pictures = f"{file.stem}-" if file.parent == DOCS else ""
        parts += [
            about(figures),
            kernels(figures.get("kernels")),
            *(
                experiment(figures[name], f"{pictures}autoscaling-combined{name.removeprefix('experiment')}.png")
                for name in ("experiment", "experiment-mps")
                if name in figures
            ),
            *(report(figures[name], pictures) for name in ("cold-start", "naive", "samples") if name in figures),
            how_it_went(figures),
        ]
    return "\n\n".join(parts) + "\n" if parts else NOTHING_YET


def about(figures: Figures) -> str:
    """Say what machine it was, and when."""
    machine, packages = figures["machine"], figures["packages"]
    libraries = ", ".join(f"{name} {packages[name]}" for name in _LIBRARIES if name in packages)
    rows = [
        ("Card, driver, compute capability, memory", "; ".join(figures["cards"])),
        ("Date", figures["date"]),
        ("Revision", figures["revision"] or machine["Git revision"]),
        ("Libraries", libraries),
        ("Python", machine["Python"].partition(" (")[0]),
        *((name, machine[name]) for name in ("CPU", "Memory", "OS")),
    ]
    name = figures["cards"][0].split(",")[0] if figures["cards"] else "a GPU"
    return f"## On {name}, {figures['date']}\n\n" + table(("", ""), rows)


def kernels(found: Figures | None) -> str:
    """Show what benchmarks/gpu_kernels.py measured."""
    text = "### The kernels\n\n"
    if not found:
        return text + _missing()
    columns = (
        "N",
        "kernel",
        "GPU only, ms",
        "GFLOP/s",
        "of cuBLAS",
        "call, pageable, ms",
        "call, pinned, ms",
        "product",
    )
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
        + f"Medians of {found['rounds']} rounds that alternate. GPU only: on float32 matrices that are there already. "
        f"A call is all\nthat a worker does, with float64 matrices in shared memory. {cublas}\n\n"
        + table(columns, rows)
        + "\n\nTo get ready in one process, one after the other, with nothing compiled before: "
        + "; ".join(prepared)
        + "."
    )


def experiment(found: Figures, picture: str) -> str:
    """Show the numbers of a run, its boots and its picture."""
    settings = ", ".join(f"{key} {value}" for key, value in found["parameters"].items())
    text = f"### A short experiment: {settings.partition(', ')[0]}\n\n{settings.partition(', ')[2]}.\n\n"
    known = {key: value for key, value in found["numbers"].items() if value is not None}
    text += table(("number", "value"), [(key, _number(value)) for key, value in known.items()])
    for boot in found["boots"]:
        phases = ", ".join(
            f"{key} {_number(value)}" for key, value in boot.items() if key not in {"gpu", "elapsed", "worker"}
        )
        text += f"\n\nThe boot of GPU {boot['gpu']}, its slowest worker, in seconds: {phases}."
    return text + (f"\n\n![The paper's figure]({picture})" if found["drawn"] else "")


def report(found: Figures, pictures: str = "") -> str:
    """Show what a benchmark program has reported; its picture's name begins with `pictures`."""
    parts = [f"### {found['title']}", found["about"].strip()]
    if found["quick"]:
        parts.append("*A quick run, of one round.*")
    rows = [
        (one["name"], one["unit"], *map(_number, (one["value"], one["low"], one["high"])), one["rounds"])
        for one in found["results"]
    ]
    parts.append(table(("what", "unit", "median", "lowest", "highest", "rounds"), rows))
    for one in found["tables"]:
        parts += [f"{one['title']}:", table(one["columns"], [[*map(_number, row)] for row in one["rows"]])]
    parts += found["notes"]
    if found["figure"]:
        parts.append(f"![{found['title']}]({pictures}{found['figure']})")
    return "\n\n".join(parts)


def how_it_went(figures: Figures) -> str:
    """Say how each step and each test ended."""
    steps = [
        (one["name"], one["seconds"], one["limit_s"], "well" if not one["code"] else f"**code {one['code']}**")
        for one in figures["steps"]
    ]
    results = [one["result"] for one in figures["tests"]]
    counts = ", ".join(f"{results.count(kind)} {kind}" for kind in dict.fromkeys(results)) or NOTHING
    failed = [
        f"- {one['test']}: **{one['result']}**" for one in figures["tests"] if one["result"] in {"failed", "error"}
    ]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
