"""scripts/setup by itself, with a stand-in of pip where nothing needs the real one."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import LIMIT, eventually

from kaas import ROOT, leftovers

SETS = sorted(ROOT.glob("requirements*.txt"))


class BareProject:
    """A project with scripts/setup alone; what it is told and says.

    The Python of its environment is this one, but what pip would install it writes to a file instead, and waits for
    the file `gate`, if there is one named `gated`; that there is a pip it says at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / ".venv" / "bin"
        (folder / "scripts").mkdir(parents=True)
        for name in ("setup", "pythons.sh", "wheels.py"):
            shutil.copy(ROOT / "scripts" / name, folder / "scripts")
        for file in SETS:
            shutil.copy(file, folder)
        self.bin.mkdir(parents=True)
        python = self.bin / "python"
        python.write_text(
            '#!/bin/sh\ncase "$*" in *"pip --version"*) exit ;; *"pip install"*) ;;'
            f' *) exec "{sys.executable}" "$@" ;; esac\n'
            f'cd "{folder}"; echo "$@" >>pip-calls; env >pip-environment\n'
            "[ ! -e gated ] || until [ -e gate ]; do sleep 0.1; done\n"
        )
        python.chmod(0o755)
        self.nvidia_smi = folder / "bin"
        self.nvidia_smi.mkdir()
        stand_in = self.nvidia_smi / "nvidia-smi"
        stand_in.write_text(f'#!/bin/sh\nexec cat "{folder}/nvidia-smi-answer"\n')
        stand_in.chmod(0o755)

    def start(self, *options: str, script: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("KAAS_", "PYTHON"))}
        return subprocess.Popen(
            [script or self.folder / "scripts" / "setup", *options],
            env={**clean, "PATH": f"{self.nvidia_smi}:{os.environ['PATH']}", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # its group is what a terminal's Ctrl-C goes to
        )

    def setup(self, *options: str, script: Path | None = None, **environment: str) -> tuple[int, str, str]:
        """Run it; return exit code, stdout and stderr."""
        process = self.start(*options, script=script, **environment)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    def installed(self, *options: str, **environment: str) -> list[str]:
        """Run it, see that it went well, and return which sets pip was told to install."""
        calls = self.folder / "pip-calls"
        calls.unlink(missing_ok=True)
        code, _, err = self.setup(*options, script=None, **environment)
        assert (code, err) == (0, "")
        return [Path(line.split()[-1]).name for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture
def bare(tmp_path: Path) -> BareProject:
    return BareProject(tmp_path / "project")


# What is installed


@pytest.mark.parametrize(
    ("answer", "requirements"),
    [
        ("580.65.06, 9.0\n", "requirements-gpu.txt"),
        ("580.65.06, 7.5\n", "requirements-gpu.txt"),
        ("610.10, 12.0\n", "requirements-gpu.txt"),
        ("580.65.06, 7.0\n", "requirements-gpu-cu12.txt"),  # a V100
        ("575.57.08, 9.0\n", "requirements-gpu-cu12.txt"),  # a driver before CUDA 13
        ("580.65.06, 9.0\n580.65.06, 7.0\n", "requirements-gpu-cu12.txt"),  # one of two is a V100
        ("580.65.06, [N/A]\n", "requirements-gpu-cu12.txt"),
    ],
)
def test_setup_installs_the_cuda_libraries_that_fit_the_gpus(bare: BareProject, answer: str, requirements: str) -> None:
    (bare.folder / "nvidia-smi-answer").write_text(answer)
    assert bare.installed("--gpu") == [requirements]


def test_setup_installs_ray_where_it_is_asked_for_below_what_gpus_need(bare: BareProject) -> None:
    assert bare.installed("--ray") == ["requirements-ray.txt"]
    assert bare.installed("--dev", "--ray", "--gpu-cu12") == [
        "requirements-dev.txt",
        "requirements-ray.txt",
        "requirements-gpu-cu12.txt",
    ]


def test_setup_installs_what_is_asked_for_once_and_anew_after_the_other(bare: BareProject) -> None:
    dev, cu12, cu13 = "requirements-dev.txt", "requirements-gpu-cu12.txt", "requirements-gpu.txt"
    lab = "requirements-lab.txt"
    for options, expected in [
        (["--gpu-cu13"], [cu13]),
        (["--gpu-cu13"], []),
        ([], []),  # what the experiment needs is part of it
        (["--gpu-cu12"], [cu12]),
        (["--gpu-cu12"], []),
        (["--gpu-cu13"], [cu13]),
        (["--dev"], [dev, cu13]),  # whose NumPy is another one
        (["--gpu-cu13", "--dev"], []),
        (["--gpu-cu12", "--dev"], [dev, cu12]),
        (["--lab"], [lab, cu12]),
        (["--lab"], []),
    ]:
        assert bare.installed(*options) == expected, options


def test_the_notebook_s_script_installs_jupyterlab_once_and_opens_the_notebook_with_the_folder(
    bare: BareProject, tmp_path: Path
) -> None:
    script = bare.folder / "scripts" / "notebook"
    shutil.copy(ROOT / "scripts" / "notebook", script)
    stand_in = tmp_path / "of jupyterlab"
    (stand_in / "jupyterlab").mkdir(parents=True)
    (stand_in / "jupyterlab" / "__init__.py").touch()
    (stand_in / "jupyterlab" / "__main__.py").write_text(
        "import os, sys; print(sys.argv[1:], os.environ['KAAS_RESULTS'])"
    )
    python = bare.bin / "python"
    python.write_text(python.read_text().replace("*) exec", f'*) PYTHONPATH="{stand_in}" exec'))
    results = tmp_path / "results-mine"
    results.mkdir()
    said = f"{[str(bare.folder / 'plot-autoscaling.ipynb'), '--no-browser']} {results}"

    for installed in (["requirements-lab.txt"], []):
        (bare.folder / "pip-calls").write_text("")
        code, out, err = bare.setup(str(results), "--no-browser", script=script)

        assert (code, err, out.splitlines()[-1]) == (0, "", said)
        calls = (bare.folder / "pip-calls").read_text().splitlines()
        assert [Path(call.split()[-1]).name for call in calls] == installed

    code, _, err = bare.setup("nothing", script=script)
    assert (code, "no folder nothing" in one_line(err)) == (2, True)


def test_setup_for_gpus_without_one_says_what_to_do(bare: BareProject) -> None:
    code, _, err = bare.setup("--gpu")
    assert "--gpu-cu13 or --gpu-cu12" in one_line(err)
    assert code == 1


def test_where_pip_installs_is_not_the_users_setting_but_its_index_is(bare: BareProject) -> None:
    bare.installed(PIP_USER="1", PIP_TARGET="/nope", PYTHONPATH="/nope", PYTHONHOME="/nope", PIP_INDEX_URL="http://own")
    told = (bare.folder / "pip-environment").read_text()
    assert "PIP_INDEX_URL=http://own\n" in told
    assert not re.search(r"^(PIP_USER|PIP_TARGET|PYTHONPATH|PYTHONHOME)=", told, re.MULTILINE)
    assert "--no-user" in (bare.folder / "pip-calls").read_text()  # a configuration file may say it, too


def test_a_symbolic_link_to_setup_sets_up_the_project_that_it_leads_to(bare: BareProject, tmp_path: Path) -> None:
    link = tmp_path / "bin" / "set-kaas-up"
    link.parent.mkdir()
    link.symlink_to("../project/scripts/setup")
    code, out, err = bare.setup(script=link)
    assert (code, err) == (0, "")
    assert "Installing requirements.txt" in out


# Another setup, an interrupted one, and none that can be


def test_a_second_setup_waits_for_the_first_and_is_told_who_that_is(bare: BareProject) -> None:
    (bare.folder / "gated").touch()
    first = bare.start()
    eventually((bare.folder / "pip-calls").exists)
    second = bare.start()
    assert second.stdout is not None
    assert f"Waiting for another setup: process {first.pid} on {os.uname().nodename}" in second.stdout.readline()
    (bare.folder / "gate").touch()
    assert [first.wait(timeout=LIMIT), second.wait(timeout=LIMIT)] == [0, 0]
    assert len((bare.folder / "pip-calls").read_text().splitlines()) == 1
    first.communicate()
    second.communicate()


def test_a_setup_that_was_killed_keeps_nobody_waiting_and_its_folder_is_removed(
    bare: BareProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("scripts/hold.py", "scripts/bare_kaas.py", "kaas"):
        (bare.folder / part).symlink_to(ROOT / part)
    monkeypatch.setattr(leftovers, "_home", lambda: tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (bare.folder / "gated").touch()
    first = bare.start(TMPDIR=str(tmp_path))
    eventually((bare.folder / "pip-calls").exists)
    assert leftovers.sweep() == ""
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    # What it had started takes a moment to end.
    assert eventually(leftovers.sweep).endswith(" had left: 1 temporary folder")
    assert not list(tmp_path.glob("kaas-*"))
    (bare.folder / "gate").touch()
    # Process 1 lives on every machine; so a number says nothing of who holds the lock.
    (bare.folder / ".venv.lock").write_text("process 1 on this\n")
    (bare.folder / ".setup-running").mkdir()
    (bare.folder / ".setup-running" / "process").write_text("1\n")
    assert bare.installed() == ["requirements.txt"]


def test_setup_goes_on_without_a_lock_where_the_file_system_has_none(
    bare: BareProject, without_locks: dict[str, str]
) -> None:
    code, out, err = bare.setup(LD_PRELOAD=without_locks["LD_PRELOAD"])
    assert code == 0
    assert "Installing requirements.txt" in out
    assert "has no locks (Function not implemented): start no second setup" in one_line(err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_setup_ends_with_one_line_and_the_next_goes_on(
    bare: BareProject, number: signal.Signals, code: int
) -> None:
    (bare.folder / "gated").touch()
    process = bare.start()
    eventually((bare.folder / "pip-calls").exists)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code
    assert "interrupted" in one_line(err)
    (bare.folder / "gate").touch()
    assert bare.installed() == ["requirements.txt"]


@pytest.fixture
def another_users_folder() -> Iterator[Path]:
    """Give a folder that a user without rights may read but not write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "project"
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


def test_setup_in_a_clone_that_cannot_be_written_says_so_at_once(another_users_folder: Path) -> None:
    bare = BareProject(another_users_folder)
    bare.folder.chmod(0o555)
    shutil.rmtree(bare.folder / ".venv", ignore_errors=True)
    done = subprocess.run(
        [bare.folder / "scripts" / "setup"],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin"},
        user=65534 if os.geteuid() == 0 else None,  # root may write everywhere
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "cannot be written" in done.stderr
    assert "--venv FOLDER" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("name", ["PYTHON", "KAAS_PYTHON"])
def test_a_python_that_is_none_is_named(bare: BareProject, name: str) -> None:
    shutil.rmtree(bare.bin)
    options = ["--target", "libraries"] if name == "KAAS_PYTHON" else []
    code, _, err = bare.setup(*options, script=None, **{name: "/nope"})
    assert f"{name} is /nope, which is no Python 3.11 or newer" in one_line(err)
    assert code == 1


# Without a network


@pytest.fixture
def wheels(bare: BareProject) -> Path:
    """Give a folder with the one wheel, made here, that the project asks for."""
    folder = bare.folder / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "here = True\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    shutil.rmtree(bare.folder / ".venv")
    (bare.folder / "requirements.txt").write_text("tiny==1.0\n")
    return folder


def without_network() -> list[str]:
    """Give what makes a program have no network: a namespace of its own, where that is allowed."""
    unshare = ["unshare", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
    ):
        return []
    return unshare


# An index that refuses, for machines on which the network cannot be taken away.
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PYTHON": sys.executable}


def offline(bare: BareProject, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KAAS_", "PYTHON", "PIP_"))}
    return subprocess.run(
        [*without_network(), bare.folder / "scripts" / "setup", *options],
        cwd=bare.folder,
        env={**clean, **NO_INDEX, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_setup_offline_makes_an_environment_from_the_wheels(bare: BareProject, wheels: Path) -> None:
    done = offline(bare, "--offline", wheels.name, "--venv", "here", PIP_USER="1")
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run([bare.folder / "here" / "bin" / "python", "-I", "-c", "import tiny"], check=True)
    done = offline(bare, "--venv", "here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # all is there: no index is asked


def test_setup_offline_for_a_python_of_the_users_says_what_to_export(bare: BareProject, wheels: Path) -> None:
    done = offline(bare, "--offline", wheels.name, "--target", "libraries", KAAS_PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
    exports = done.stdout.splitlines()[-1].strip()
    assert exports.startswith(f"export KAAS_PYTHON={sys.executable} PYTHONPATH={bare.folder}/libraries JUPYTER_PATH=")
    subprocess.run(["bash", "-c", f"{exports}; $KAAS_PYTHON -c 'import tiny'"], check=True)


def test_setup_without_a_network_says_so_and_what_is_missing_of_a_folder(bare: BareProject, wheels: Path) -> None:
    (bare.folder / "requirements.txt").write_text("tiny==1.0\nmissing==2.0\n")
    bare.bin.mkdir(parents=True)  # nothing comes to be installed, so this Python's own pip may be told to
    (bare.bin / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bare.bin / "python").chmod(0o755)
    done = offline(bare)
    assert "pip cannot reach its index" in done.stderr
    assert "login node" in done.stderr
    done = offline(bare, "--offline", wheels.name)
    assert f"wheels has no missing==2.0 for Python {sys.version_info[0]}.{sys.version_info[1]}" in one_line(done.stderr)
    assert done.returncode == 1


def test_wheels_are_those_for_linux_and_the_python_asked_for_whatever_this_machine_is(tmp_path: Path) -> None:
    pins = runpy.run_path(str(ROOT / "scripts" / "wheels.py"), run_name="wheels")["pins"]
    file = tmp_path / "set.txt"
    file.write_text(
        "# made by hand\nold==1 ; python_full_version < '3.11.5'\nnew==2 ; python_full_version >= '3.11.5'\n"
        "mac==3 ; sys_platform == 'darwin'\ncuda==4 ; platform_machine == 'x86_64' and sys_platform == 'linux'\n"
        "    # via all\nall==5\n"
    )
    assert pins(file, "3.11.0") == ["old==1", "cuda==4", "all==5"]
    assert pins(file, "3.12.0") == ["new==2", "cuda==4", "all==5"]


# What is said in one place


def pythons(name: str = "pythons") -> list[str]:
    line = re.search(rf"^{name}='(.+)'$", (ROOT / "scripts" / "pythons.sh").read_text(), re.MULTILINE)
    assert line
    return line[1].split()


def test_readme_project_file_and_package_name_the_pythons_that_the_scripts_do() -> None:
    oldest, newest = pythons()[0], pythons()[-1]
    assert set(pythons("pythons_for_gpus")) <= set(pythons())
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"Python {oldest} to {newest}" in readme
    assert f"Python {pythons('pythons_for_gpus')[0]} to {pythons('pythons_for_gpus')[-1]}" in readme
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in (ROOT / "kaas" / "__init__.py").read_text()


def pinned(file: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in file.read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            found.setdefault(line.partition("==")[0], set()).add(line.partition(" ;")[0].strip())
    return found


def test_the_sets_pin_the_same_versions_but_for_numpy_which_is_an_older_one_for_gpus() -> None:
    base = pinned(ROOT / "requirements.txt")
    for file in SETS:
        own = pinned(file)
        for name in own.keys() & base.keys() - {"numpy"}:
            assert own[name] == base[name], f"{file.name}: {name}"
        if file.name not in {f"requirements{which}.txt" for which in ("", "-dev", "-lab", "-ray")}:
            (numpy,) = own["numpy"]
            # numba-cuda 0.30.4 uses np.row_stack, which NumPy 2.5 has no more.
            assert tuple(map(int, numpy.partition("==")[2].split(".")[:2])) < (2, 5), file.name
            assert "nvidia-ml-py" in own


def one_line(said: str) -> str:
    assert len(said.splitlines()) == 1, said
    return said
