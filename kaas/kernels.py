"""Find and load a kernel or client module by name or path, and check its contract.

A kernel is a Python file with `call(payload: bytes) -> bytes` and, if it likes, `prepare(phase)`, which a worker calls
before it is ready (what is done in a `with phase("context"):` is timed and logged under that name), and `close()`,
called when a worker ends. A client is one with
`run_client(arg) -> (outer_ms, inner_ms, setup_ms, cold_start)` and, if it likes, `prepare(arg, copy)`, `cleanup()`, and
`check(arg)`, which a script calls before it begins.
`check` reads the file without running it, so the server's parent can refuse a broken kernel and still never touch CUDA.
"""

import ast
import contextlib
import difflib
import functools
import importlib.machinery
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from kaas import ROOT, compiled
from kaas.errors import KaasError, ModuleError, UsageError
from kaas.once import Once

KERNEL_FUNCTION = "call"
CLIENT_FUNCTION = "run_client"

_warn_of_name = Once()
_MOST_SOURCES = 100
"""Files read at each load to see whether what was compiled is still good: someone's own are fewer."""


def find(name: str) -> Path:
    """Find a module's file by a path or a module's name, with or without `.py`, here or in the project's folder.

    Raises:
        ModuleError: there is none, or it cannot be read.
    """
    for path in _candidates(name):
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file():
                return path.resolve()
    known = [path.stem for path in ROOT.glob("*-*.py")]
    alike = difflib.get_close_matches(name, known, n=1)
    places = " or ".join(dict.fromkeys(map(str, (Path.cwd(), ROOT))))
    hint = f"did you mean {alike[0]}?" if alike else f"give a path, or a file's name in {places}"
    raise ModuleError(f"no module {name!r}: {hint}")


def _candidates(name: str) -> Iterator[Path]:
    for folder in (Path.cwd(), ROOT):
        yield folder / name
        yield folder / f"{name}.py"
    package, *parts = name.split(".")
    if package.isidentifier() and all(part.isidentifier() for part in parts):
        # Looked for without importing the package, which may be one that a process should not import before a fork.
        spec = _spec(package)
        for folder in map(Path, spec.submodule_search_locations or ()) if spec is not None else ():
            yield folder.joinpath(*parts).with_suffix(".py") if parts else folder / "__init__.py"
        if spec is not None and spec.origin is not None and not parts:
            yield Path(spec.origin)
        yield ROOT.joinpath(package, *parts).with_suffix(".py")


def check(path: Path, function: str) -> None:
    """Check without running it that a file is Python, has `function`, and imports only what is installed.

    Raises:
        ModuleError: it does not.
    """
    tree = _parse(path)
    if not {function, "*"} & set(_top_level_names(tree)):
        raise ModuleError(f"{path} has no function {function!r}: a {_role(function)} needs `def {function}(...)`")
    for name in _imports(tree):
        package = name.partition(".")[0]
        beside = path.parent / package
        if _spec(package) is None and not (beside.is_dir() or beside.with_suffix(".py").is_file()):
            raise ModuleError(f"{path} imports {package!r}, which is not installed for {sys.executable}")


def check_input(path: Path, text: str) -> None:
    """Have a client module's own `def check(arg)`, if it has one, look at what its clients will be handed.

    Raises:
        UsageError: it finds something wrong, or cannot look.
    """
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in _parse(path).body):
        return
    doing = "cannot be imported"
    try:
        module = load(path, CLIENT_FUNCTION)
        doing = f"check({text!r})"
        module.check(text)
    except Exception as error:
        why = str(error) if isinstance(error, KaasError) else f"{path}: {doing}: {type(error).__name__}: {error}"
        raise UsageError(" ".join(why.split())) from None


def imports(path: Path) -> list[str]:
    """List the modules that a file imports at its top level, dotted; `from a import b` counts as `a.b` too."""
    return list(_imports(_parse(path)))


def load(path: Path, function: str) -> ModuleType:
    """Import a file as a module, whatever its name, and check that it has `function`.

    Its folder is on the path for its own imports, after everything else, so that it shadows nothing; but if it is named
    like a file of the project, the project's folder comes after it. Processes that the module starts find it there by
    its name, too, whichever way they are started, unless a library has that name: then one line says so.

    Raises:
        ModuleError: it lacks the function.
        BaseException: whatever running the file raises.
    """
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleError(f"{path} is not a Python file")
    _keep_compiled_code(path, name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise ModuleError(f"{path} has no function {function!r}: a {_role(function)} needs `def {function}(...)`")
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def survey(path: Path) -> None:
    """Find out in a fork server what a file imports, at whatever remove, so that no process forked from it has to."""
    _sources(path)


def _module_name(path: Path) -> str:
    """Give a file its own name, dashes and all, if processes that are started from here find it by that; else another.

    A kernel in a file json.py must not become everybody's json, nor is one in a.b.py the module b of a package. Yet one
    that is named like a file of the project, a copy of it say, is no less itself.
    """
    name, found = path.stem, _spec(path.stem)
    if _file_of(found) == path.resolve():
        return name
    if name not in sys.modules and (file := _file_of(found)) is not None and file.parent == ROOT:
        others = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
        if _file_of(importlib.machinery.PathFinder.find_spec(name, others)) == path.resolve():
            sys.path[:] = [*others, str(ROOT)]  # which processes that are started from here have, too
            return name
    why = "that is no module's name" if found is None else f"that is the name of {found.origin or 'another'}"
    _warn_of_name(
        f"{path}: processes that it starts cannot import it, for {why}: if it starts any, give it another name"
    )
    return "kaas_module_" + re.sub(r"\W", "_", name)


def _file_of(spec: importlib.machinery.ModuleSpec | None) -> Path | None:
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()


def _keep_compiled_code(path: Path, name: str) -> None:
    sources, names = _sources(path)
    if "numba" in names:
        for library in {"numba", "numba.cuda"} & names:
            with contextlib.suppress(Exception):  # running the file tells
                importlib.import_module(library)
        compiled.keep_apart(path, name, sources)


def _sources(path: Path) -> tuple[list[Path], set[str]]:
    """List a file and all that it imports, at whatever remove, that belongs to no library; and name all that these do.

    Those nearest to the file come first, up to `_MOST_SOURCES`.
    """
    packages, names, order = {path: ""}, set[str](), [path]
    for source in order:  # which grows
        with contextlib.suppress(OSError, SyntaxError, ValueError):  # it does not compile: running it tells
            for name in _all_imports(source.read_bytes(), packages[source]) if source.suffix == ".py" else ():
                names.add(name)
                for file, package in _local_files(name):
                    if file not in packages and len(order) < _MOST_SOURCES:
                        packages[file] = package
                        order.append(file)
    return order, names


def _local_files(name: str) -> Iterator[tuple[Path, str]]:
    """Find the files that are run to import a module by its dotted name, unless it is a library's."""
    parts, folders = name.split("."), None
    if parts[0] in sys.stdlib_module_names or parts[0] == "kaas":  # nothing in kaas is compiled
        return
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        spec = importlib.machinery.PathFinder.find_spec(full, folders)
        if spec is None:
            return
        folders = spec.submodule_search_locations
        if spec.origin is not None:
            file = Path(spec.origin)
            if compiled.is_library(file):
                return
            yield file, full if folders is not None else full.rpartition(".")[0]
        if folders is None:
            return


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else path
        raise ModuleError(f"{where}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise ModuleError(f"{path} cannot be read: {error}") from None


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        for part in ast.walk(node) if isinstance(node, ast.If | ast.Try | ast.With) else (node,):
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                yield part.name
            elif isinstance(part, ast.Import | ast.ImportFrom):
                yield from (alias.asname or alias.name for alias in part.names)
            elif isinstance(part, ast.Assign | ast.AnnAssign):
                targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def _imports(tree: ast.Module) -> Iterator[str]:
    """Only what stands at the top: an import inside a function or a `try` may well be meant to fail."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.lru_cache(_MOST_SOURCES)
def _all_imports(source: bytes, package: str) -> tuple[str, ...]:
    """Wherever they stand, dotted, in a module that is in `package`; `from a import b` counts as `a` and `a.b`.

    Known in the fork server (see `survey`), it is known in every worker: to parse takes longer than to read.
    """
    names: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to run it warns
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the package: running it tells
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names |= dict.fromkeys((base, *(f"{base}.{alias.name}" for alias in node.names)))
    return tuple(names)


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _role(function: str) -> str:
    return "kernel" if function == KERNEL_FUNCTION else "client"
