"""Find and load a kernel or client module by name or path, and check its contract.

A kernel is a Python file with `call(payload: bytes) -> bytes` and, if it likes, `prepare(phase)`, which a worker calls
before it is ready (what is done in a `with phase("context"):` is timed and logged under that name), and `close()`,
called when a worker ends. A client is one with
`run_client(arg) -> (outer_ms, inner_ms, setup_ms, cold_start)` and, if it likes, `prepare(arg, copy)` and `cleanup()`.
`check` reads the file without running it, so the server's parent can refuse a broken kernel and still never touch CUDA.
"""

import ast
import contextlib
import difflib
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from kaas import ROOT
from kaas.errors import ModuleError

KERNEL_FUNCTION = "call"
CLIENT_FUNCTION = "run_client"


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


def imports(path: Path) -> list[str]:
    """List the modules that a file imports at its top level, dotted; `from a import b` counts as `a.b` too."""
    return list(_imports(_parse(path)))


def load(path: Path, function: str) -> ModuleType:
    """Import a file as a module, whatever its name, and check that it has `function`.

    Its folder is on the path for its own imports, after everything else, so that it shadows nothing.

    Raises:
        ModuleError: it lacks the function.
        BaseException: whatever running the file raises.
    """
    # A name that no library has: a kernel in a file json.py must not become everybody's json.
    name = "kaas_module_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleError(f"{path} is not a Python file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _compiled_code_apart():
            spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise ModuleError(f"{path} has no function {function!r}: a {_role(function)} needs `def {function}(...)`")
    except BaseException:
        del sys.modules[name]
        raise
    return module


def drop_damaged_cache(path: Path, error: Exception) -> bool:
    """Delete what Numba has kept of a module loaded here, if `error` says that it is damaged; tell if so.

    What goes wrong on the way to it, in a library that lacks something, say, tells nothing of what is kept.
    """
    # Unpickling is no Python code: what it raises has the line that called it as the last.
    *_, last = traceback.extract_tb(error.__traceback__)
    unreadable = last.filename.endswith("caching.py") and not isinstance(error, OSError)
    if not unreadable and "INVALID_IMAGE" not in str(error):  # as CUDA calls machine code that is none
        return False
    for file in _cache_folder().rglob(f"{path.stem}.*.nb[ci]"):
        file.unlink(missing_ok=True)
    return True


def _cache_folder() -> Path:
    given = os.environ.get("NUMBA_CACHE_DIR")
    return Path(given) / "loaded" if given else ROOT / ".kernel_cache"


@contextlib.contextmanager
def _compiled_code_apart() -> Iterator[None]:
    """Have Numba keep what it compiles for a module loaded here apart from what it keeps for the same file as a script.

    It notes the module's name in its cache, and the script, whose name is `__main__`, would not find that module.
    """
    name = "NUMBA_CACHE_DIR"
    given = os.environ.get(name)
    os.environ[name] = folder = str(_cache_folder())
    config = sys.modules["numba"].config if "numba" in sys.modules else None
    if config is not None:  # it has read the environment when it was imported
        before, config.CACHE_DIR = config.CACHE_DIR, folder
    try:
        yield
    finally:
        if config is not None:
            config.CACHE_DIR = before
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given


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


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _role(function: str) -> str:
    return "kernel" if function == KERNEL_FUNCTION else "client"
