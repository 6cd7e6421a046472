"""DESIGN.md's "Layout": imports go one way, and what is pure stays pure."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import LIMIT

from kaas import ROOT, __version__

PACKAGE = ROOT / "kaas"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
BASH = sorted(ROOT.glob("*.sh"))
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
PURE = {"placement.py", "policy.py", "ramp.py", "shapes.py", "arrivals.py"}
MAY_IMPORT = {"server": {"pool", "cluster"}, "simulation": {"pool"}, "load": {"cluster"}, "monitor": {"cluster"}}
"""Of the rooms, beside their own."""
SHORT = {
    "kaas/pool/*.py": 250,
    "kaas/server/**/*.py": 250,
    "kaas/results.py": 299,
    "scripts/gpu_guard.py": 299,
    "scripts/preflight.py": 299,
}
"""Lines that a file may have which was two rooms once."""
IMPURE = {"time", "datetime", "asyncio", "socket", "threading", "multiprocessing", "os", "subprocess", "signal"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def about(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the import stands, dotted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)} has a relative import"
            assert node.module is not None
            for alias in node.names:
                # `from kaas import wire` imports kaas.wire; `from kaas.wire import Reply` a name of it.
                dotted = f"{node.module}.{alias.name}"
                yield dotted if is_ours(dotted) else node.module


def is_ours(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return dotted.startswith("kaas.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "kaas" and len(parts) > 1 and parts[1] in ROOMS else None


def own_room(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def top_rooms_of(path: Path) -> set[str]:
    """Of the rooms that a file imports, those that stand below no other that it imports."""
    rooms = rooms_of(path)
    return rooms - {below for room in rooms for below in MAY_IMPORT.get(room, ())}


def rooms_of(path: Path) -> set[str]:
    return {room for dotted in imports_of(path) if (room := room_of(dotted)) is not None}


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                        yield member


def is_setter(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list)


def test_there_is_something_to_walk() -> None:
    assert {"server", "pool", "cluster", "simulation", "load", "monitor", "analysis"} == ROOMS
    assert {relative(path).removeprefix("kaas/") for path in SOURCES} >= {"wire.py", *PURE}
    assert len(list(imports_of(PACKAGE / "server" / "tcp.py"))) > 3


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_room_imports_no_other_but_the_pool_and_what_lies_directly_under_kaas_imports_none(path: Path) -> None:
    room = own_room(path)
    assert rooms_of(path) <= ({room, *MAY_IMPORT.get(room, ())} if room else set())


@pytest.mark.parametrize(("pattern", "most"), SHORT.items())
def test_what_was_made_short_stays_short(pattern: str, most: int) -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob(pattern)}
    assert lines
    assert {path: number for path, number in lines.items() if number > most} == {}


@pytest.mark.parametrize("path", sorted((PACKAGE / "pool").glob("*.py")), ids=relative)
def test_the_pool_knows_no_clock_socket_or_process_but_what_it_is_given(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {dotted.partition(".")[0] for dotted in imports_of(path)} & (IMPURE - {"asyncio"})
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not named & {"get_running_loop", "get_event_loop", "create_task", "open_connection", "create_connection"}


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_a_script_imports_one_room_at_most_and_the_analysis_is_the_notebooks(path: Path) -> None:
    assert len(top_rooms_of(path)) <= 1
    assert "analysis" not in rooms_of(path)


def test_nothing_imports_a_script() -> None:
    names = {path.stem for path in SCRIPTS}
    for path in (*SOURCES, *SCRIPTS):
        assert not names & {dotted.partition(".")[0] for dotted in imports_of(path)}, relative(path)


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_is_pure_imports_no_clock_lock_socket_or_process(name: str) -> None:
    imported = set(imports_of(PACKAGE / name))
    assert not {dotted.partition(".")[0] for dotted in imported} & IMPURE
    pure = {f"kaas.{other.removesuffix('.py')}" for other in PURE}
    assert {dotted for dotted in imported if dotted.startswith("kaas")} <= {"kaas.errors", *pure}


@pytest.mark.parametrize("path", [path for path in SOURCES if "Pure" in about(path)], ids=relative)
def test_what_says_that_it_is_pure_imports_none_of_these_either(path: Path) -> None:
    assert not {dotted.partition(".")[0] for dotted in imports_of(path)} & IMPURE


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "gpu.py"], ids=relative)
def test_only_what_is_for_kernels_imports_cuda_and_nothing_else_imports_that(path: Path) -> None:
    for dotted in imports_of(path):
        assert not dotted.startswith("kaas.gpu")
        assert dotted.partition(".")[0] not in {"cuda", "numba_cuda", "cupy"}
        assert not dotted.startswith("numba.cuda")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "numba":
            assert "cuda" not in {alias.name for alias in node.names}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module itself"
    assert [node.name for node in public(tree) if not (ast.get_docstring(node) or is_setter(node))] == []


@pytest.mark.parametrize(
    "name",
    ["gpu-server-scaling.py", "load.py", "gpu-monitor.py", "simulate.py", "sortserverlogs.py", "cuda-matmul-client.py"],
)
def test_a_script_explains_itself_and_imports_little_for_it(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / name), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("KAAS_")},
    )
    said = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in said if line.startswith("import time:")}
    assert (done.returncode, len(said)) == (0, sum(line.startswith("import time:") for line in said)), done.stderr
    assert "kaas" in imported
    assert not imported & {"asyncio", "rich", "importlib.metadata"}, "to start takes several times as long"
    assert "usage:" in done.stdout
    assert name in done.stdout


# The kernels for GPUs do as the others: to import numba.cuda takes a second each.
@pytest.mark.parametrize(
    "path",
    [*(path for path in SCRIPTS if path.name not in {"cuda-matmul-fn.py", "cuda-matmul-fast-fn.py"}), *BASH],
    ids=relative,
)
def test_a_program_tells_its_version(path: Path) -> None:
    command = [sys.executable, str(path)] if path.suffix == ".py" else ["bash", str(path)]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path.name} {__version__}\n", "")


def test_there_is_one_version() -> None:
    told = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")]
    assert f'\nversion = "{__version__}"\n' in told[0]
    assert f"\nversion: {__version__}\n" in told[1]
    assert f"\n## {__version__}" in told[2]


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "benchmarks/fuzz.py", ROOT / "benchmarks/soak.py"], ids=relative)
def test_a_script_without_its_libraries_names_them_and_says_what_to_run(path: Path) -> None:
    done = subprocess.run([sys.executable, "-S", str(path)], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "lacks numpy, psutil, rich" in done.stderr
    assert "run ./scripts/setup" in done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_a_script_can_be_started_by_its_name(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
    assert os.access(path, os.X_OK)
