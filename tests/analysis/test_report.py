"""`scripts/report` and the notebook that it runs."""

import atexit
import hashlib
import html
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import notebook
import pandas as pd
import pytest
from example_runs import ROWS, log_power, request, write_run
from made_runs import PUBLISHED, closed_loop, needs_published, write_requests
from project import NOTEBOOK, draw_only

from kaas import ROOT, __version__
from kaas.analysis import claims, energy, figures, mechanism, report, runs, summary, tables
from kaas.errors import ResultsError
from kaas.results import RunFiles

# A new network's loopback is down; who it is stands in no list of users.
NOBODY_NOWHERE = ["unshare", "--net", "--user", "--map-user=123456", "--"]


def makes_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NOBODY_NOWHERE, "true"], check=False, capture_output=True).returncode == 0


def run_report(
    *arguments: Path | str, by: Sequence[str] = (), of: Path = ROOT, cwd: Path = ROOT, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run scripts/report of this project, or of a copy of it."""
    return subprocess.run(
        [*by, of / "scripts" / "report", *arguments],
        cwd=cwd,
        env=os.environ | {"KAAS_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def served_only(folder: Path, task: str, *times_ms: float) -> None:
    """Write a run of a request each second and nothing else, of which few pictures can be drawn."""
    write_requests(folder, task, [request(at, time_ms) for at, time_ms in enumerate(times_ms)])


@dataclass
class Made:
    """A whole made run in whose folder its report lies, with all pictures. Only to be read."""

    files: RunFiles
    before: set[str]
    said: str
    home: Path
    temporary: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    files, home, temporary = closed_loop(folder / "results-with a blank"), folder / "home", folder / "tmp"
    home.mkdir()
    temporary.mkdir()
    before, cells = {path.name for path in files.folder.iterdir()}, (ROOT / NOTEBOOK).read_bytes()
    done = run_report(files.folder, "--repeat", "1", HOME=str(home), TMPDIR=str(temporary))
    assert (done.returncode, done.stderr, (ROOT / NOTEBOOK).read_bytes()) == (0, "", cells)
    return Made(files, before, done.stdout, home, temporary)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of what draws a report, which draws only one picture of the gallery."""
    copy = tmp_path_factory.mktemp("few")
    for name in ("kaas", "scripts"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / NOTEBOOK, copy)
    draw_only(copy / NOTEBOOK, "throughput")
    return copy


def page_of(folder: Path) -> str:
    return (folder / "autoscaling-report.html").read_text()


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def row(page: str, name: str) -> list[str]:
    """Give the cells of the first row of a table that begins with `name`."""
    found = re.search(rf"<th>{re.escape(name)}</th>((?:\s*<td>[^<]*</td>)+)", page)
    assert found is not None, f"no row {name}"
    return re.findall(r"<td>([^<]*)</td>", found[1])


def test_the_notebook_is_kept_without_outputs_and_with_an_id_for_each_cell() -> None:
    notebook = json.loads((ROOT / "plot-autoscaling.ipynb").read_text())

    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_the_notebook_in_a_folder_outside_says_where_to_open_it(tmp_path: Path) -> None:
    code = notebook.code_of("parameters")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path} is not in the project's folder: ")
    assert "Traceback" not in done.stderr


def test_the_notebook_leaves_no_folder_where_it_is_run_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAAS_RESULTS", "results-mine")
    monkeypatch.delenv("KAAS_REPORT", raising=False)
    kept: list[Path] = []
    monkeypatch.setattr(atexit, "register", lambda _, folder, **__: kept.append(Path(folder)))

    (tmp_path / "cell.py").write_text(notebook.code_of("parameters"))
    output = runpy.run_path("cell.py")["output"]

    assert kept == [output]
    assert not output.is_relative_to(tmp_path)
    output.rmdir()

    monkeypatch.setenv("KAAS_REPORT", "named")
    assert runpy.run_path("cell.py")["output"] == Path("named")


def test_the_report_shows_a_run_without_the_network_and_leaves_nothing_else(made: Made) -> None:
    folder = made.files.folder
    (run,) = runs.find_runs(folder)

    pictures = sorted(path.stem for path in folder.glob("autoscaling-*.pdf"))
    tables = sorted(path.name for path in folder.glob("table-*.csv"))
    known = [picture.name for picture in figures.GALLERY if picture.known(run)]
    assert len(known) > 5
    assert pictures == sorted(f"autoscaling-{name}" for name in ["combined", *known])
    assert len(tables) == 9
    page_line, folder_line, *in_short = made.said.splitlines()
    assert page_line == f"Page: {folder}/autoscaling-report.html"
    assert (
        folder_line
        == f"Folder: {folder} ({len(pictures)} figures as PDF and PNG, {len(tables)} tables as CSV, summary.json)"
    )
    assert in_short == summary.in_short(summary.summary([run])).splitlines()
    assert {path.name for path in folder.iterdir()} - made.before == {
        *(f"{name}.{kind}" for name in pictures for kind in ("pdf", "png")),
        *tables,
        "autoscaling-report.html",
        "summary.json",
    }
    page = page_of(folder)
    assert page.count("<img") == page.count('src="data:image/png;base64,') == len(pictures)
    assert re.findall(r'alt="([^"]*)"', page)[0] == f"{figures.FOUR_PANELS} task-1"
    assert "To change" not in page
    assert set(re.findall(r'alt="([^"]*)"', page)) >= {picture.title for picture in figures.GALLERY[:6]}
    assert "a client" in page
    assert "find_runs" not in page
    assert page.index(">began<") < page.index("<img")
    assert figures.HOW_TO_READ in page
    per_repeat = page[page.index("Each repeat.") :]
    assert row(per_repeat, "requests") == [str(len(run.requests))]
    assert row(per_repeat, "cold starts") == ["3"]
    assert "Side by side" not in page
    assert "<script" not in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "@media print" in page
    loaded = re.findall(r"""(?:src|href)=["']?([^"'>]*)|@import ([^;]*)|url\(([^)]*)""", page)
    assert {link.split(":")[0] for links in loaded for link in links if link and not link.startswith("#")} == {"data"}
    assert list(made.home.iterdir()) == list(made.temporary.iterdir()) == []


def test_the_report_of_repeats_shows_each_and_all_of_them_and_draws_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "results-two", tmp_path / "out"
    log_power(write_run(folder, "task-1"))
    log_power(write_run(folder, "task-2", [row for row in ROWS if row.status != "rejected"]))

    page = notebook.show(monkeypatch, folder, output, "refusals")

    assert (output / "autoscaling-refusals.pdf").exists()
    assert (output / "autoscaling-combined-all.pdf").exists()
    assert figures.HOW_TO_READ_ALL in page
    assert page.count(energy.HOW_TO_READ_TABLE) == 2
    assert row(page[page.index("Each repeat.") :], "refused") == ["2", "0"]
    assert row(page, "duration [s]") == ["24", "24"]
    # 24 s of 60 W and of 80 W, and 4 requests that were served.
    assert row(page, "energy [J]") == ["3,360", "3,360"]
    assert row(page, "energy per served request [J]") == ["672", "672"]
    assert row(page[page.index("Energy of each GPU") :], "1")[:6] == ["1,920", "power integral", "80", "80", "24", ""]
    repeats = pd.read_csv(output / "table-repeats.csv", index_col="task")
    assert repeats["energy [J]"].tolist() == [3360.0, 3360.0]


def test_two_folders_are_set_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served_only(tmp_path / "own", "task-1", 80, 90, 100)
    served_only(tmp_path / "published", "task-1", 2000, 2000, 2000)
    output = tmp_path / "new" / "out"

    page = notebook.show(monkeypatch, tmp_path / "own", output, compare=tmp_path / "published")

    assert (output / "autoscaling-compared.pdf").is_file()
    for words in ("Side by side", figures.HOW_TO_READ_COMPARED):
        assert words in page
    assert claims.CANNOT_BE_TOLD in page
    assert (output / "table-compared.csv").is_file()
    assert "Both were set alike." in page
    side_by_side = page[page.index("Side by side") :]
    assert row(side_by_side, "warm completion time, p50 [ms]")[0::4][:2] == ["90", "2,000"]


def test_the_pictures_are_of_the_repeat_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = tmp_path / "results-two", tmp_path / "out"
    write_run(folder, "task-1")
    served_only(folder, "task-2", 1)
    output.mkdir()
    figures.save(figures.refusals(runs.find_runs(folder)[0]), output / "autoscaling-refusals")

    notebook.show(monkeypatch, folder, output, "refusals", repeat=2)

    assert (output / "autoscaling-combined.pdf").exists()
    assert not (output / "autoscaling-refusals.pdf").exists(), "it is of the first repeat, and would mislead"
    with pytest.raises(ResultsError, match=r"^there is no repeat 7 \(--repeat, KAAS_REPEAT\) among task-1, task-2$"):
        notebook.show(monkeypatch, folder, tmp_path / "none", repeat=7)
    assert not (tmp_path / "none").exists()


def test_each_experiment_in_a_folder_has_its_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = tmp_path / "results-mixed", tmp_path / "out"
    served_only(folder, "small-1", 100)
    served_only(folder, "large-1", 5000)

    page = notebook.show(monkeypatch, folder, output, "throughput", compare=folder)

    assert "several experiments cannot be pooled" in page
    for name in ("small", "large"):
        assert (output / f"autoscaling-combined-{name}.pdf").is_file()
        assert (output / f"autoscaling-throughput-{name}.png").is_file()


@needs_published
def test_the_report_of_the_published_data_is_the_same_in_every_zone_and_they_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: Path
) -> None:
    before = checksums(PUBLISHED)
    tokyo, los_angeles = tmp_path / "Tokyo" / "report-paper-results", tmp_path / "Los_Angeles"
    tokyo.parent.mkdir()

    done = run_report(PUBLISHED, of=few, cwd=tokyo.parent, TZ="Asia/Tokyo")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tokyo.parent.iterdir()] == [tokyo.name], "what is not ours is put where the user is"
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        found = runs.find_runs(PUBLISHED)
        products = [*tables.write(found, los_angeles), *mechanism.write(found, los_angeles)]
        products.append(figures.save(figures.combined(found[0]), los_angeles / "autoscaling-combined"))
    time.tzset()

    assert checksums(PUBLISHED) == before
    assert len(products) > 12
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (tokyo, los_angeles)]
    assert [told.pop("program")["version"] for told in summaries] == [__version__] * 2  # the copy has no revision
    assert summaries[0] == summaries[1]
    for path in products:
        assert path.suffix == ".json" or path.read_bytes() == (tokyo / path.name).read_bytes(), path.name
    page = page_of(tokyo)
    assert row(page, "requests") == ["2,770", "2,767"]
    assert row(page, "refused") == ["0", "2"]
    assert row(page, "cold starts") == ["8", "8"]
    assert row(page, "monitoring's clock ahead of UTC [h]") == ["-5", "-5"]
    for words in ("What the runs show besides", "Every boot, replayed.", "Lost places.", "Host or GPUs"):
        assert words in page
    assert {"boots-replayed", "lost-places", "server-logs"} <= {
        path.stem.removeprefix("table-") for path in tokyo.glob("table-*.csv")
    }


def test_the_report_of_a_broken_run_is_one_line_that_names_the_file_whatever_kernel_the_user_has(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "results-broken"
    folder.mkdir()
    (folder / "task-1.csv").touch()
    for place in ("share", "home/.local/share/jupyter", "home/Library/Jupyter"):
        kernel = tmp_path / place / "kernels" / "python3"
        kernel.mkdir(parents=True)
        command = {"argv": ["/bin/false"], "display_name": "Broken", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(command))

    done = run_report(folder, HOME=str(tmp_path / "home"), JUPYTER_PATH=str(tmp_path / "share"))

    assert (done.returncode, done.stdout) == (1, "")
    # What a kernel has found in the run; a broken one would have found nothing.
    assert done.stderr == f"report: {folder}/task-1.csv holds no request: move it away, or run the experiment again\n"
    assert [path.name for path in folder.iterdir()] == ["task-1.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("nowhere",), 1, "there is no folder nowhere: name a results folder, such as results-autoscaling"),
        ((".", "--compare", "nowhere"), 1, "there is no folder nowhere: name a results folder, such as"),
        ((".", "--output", "--repeat"), 2, "--output needs a value: see scripts/report --help"),
        ((".", "--output"), 2, "--output needs a value: see scripts/report --help"),
        ((".", "--pdf"), 2, "there is no option --pdf: see scripts/report --help"),
        ((".", "other"), 2, "one FOLDER, not also other: to set two side by side, use --compare"),
    ],
)
def test_what_the_report_cannot_do_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    done = run_report(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"report: {reason}")
    assert done.stderr.count("\n") == 1


def test_without_a_folder_it_looks_for_the_newest_where_the_results_are_said_to_be(tmp_path: Path) -> None:
    done = run_report(cwd=tmp_path, RESULTS="else where")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"report: no results-* folder in {tmp_path}/else where holds a run")


def test_a_picture_of_another_maker_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results-of-the-paper"
    write_run(folder, "task-1")
    (folder / "autoscaling-combined.pdf").write_text("the paper's own")

    with pytest.raises(
        ResultsError, match=r"/autoscaling-combined\.pdf was not drawn by this program, and stays: choose"
    ):
        notebook.show(monkeypatch, folder, folder)

    assert (folder / "autoscaling-combined.pdf").read_text() == "the paper's own"


def test_an_output_that_is_no_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "results-here", "task-1")
    (tmp_path / "file").touch()

    with pytest.raises(ResultsError, match=r"^/\S*/file: File exists$"):
        notebook.show(monkeypatch, tmp_path / "results-here", tmp_path / "file")


def test_numbers_are_readable_and_what_is_not_known_is_a_dash() -> None:
    frame = pd.DataFrame(
        {"a": [1234.5, 0.00012345, 12.0], "b": pd.array([2770, None, 7], dtype="Int64"), "c": ["word", "", None]}
    )

    assert report.readable(frame).to_numpy().tolist() == [
        ["1,234.5", "2,770", "word"],
        ["0.0001", "-", ""],
        ["12", "7", "-"],
    ]


def test_a_repeat_is_chosen_by_its_number(tmp_path: Path) -> None:
    for number in (2, 10):
        write_run(tmp_path, f"task-{number}", [request(0, 1)])
    found = runs.find_runs(tmp_path)

    assert [report.choose(found, number).task for number in ("", "10", "2")] == ["task-2", "task-10", "task-2"]
    with pytest.raises(ResultsError, match="there is no repeat 1 "):
        report.choose(found, "1")


def test_of_a_folder_that_is_not_ours_names_are_text_and_the_report_is_put_where_the_user_is(
    tmp_path: Path, few: Path
) -> None:
    folder, other = tmp_path / "$x_<img src=q onerror=alert(1)>", tmp_path / "_日本 $\\frac$"
    task, here = "_日本 $a$<img src=q onerror=alert(2)>_b_ [c](d) `e`", tmp_path / "here"
    served_only(folder, f"{task}-1", 5, 6)
    closed_loop(folder, f"{task}-2")
    served_only(other, "_t-1", 100)
    here.mkdir()
    before = checksums(folder)

    done = run_report(folder, "--repeat", "2", "--compare", other, of=few, cwd=here, by=["env", "-u", "HOME"])

    assert (done.returncode, done.stderr) == (0, "")
    assert checksums(folder) == before
    (output,) = here.iterdir()
    assert output.name == f"report-{folder.name}"
    page = page_of(output)
    assert "<img src=q" not in page
    drawn = f"{task}-2".replace("<", "&lt;").replace(">", "&gt;")
    assert re.findall(r'alt="([^"]*)"', page)[0] == f"{figures.FOUR_PANELS} {drawn}"
    assert f"Folder <strong>{folder}</strong>: {task}-1, {task}-2." in html.unescape(page)
    assert """content="default-src 'none'; img-src data:;""" in page


def test_the_users_settings_and_home_and_where_the_libraries_lie_make_no_difference(
    tmp_path: Path, made: Made, few: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: black\nlines.linewidth: 9\n")
    settings = {"HOME": str(tmp_path / "nowhere"), "MATPLOTLIBRC": str(here)}
    base = getattr(sys, "_base_executable", sys.executable)
    if base != sys.executable:  # as `pip install --target` leaves it: the packages, and what they share beside them
        target = tmp_path / "site"
        target.mkdir()
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
            target.joinpath(path.name).symlink_to(path)
        (target / "share").symlink_to(Path(sys.prefix, "share"))
        settings |= {"KAAS_PYTHON": base, "PYTHONPATH": str(target)}
    nobody_nowhere = NOBODY_NOWHERE if makes_namespaces() else []
    output = tmp_path / "styled"

    styled = run_report(made.files.folder, "--output", output, of=few, cwd=here, by=nobody_nowhere, **settings)

    assert (styled.returncode, styled.stderr) == (0, "")
    pictures = sorted(output.glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.read_bytes() == (made.files.folder / picture.name).read_bytes(), picture.name
    assert "task-1" in page_of(output)
    assert [path.name for path in here.iterdir()] == ["matplotlibrc"]
    assert not (tmp_path / "nowhere").exists()


def test_the_report_says_where_its_numbers_come_from(made: Made) -> None:
    files = made.files
    origin = pd.read_csv(files.folder / "table-provenance.csv", index_col="what")["value"]

    command = f"scripts/report {files.folder} --repeat 1".replace("with a blank", r"with\ a\ blank")
    assert origin["command line"] == command
    assert {"revision", "Python", "numpy", "pandas", "matplotlib"} <= set(origin.index)
    for path in (files.requests, files.description, files.serverlogs, files.monitoring):
        assert origin[f"SHA-256 of {path}"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row(page_of(files.folder), f"SHA-256 of {path}") == [origin[f"SHA-256 of {path}"]]
    assert "What was checked" in page_of(files.folder)
