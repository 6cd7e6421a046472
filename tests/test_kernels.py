import importlib
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaas import ROOT, kernels
from kaas.errors import ModuleError
from kaas.once import Once

ECHO = "def call(payload):\n    return payload\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the user happens to be; what a test imports from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def kernel(folder: Path, source: str, name: str = "kernel.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def refusal(path: Path, function: str = "call") -> str:
    with pytest.raises(ModuleError) as caught:
        kernels.check(path, function)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) == 1
    return text


# Finding a file


@pytest.mark.parametrize("name", ["echo", "echo.py", "./echo", "./echo.py", "deep/echo", "deep/../deep/echo.py"])
def test_a_kernel_is_found_from_here_with_or_without_py(folder: Path, name: str) -> None:
    kernel(folder, ECHO, "echo.py")
    kernel(folder, ECHO, "deep/echo.py")
    assert kernels.find(name) == (folder / name).resolve().with_suffix(".py")


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_a_kernel_is_found_by_its_whole_path(folder: Path, suffix: str) -> None:
    path = kernel(folder, ECHO, "deep/my-kernel.py")
    assert kernels.find(f"{folder}/deep/my-kernel{suffix}") == path.resolve()


@pytest.mark.parametrize("name", ["cuda-matmul-cpu", "cuda-matmul-cpu.py", "./cuda-matmul-cpu"])
def test_a_kernel_of_the_project_is_found_from_anywhere(folder: Path, name: str) -> None:
    assert kernels.find(name) == ROOT / "cuda-matmul-cpu.py"


def test_a_kernel_here_comes_before_the_projects(folder: Path) -> None:
    path = kernel(folder, ECHO, "cuda-matmul-cpu.py")
    assert kernels.find("cuda-matmul-cpu") == path.resolve()


def test_a_module_is_found_by_its_dotted_name(folder: Path) -> None:
    assert kernels.find("kaas.wire") == ROOT / "kaas" / "wire.py"
    assert kernels.find("json.decoder").name == "decoder.py"


def test_a_name_that_is_nearly_one_of_ours_is_answered_with_that_one(folder: Path) -> None:
    with pytest.raises(ModuleError, match=r"no module 'cuda-matmul-cpuu': did you mean cuda-matmul-cpu\?"):
        kernels.find("cuda-matmul-cpuu")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "quite_unknown",
        "no/such/file.py",
        "no.such.module",
        "sys",  # there, but no file
        "a\0b",
        "..",
        "/",
        "-",
        pytest.param("x" * 5000, id="longer than a file's name can be"),
    ],
)
def test_an_unknown_name_is_answered_with_where_was_looked(folder: Path, name: str) -> None:
    with pytest.raises(ModuleError, match=re.escape(f"no module {name!r}: give a path, or a file's name in {folder}")):
        kernels.find(name)


# Checking it without running it


def test_a_sound_kernel_and_a_sound_client_are_accepted(folder: Path) -> None:
    kernels.check(kernel(folder, ECHO), "call")
    kernels.check(kernel(folder, "def run_client(arg): ..."), "run_client")


def test_the_projects_kernels_and_client_are_accepted() -> None:
    for name in ("fn", "cpu", "blas"):
        kernels.check(ROOT / f"cuda-matmul-{name}.py", kernels.KERNEL_FUNCTION)
    kernels.check(ROOT / "cuda-matmul-client.py", kernels.CLIENT_FUNCTION)


def test_a_syntax_error_is_named_with_its_line(folder: Path) -> None:
    assert ", line 3: " in refusal(kernel(folder, "import os\n\ndef call(payload)\n    return payload\n"))


@pytest.mark.parametrize("content", [b"def call(p):\n    return b'\0'\n", b"def call(p):\n    return '\xff'\n"])
def test_a_file_that_is_no_text_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "kernel.py"
    path.write_bytes(content)
    refusal(path)


def test_a_file_that_is_gone_is_refused(folder: Path) -> None:
    assert "cannot be read" in refusal(folder / "kernel.py")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def cal(payload): ...",
        "class Kernel:\n    def call(self, payload): ...\n",
        "def other():\n    def call(payload): ...\n",
        "print('call')",
    ],
)
def test_a_missing_function_is_named_and_what_the_contract_asks_for(folder: Path, source: str) -> None:
    path = kernel(folder, source)
    assert "has no function 'call': a kernel needs `def call(...)`" in refusal(path)
    assert "has no function 'run_client': a client needs `def run_client(...)`" in refusal(path, "run_client")


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nif sys.platform:\n    def call(payload): ...\nelse:\n    def call(payload): ...\n",
        "try:\n    import cupy\nexcept ImportError:\n    def call(payload): ...\n",
        "from json import loads as call",
        "from json import loads\ncall = loads\n",
        "call: object = bytes",
        "call = other = bytes",
        "def decorate(function): return function\n@decorate\ndef call(payload): ...\n",
    ],
)
def test_a_function_may_come_about_in_any_usual_way(folder: Path, source: str) -> None:
    kernels.check(kernel(folder, source), "call")


@pytest.mark.parametrize(
    "line", ["import not_installed", "import not_installed.part as p", "from not_installed.part import name"]
)
def test_a_missing_library_is_named_with_the_python_that_lacks_it(folder: Path, line: str) -> None:
    text = refusal(kernel(folder, f"import json\n{line}\n{ECHO}"))
    assert f"imports 'not_installed', which is not installed for {sys.executable}" in text


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import not_installed\nexcept ImportError:\n    not_installed = None\n",
        "def later():\n    import not_installed\n",
        "import typing\nif typing.TYPE_CHECKING:\n    import not_installed\n",
    ],
)
def test_an_import_that_may_well_be_meant_to_fail_is_allowed(folder: Path, source: str) -> None:
    kernels.check(kernel(folder, source + ECHO), "call")


@pytest.mark.parametrize("line", ["import sibling", "from package import part", "import package.part"])
def test_an_import_of_what_lies_beside_the_kernel_is_allowed(folder: Path, line: str) -> None:
    kernel(folder, "", "deep/sibling.py")
    kernel(folder, "", "deep/package/part.py")
    kernels.check(kernel(folder, f"{line}\n{ECHO}", "deep/kernel.py"), "call")


def test_checking_never_runs_the_file(folder: Path) -> None:
    kernels.check(kernel(folder, ECHO + "raise SystemExit('it ran')\n"), "call")


def test_imports_are_listed_dotted_and_only_those_at_the_top(folder: Path) -> None:
    path = kernel(folder, "import a.b\nfrom c import d\nfrom . import e\ntry:\n    import f\nexcept ImportError: ...\n")
    assert kernels.imports(path) == ["a.b", "c", "c.d"]


# Loading it


def test_a_file_whose_name_has_dashes_is_loaded(folder: Path) -> None:
    module = kernels.load(kernel(folder, ECHO, "my-own kernel.py"), "call")
    assert module.call(b"payload") == b"payload"


def test_a_kernel_can_import_what_lies_beside_it(folder: Path) -> None:
    kernel(folder, "ANSWER = b'from the sibling'\n", "deep/sibling_of_a_kernel.py")
    source = "from sibling_of_a_kernel import ANSWER\ndef call(payload):\n    return ANSWER\n"
    module = kernels.load(kernel(folder, source, "deep/my-kernel.py"), "call")
    assert module.call(b"") == b"from the sibling"


def test_what_lies_beside_a_kernel_shadows_no_library(folder: Path) -> None:
    kernel(folder, "raise RuntimeError('this is not the library')\n", "colorsys.py")
    sys.modules.pop("colorsys", None)
    kernels.load(kernel(folder, "import colorsys\n" + ECHO), "call")


def test_a_kernel_named_like_a_library_does_not_take_its_place(folder: Path) -> None:
    path = kernel(folder, ECHO, "colorsys.py")
    sys.modules.pop("colorsys", None)
    assert kernels.load(path, "call").call(b"payload") == b"payload"
    assert hasattr(importlib.import_module("colorsys"), "rgb_to_hsv")


@pytest.mark.parametrize("name", ["a_kernel_of_mine", "a-kernel-of-mine", "a kernel of mine"])
def test_a_kernel_bears_its_own_name_by_which_other_processes_find_its_classes(folder: Path, name: str) -> None:
    source = ECHO + "class Task:\n    pass\n"
    module = kernels.load(kernel(folder, source, f"deep/{name}.py"), "call")
    pickled = pickle.dumps(module.Task())
    del sys.modules[name]  # as where only the path is handed on
    assert type(pickle.loads(pickled)).__module__ == name


@pytest.mark.parametrize("name", ["cuda-matmul-cpu", "cuda-matmul-client", "simulate"])
def test_a_kernel_named_like_a_file_of_the_project_bears_its_own_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(folder, "raise RuntimeError('this is not the library')\n", "deep/colorsys.py")
    for imported in ("colorsys", name):  # by another test
        monkeypatch.delitem(sys.modules, imported, raising=False)
    module = kernels.load(kernel(folder, ECHO + "class Task:\n    pass\n", f"deep/{name}.py"), "call")
    pickled = pickle.dumps(module.Task())
    del sys.modules[name]  # as in a process that is handed nothing but the path
    task = type(pickle.loads(pickled))
    assert task.__module__ == name
    assert sys.modules[name].__file__ == str(folder / "deep" / f"{name}.py")
    assert hasattr(importlib.import_module("colorsys"), "rgb_to_hsv"), "beside the kernel lies no library"


@pytest.mark.parametrize("name", ["json", "colorsys", "numpy", "__main__", "sys", "a.b", "kaas"])
def test_a_kernel_whose_name_is_taken_or_none_bears_another(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "_warn_of_name", Once())
    before = sys.modules.get(name)
    path = kernel(folder, ECHO, f"deep/{name}.py")
    modules = [kernels.load(path, "call") for _ in range(2)]
    assert all(module.__name__.startswith("kaas_module_") for module in modules)
    assert sys.modules.get(name) is before
    (said,) = capsys.readouterr().err.splitlines()  # once
    assert re.match(rf"{re.escape(str(path))}: processes that it starts cannot import it, for that is ", said)


def test_two_kernels_of_one_name_are_two_modules(folder: Path) -> None:
    first = kernels.load(kernel(folder, "def call(payload): return b'1'", "one/kernel.py"), "call")
    second = kernels.load(kernel(folder, "def call(payload): return b'2'", "two/kernel.py"), "call")
    assert (first.call(b""), second.call(b"")) == (b"1", b"2")


@pytest.mark.parametrize("source", ["", "call = 5"])
def test_a_file_without_a_function_to_call_is_not_loaded(folder: Path, source: str) -> None:
    with pytest.raises(ModuleError, match="has no function 'call'"):
        kernels.load(kernel(folder, source), "call")


def test_a_file_that_is_no_python_file_is_not_loaded(folder: Path) -> None:
    with pytest.raises(ModuleError, match="not a Python file"):
        kernels.load(kernel(folder, ECHO, "kernel.txt"), "call")


@pytest.mark.parametrize(
    ("source", "raised"), [("1 / 0", ZeroDivisionError), ("raise SystemExit('no GPU')", SystemExit)]
)
def test_whatever_running_the_file_raises_comes_through(folder: Path, source: str, raised: type[BaseException]) -> None:
    with pytest.raises(raised):
        kernels.load(kernel(folder, source), "call")
