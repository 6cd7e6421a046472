"""Where Numba keeps what it compiles for a kernel or client module, and that this is a help and never a condition.

Each state of a module's sources, its own imports included, has a folder of its own: Numba looks at the file of a
compiled function only, and would go on with what it has made of a helper that was edited since. Nor is it the folder
that the same file as a script has: Numba notes the module's name, and the script's is `__main__`.

The folder lies in `.kernel_cache` of the project, or where NUMBA_CACHE_DIR says. If nothing can be written there, it
lies in the temporary folder until this server ends; failing that, too, what is compiled is not kept.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from kaas import ROOT, once
from kaas.errors import ProcessFailed
from kaas.once import Once

_VARIABLE = "NUMBA_CACHE_DIR"
_GIVEN = os.environ.get(_VARIABLE)  # by the user: it is set here, too, later
_CACHING = ("numba.core.caching", "numba.cuda.core.caching")  # numba-cuda has one of its own

_warn_once = Once()
_spare: Path | None = None
_folder: Path | None = None


def find_room() -> None:
    """Make, in a fork server, a folder for all its children if there is none that lasts; it goes when this one ends."""
    global _spare  # noqa: PLW0603 - what is forked from here is handed nothing else
    if not why_unwritable(_root()):
        return
    from kaas.leftovers import Scratch  # noqa: PLC0415 - hardly any run needs it, and what it imports takes its time

    with contextlib.suppress(ProcessFailed):
        scratch = Scratch("compiled-")
        atexit.register(_close, scratch.close, os.getpid())
        _spare = None if why_unwritable(scratch.folder) else scratch.folder


def keep_apart(path: Path, name: str, sources: Iterable[Path]) -> None:
    """Have this process, and those that it starts, keep what Numba compiles for a module in a folder of its own.

    Call it before the module is run, and after all of Numba that it imports.

    Args:
        path: the module's file.
        name: what it is imported as.
        sources: all files whose change makes what was compiled worthless.
    """
    global _folder  # noqa: PLW0603 - a process is one kernel's, or one client's
    digest = hashlib.sha256(name.encode())
    for source in sources:
        with contextlib.suppress(OSError):  # it is gone since: to run the module tells
            digest.update(hashlib.sha256(source.read_bytes()).digest())
    place = Path(f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}", digest.hexdigest()[:16])
    _folder = _root() / place
    known = _folder.is_dir()
    if why := why_unwritable(_folder):
        if _spare is not None:
            _folder = _spare / place
        where = "it is, in the temporary folder, until the end" if _spare is not None else "each process compiles"
        _warn_once(f"compiled code cannot be kept in {_root()} ({why}): {where}")
    elif not known:
        for old in set(_folder.parent.iterdir()) - {_folder}:
            shutil.rmtree(old, ignore_errors=True)
    os.environ[_VARIABLE] = str(_folder)
    for caching in filter(None, map(sys.modules.get, _CACHING)):
        _adapt(caching, _folder)


def initialise_numba() -> None:
    """Compile and call something trivial: what Numba then sets up or imports, every worker would have to otherwise.

    Compiling sets up the compiler; the call with an array imports numpy.ma, which takes longer than to load a kernel.
    """
    import numba  # noqa: PLC0415 - only where a kernel needs it
    import numpy as np  # noqa: PLC0415

    numba.njit("void(float64[:,::1])")(lambda matrix: None)(np.empty((1, 1)))


def drop_invalid(error: Exception) -> bool:
    """Forget what was kept of the module loaded here if CUDA says that it is no machine code; tell if so."""
    if "INVALID_IMAGE" not in str(error) or _folder is None:
        return False
    shutil.rmtree(_folder, ignore_errors=True)
    return True


def why_unwritable(folder: Path) -> str:
    """Make a folder and write a byte into it; say why this fails, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")  # a full disk takes the file's name, but not this
    except OSError as error:
        return error.strerror or str(error)
    return ""


def is_library(file: Path) -> bool:
    """Tell whether a file was installed, and so is edited by nobody."""
    return bool({"site-packages", "dist-packages"} & set(file.parts))


def _adapt(caching: ModuleType, folder: Path) -> None:
    """Have one of Numba's caches use the folder as it is, and fail at nothing."""
    caching.config.CACHE_DIR = str(folder)  # it has read the environment when it was imported
    locators = caching.CacheImpl._locator_classes
    of_variable: Any = locators[0]
    if of_variable.__name__ == "_Kept":
        return

    class _Kept(of_variable):  # type: ignore[misc]  # Numba has no types
        """Left to itself, Numba takes another folder than one without permission to write, or gives up."""

        @classmethod
        def from_function(cls, function: Any, file: str) -> Any:
            if not Path(file).exists():
                return None
            kept = cls(function, file)
            if is_library(Path(file)):  # what it has compiled stays good when the module is edited
                path = Path(kept._cache_path)
                kept._cache_path = str(path.parents[2] / "libraries" / path.name)
            return kept

    locators.insert(0, _Kept)
    caching.Cache._guard_against_spurious_io_errors = _forgive


@contextlib.contextmanager
def _forgive(cache: Any) -> Iterator[None]:
    """Go on without what cannot be read, and without keeping what cannot be written: Numba compiles then."""
    try:
        yield
    except OSError as error:
        _warn_once(f"compiled code cannot be kept in {cache.cache_path} ({error.strerror or error})")
    except Exception as error:
        # Only unpickling says that it is damaged. What else goes wrong, in a library that lacks something, does not.
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.name in ("_load_index", "_load_data") for frame in frames):
            raise
        once.say(f"compiled code in {cache.cache_path} was damaged, and is compiled again")
        shutil.rmtree(cache.cache_path, ignore_errors=True)


def _root() -> Path:
    return Path(_GIVEN) / "loaded" if _GIVEN else ROOT / ".kernel_cache"


def _close(close: Callable[[], None], owner: int) -> None:
    if os.getpid() == owner:
        close()
