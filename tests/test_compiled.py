"""What Numba keeps of kernels: for the sources that it was made of, and never in the way."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ready_python import ReadyPython
from support import StartServer

from kaas import ROOT

LOAD = """
import pathlib, sys
from kaas import kernels
print(kernels.load(pathlib.Path(sys.argv[1]), "call").call(b"21").decode())
"""
# What it says: the result, and how often it had to compile for that.
LAZY, EAGER = "cache=True", '"float64(float64)", cache=True'
CALL = """
def call(payload):
    result = run(float(payload))
    return f"{result} {sum(run.stats.cache_misses.values())}".encode()
"""
KERNEL = """
from numba import njit
{imports}

@njit({options})
def run(value):
    return {result}
"""
HELPER = """
from numba import njit

@njit
def scaled(value):
    return value * {factor}
"""


def write(path: Path, text: str) -> Path:
    """Write a source; no two that are written to one path have the same time, by which Python knows a new one."""
    before = path.stat().st_mtime if path.exists() else 1e9
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (before + 10, before + 10))
    return path


def kernel(folder: Path, options: str, imports: str = "", result: str = "value * 2") -> Path:
    return write(folder / "scaling.py", KERNEL.format(imports=imports, options=options, result=result) + CALL)


class Loader:
    """Loads kernels, each in a process of its own."""

    def __init__(self, python: ReadyPython) -> None:
        self._python = python

    def __call__(self, path: Path, cache: Path, code: str = LOAD, library: Path | None = None) -> tuple[str, str]:
        """Load a kernel and call it; return what it says on stdout and stderr."""
        folders = (ROOT, *([] if library is None else [library]))
        done = self._python.run("-c", code, path, cwd=cache.parent, path=folders, NUMBA_CACHE_DIR=str(cache))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def load() -> Iterator[Loader]:
    # What takes most of a small kernel's time has been done before the fork.
    with ReadyPython('import numba; numba.njit("float64(float64)")(lambda value: value * 2)') as python:
        yield Loader(python)


def files(cache: Path, kind: str) -> list[Path]:
    return sorted(cache.rglob(f"scaling.*.{kind}"))


# For which sources


def test_an_edited_helper_means_a_fresh_compile_and_one_as_it_was_does_not(load: Loader, tmp_path: Path) -> None:
    folder, cache = tmp_path / "mine", tmp_path / "cache"
    imports = """
from beside import scaled as a
from package import scaled as b
from between import c
from namespace.part import scaled as d
def later():
    from late import scaled
    return scaled
e = later()
"""
    write(folder / "package" / "__init__.py", "from .part import scaled\n")
    write(folder / "between.py", "from remote import scaled as c\n")
    helpers = ["beside", "package/part", "remote", "namespace/part", "late"]
    for name in helpers:
        write(folder / f"{name}.py", HELPER.format(factor=2.0))
    path = kernel(folder, EAGER, imports, "a(b(c(d(e(value)))))")
    assert load(path, cache) == (f"{21.0 * 32} 1", "")
    assert load(path, cache) == (f"{21.0 * 32} 0", "")
    for number, name in enumerate(helpers, start=1):
        write(folder / f"{name}.py", HELPER.format(factor=4.0))
        assert load(path, cache) == (f"{21.0 * 32 * 2**number} 1", ""), name
    assert len(files(cache, "nbc")) == 1, "what nothing will read again is removed"


def test_what_a_library_has_compiled_stays_good_when_the_kernel_is_edited(load: Loader, tmp_path: Path) -> None:
    library = tmp_path / "site-packages"
    write(library / "a_library.py", KERNEL.format(imports="", options=EAGER, result="value * 2"))
    said = []
    for number in (1, 2):
        path = write(
            tmp_path / "mine" / "scaling.py", f"from numba import njit\nfrom a_library import run\n{CALL}# {number}"
        )
        said.append(load(path, tmp_path / "cache", library=library))
    assert said == [("42.0 1", ""), ("42.0 0", "")]


# No more than a help


@pytest.mark.parametrize("options", [LAZY, EAGER])
def test_where_nothing_can_be_written_a_kernel_is_compiled_all_the_same_and_one_line_says_so(
    load: Loader, tmp_path: Path, options: str
) -> None:
    (tmp_path / "cache").touch()  # root, whom no permission stops, cannot make a folder of it either
    said, warned = load(kernel(tmp_path / "mine", options), tmp_path / "cache")
    assert said == "42.0 1"
    assert warned.startswith(f"compiled code cannot be kept in {tmp_path / 'cache' / 'loaded'} (")
    assert len(warned.splitlines()) == 1
    assert not list((tmp_path / "mine").rglob("*.nb?")), "nor is it beside the file, where the script's is"


def test_a_servers_workers_share_a_folder_that_goes_with_it_where_none_can_last(
    start_server: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    (tmp_path / "tmp").mkdir()
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    path = kernel(tmp_path / "mine", EAGER)
    server = start_server(path, "--num-gpus", "1", "--max-req-per-gpu", "2", **environment)
    with server.connection() as kaas:
        said = [kaas.invoke(b"21").payload for _ in range(2)]
        assert {text.split()[0] for text in said} == {b"42.0"}
    assert len(files(tmp_path / "tmp", "nbc")) == 1
    assert server.stderr().count("compiled code cannot be kept") == 1
    assert server.stop() == 0
    assert not list((tmp_path / "tmp").iterdir())


# The disk fills up once the folder has been tried: a stand-in for one, as writing what was compiled meets it.
FULL = f"""
import builtins, errno, os
real = open
def on_a_full_disk(file, mode="r", *rest, **named):
    if ".nb" in str(file) and "w" in mode:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(file, mode, *rest, **named)
builtins.open = on_a_full_disk
{LOAD}"""


@pytest.mark.parametrize("options", [LAZY, EAGER])
def test_a_disk_that_is_full_keeps_no_kernel_from_being_called(load: Loader, tmp_path: Path, options: str) -> None:
    said, warned = load(kernel(tmp_path / "mine", options), tmp_path / "cache", FULL)
    assert said == "42.0 1"
    assert "No space left on device" in warned
    assert len(warned.splitlines()) == 1


def test_what_cannot_be_read_is_no_damage_and_is_not_deleted(load: Loader, tmp_path: Path) -> None:
    path, cache = kernel(tmp_path / "mine", LAZY), tmp_path / "cache"
    assert load(path, cache) == ("42.0 1", "")
    (index,), kept = files(cache, "nbi"), files(cache, "nbc")
    index.unlink()
    index.mkdir()  # neither read nor replaced, by root either
    said, warned = load(path, cache)
    assert said == "42.0 1"
    assert "Is a directory" in warned
    assert len(warned.splitlines()) == 1
    assert files(cache, "nbc") == kept


@pytest.mark.parametrize(("kind", "options"), [("nbi", LAZY), ("nbc", EAGER)])
def test_damaged_code_is_compiled_again_and_once(load: Loader, tmp_path: Path, kind: str, options: str) -> None:
    path, cache = kernel(tmp_path / "mine", options), tmp_path / "cache"
    load(path, cache)
    for file in files(cache, kind):
        file.write_bytes(b"\x80damaged")
    said, warned = load(path, cache)
    assert said == "42.0 1"
    assert len(warned.splitlines()) == 1
    assert "was damaged, and is compiled again" in warned
    assert load(path, cache) == ("42.0 0", "")


def test_machine_code_that_cuda_calls_invalid_is_dropped_and_nothing_else(load: Loader, tmp_path: Path) -> None:
    other, cache = (
        write(tmp_path / "other" / "scaling.py", KERNEL.format(imports="", options=EAGER, result="1.0") + CALL),
        tmp_path / "cache",
    )
    load(other, cache)
    kept = files(cache, "nbc")
    code = (
        LOAD
        + """
from kaas import compiled
for text in "CUDA_ERROR_UNKNOWN", "[200] Call to cuModuleLoadDataEx results in CUDA_ERROR_INVALID_IMAGE":
    print(compiled.drop_invalid(RuntimeError(text)))
"""
    )
    assert load(kernel(tmp_path / "mine", EAGER), cache, code) == ("42.0 1\nFalse\nTrue", "")
    assert files(cache, "nbc") == kept
