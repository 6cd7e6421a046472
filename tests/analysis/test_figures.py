import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kaas import ROOT, events, results
from kaas.analysis import energy, figures, runs
from kaas.analysis.runs import Run
from kaas.errors import ResultsError
from kaas.events import Event
from kaas.results import Outcome, Row, RunFiles

T0 = 1_700_000_000.0
REPORT = ROOT / "scripts" / "report"


def request(at: float, outer_ms: float, status: str = "ok", *, cold: bool = False, waited: bool = False) -> Row:
    outcome = Outcome(outer_ms, outer_ms / 2, 1.0, cold, status, waited)
    return results.make_row(T0 + at, 0, 1 + int(at // 10), outcome)


ROWS = (
    request(0, 900, cold=True),
    request(1, 80),
    request(2, 90),
    request(3, 500, waited=True),
    request(15, 2, "rejected"),
    request(16, 2, "rejected"),
    request(17, 7000, "timeout"),
    request(19, 100),
)
BOOTS = (Event("booted", T0 + 0.1, gpu=0, num_workers=4), Event("booted", T0 + 10, gpu=1, num_workers=4))


def write_run(
    folder: Path, task: str, rows: Iterable[Row] = ROWS, happened: Iterable[Event] = BOOTS, gpus: int = 2
) -> RunFiles:
    files = RunFiles(folder, task)
    results.create_requests(files.requests)
    with files.requests.open("ab") as file:
        file.writelines(results.encode_row(row) for row in rows)
    results.begin_description(files.description, files.requests, {"Client": "a client"}, {"Host": "a host"})
    log = folder / f"{task}-server.log"
    log.write_text("".join(events.format(event) + "\n" for event in happened))
    events.sort_log(log, files.serverlogs)
    samples = [f"{T0 + at},{gpu},virtual:{gpu},{40 + gpu}\n" for at in range(25) for gpu in range(gpus)]
    files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct\n" + "".join(samples))
    return files


def log_power(files: RunFiles, gpus: int = 2, missing: range = range(0)) -> None:
    """Put a monitoring file in the place of that of `write_run`: GPU n draws 60 + 20 n watts, sampled each second."""
    rows = [
        f"{T0 + at},{gpu},{gpu},{40 + gpu},{60 + 20 * gpu}\n"
        for at in range(25)
        for gpu in range(gpus)
        if at not in missing
    ]
    files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct,power_w\n" + "".join(rows))


def draw(folder: Path) -> list[Axes]:
    (run,) = runs.find_runs(folder)
    return figures.combined(run).axes


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def legend(axes: Axes) -> list[str]:
    drawn = axes.get_legend()
    return [text.get_text() for text in drawn.get_texts()] if drawn else []


def report(folder: Path | str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [REPORT, folder],
        env=os.environ | {"KAAS_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_four_panels_share_their_time_and_begin_at_0(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")

    panels = draw(tmp_path)

    assert [panel.get_ylabel().replace("\n", " ") for panel in panels] == [
        "Number of clients",
        "Number of task runners",
        "Utilization [%] (mean of last 1 s)",
        "Task completion time [ms]",
    ]
    assert panels[3].get_xlabel() == "Experiment time [s]"
    # The run ends with its last reply, that of the request which took 7 s.
    assert [panel.get_xlim() for panel in panels] == [(0.0, 24.0)] * 4
    assert [panel.get_ylim()[0] for panel in panels] == [0.0] * 4


def test_steps_go_on_to_the_end_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")

    clients, task_runners, *_ = draw(tmp_path)

    for panel, points in ((clients, [(0, 1), (15, 2), (24, 2)]), (task_runners, [(0, 0), (0.1, 1), (10, 2), (24, 2)])):
        (line,) = panel.get_lines()
        assert line.get_drawstyle() == "steps-post"
        assert np.asarray(line.get_xydata()) == pytest.approx(np.array(points), abs=1e-5)


def test_each_gpu_has_its_line_and_all_of_them_a_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", gpus=9)

    utilization = draw(tmp_path)[2]

    assert legend(utilization) == [*(f"GPU {gpu}" for gpu in range(9)), "mean of all 9"]
    drawn = {(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in utilization.get_lines()}
    assert len(drawn) == 10
    assert lines(utilization)["GPU 8"].get_ydata() == pytest.approx([48.0] * 25)
    assert lines(utilization)["mean of all 9"].get_ydata() == pytest.approx([44.0] * 25)


def test_only_served_requests_have_a_completion_time_and_the_others_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")

    completion = draw(tmp_path)[3]

    points = {label: np.asarray(line.get_xydata()).tolist() for label, line in lines(completion).items()}
    assert points == {
        "warm (3)": [[1, 80], [2, 90], [19, 100]],
        "waited for a boot (1)": [[3, 500]],
        "cold start (1)": [[0, 900]],
        "refused (2)": [[15, 0], [16, 0]],
        "failed (1)": [[17, 0]],
    }
    assert legend(completion) == list(points)
    assert len({line.get_marker() for line in completion.get_lines()}) == 5
    assert completion.get_ylim()[1] == pytest.approx(945)


def test_long_completion_times_are_in_seconds(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 4000)])

    completion = draw(tmp_path)[3]

    assert completion.get_ylabel() == "Task completion\ntime [s]"
    assert lines(completion)["warm (1)"].get_ydata() == pytest.approx([4.0])


def test_a_panel_without_data_says_so_in_words(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0, 1, "rejected")], happened=())
    files.monitoring.unlink()

    said = [[text.get_text() for text in panel.texts] for panel in draw(tmp_path)]

    assert said == [
        [],
        ["no server events in this run"],
        ["no utilization known for this run"],
        ["no request was served in this run"],
    ]


def test_monitoring_of_another_time_is_not_drawn_as_an_empty_panel(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    files.monitoring.write_text(f"timestamp,gpu,bus_id,utilization_pct\n{T0 - 18000},0,virtual:0,50\n")

    (words,) = draw(tmp_path)[2].texts

    assert words.get_text() == "no utilization known for this run"


@pytest.mark.parametrize("draw_run", [figures.combined, figures.power])
def test_nothing_of_the_figure_is_cut_off_or_overlaps(tmp_path: Path, draw_run: Callable[[Run], Figure]) -> None:
    log_power(write_run(tmp_path, "task-1"), gpus=8)
    figure = draw_run(runs.find_runs(tmp_path)[0])
    figure.draw_without_rendering()

    boxes = [panel.get_tightbbox() for panel in figure.axes]

    for box in boxes:
        assert box is not None
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    for upper, lower in pairwise(boxes):
        assert upper is not None
        assert lower is not None
        assert lower.y1 <= upper.y0


def test_power_is_drawn_for_each_gpu_in_the_colour_of_its_utilization(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"), gpus=9)
    (run,) = runs.find_runs(tmp_path)

    power, joules = figures.power(run).axes

    assert power.get_ylabel() == "Power [W]\n(mean of last 1 s)"
    assert lines(power)["GPU 8"].get_ydata() == pytest.approx([220.0] * 25)
    assert lines(power)["mean of all 9"].get_ydata() == pytest.approx([140.0] * 25)
    colours = [
        {label: (line.get_color(), line.get_linestyle()) for label, line in lines(panel).items()}
        for panel in (power, figures.combined(run).axes[2])
    ]
    assert colours[0] == colours[1]
    assert (power.get_xlim(), joules.get_xlim()) == ((0, 24), (0, 24))
    assert joules.get_xlabel() == "Experiment time [s]"
    assert (power.get_ylim()[0], joules.get_ylim()[0]) == (0, 0)


@pytest.mark.parametrize(
    ("gpus", "label", "total"),
    [
        (1, "Energy of all\nGPUs [J]", 24 * 60),
        (5, "Energy of all\nGPUs [kJ]", 24 * (60 + 80 + 100 + 120 + 140) / 1000),
        (200, "Energy of all\nGPUs [kWh]", 24 * sum(60 + 20 * gpu for gpu in range(200)) / 3.6e6),
    ],
)
def test_energy_adds_up_in_a_unit_of_its_size(tmp_path: Path, gpus: int, label: str, total: float) -> None:
    log_power(write_run(tmp_path, "task-1"), gpus)

    joules = figures.power(runs.find_runs(tmp_path)[0]).axes[1]

    assert joules.get_ylabel() == label
    assert legend(joules) == ["by power integral"]
    (line,) = joules.get_lines()
    points = np.asarray(line.get_xydata())
    assert points[[0, 12, 24]] == pytest.approx(np.array([[0, 0], [12, total / 2], [24, total]]))


def test_lines_break_where_nothing_was_sampled(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"), missing=range(5, 15))
    (run,) = runs.find_runs(tmp_path)

    for panel in (figures.power(run).axes[0], figures.combined(run).axes[2]):
        for line in panel.get_lines():
            points = np.asarray(line.get_xydata())
            assert points[np.isnan(points[:, 1])][:, 0].tolist() == [9]


def test_a_long_log_is_thinned_but_keeps_its_end_and_its_gaps(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    times = [at / 1000 for at in range(24_001) if not 8000 < at < 16_000]
    samples = "".join(f"{T0 + at},0,0,50,100\n" for at in times)
    files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct,power_w\n" + samples)

    panels = figures.power(runs.find_runs(tmp_path)[0]).axes

    watts, joules = (np.asarray(panel.get_lines()[0].get_xydata()) for panel in panels)
    assert len(watts) < 2100
    assert len(joules) < 2100
    assert watts[np.isnan(watts[:, 1])][:, 0] == pytest.approx([10.0])
    assert joules[-1] == pytest.approx([24, 1600])


def test_what_is_not_known_of_power_or_energy_is_said(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    (unknown,) = runs.find_runs(tmp_path)
    files.monitoring.write_text(f"timestamp,gpu,bus_id,energy_j\n{T0},0,0,100\n{T0 + 20},0,0,900\n")
    (counted,) = runs.find_runs(tmp_path)

    said = [
        [[text.get_text() for text in panel.texts] for panel in figures.power(run).axes] for run in (unknown, counted)
    ]

    nothing = ["no power known for this run"]
    assert said == [[nothing, ["no energy known for this run"]], [nothing, []]]


def test_power_is_saved_under_the_number_of_its_repeat_and_only_where_it_was_logged(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")
    log_power(write_run(tmp_path, "task-2"))

    pictures = figures.several_power(runs.find_runs(tmp_path), tmp_path)

    assert pictures == [None, tmp_path / "autoscaling-power-2.png"]
    assert sorted(path.name for path in tmp_path.glob("autoscaling*")) == [
        "autoscaling-power-2.pdf",
        "autoscaling-power-2.png",
    ]


def test_every_repeat_is_saved_under_its_own_name_with_embedded_fonts(tmp_path: Path) -> None:
    found: list[Run] = []
    for repeat in (1, 2):
        write_run(tmp_path / str(repeat), f"task-{repeat}")
        found += runs.find_runs(tmp_path / str(repeat))

    pictures = figures.several(found, tmp_path)

    assert [picture.name for picture in pictures] == ["autoscaling-combined.png", "autoscaling-combined-2.png"]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        pdf = picture.with_suffix(".pdf").read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")
    figure = figures.combined(runs.find_runs(tmp_path)[0])

    with pytest.raises(ResultsError, match=r"nowhere/figure\.pdf: No such file or directory"):
        figures.save(figure, tmp_path / "nowhere" / "figure")


def test_drawing_needs_no_pyplot_and_so_no_display() -> None:
    program = "import sys, kaas.analysis.figures; print('matplotlib.pyplot' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_the_notebook_is_kept_without_outputs_and_with_an_id_for_each_cell() -> None:
    notebook = json.loads((ROOT / "plot-autoscaling.ipynb").read_text())

    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_the_report_shows_a_run_without_the_network_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder, home, temporary = (tmp_path / name for name in ("results with a blank", "home", "tmp"))
    write_run(folder, "task-1")
    home.mkdir()
    temporary.mkdir()
    notebook = (ROOT / "plot-autoscaling.ipynb").read_bytes()
    before = {path.name for path in folder.iterdir()}

    done = report(folder, HOME=str(home), TMPDIR=str(temporary), MPLCONFIGDIR=str(tmp_path / "matplotlib"))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Figure: {folder}/autoscaling-combined.pdf (and .png)",
        f"Report: {folder}/autoscaling-report.html",
    ]
    assert {path.name for path in folder.iterdir()} - before == {
        "autoscaling-combined.pdf",
        "autoscaling-combined.png",
        "autoscaling-report.html",
    }
    page = (folder / "autoscaling-report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == 1
    assert "a client" in page
    assert "find_runs" not in page
    assert figures.HOW_TO_READ in page
    text = re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL).lower()
    assert "power" not in text
    assert "energy" not in text
    assert re.search(r"<th>requests rejected</th>\s*<td>2</td>", page)
    assert re.search(r"<th>duration \[s\]</th>\s*<td>24.00</td>", page)
    assert "<script" not in page
    loaded = re.findall(r"""(?:src|href)=["']?([^"'>]*)|@import ([^;]*)|url\(([^)]*)""", page)
    assert {link.split(":")[0] for links in loaded for link in links if link and not link.startswith("#")} == {"data"}
    assert (ROOT / "plot-autoscaling.ipynb").read_bytes() == notebook
    assert list(home.iterdir()) == list(temporary.iterdir()) == []


def test_the_report_shows_power_and_energy_of_the_runs_that_logged_them(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"))
    write_run(tmp_path, "task-2")

    done = report(tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "autoscaling-report.html").read_text()
    assert page.count("<img") == 3
    for words in (energy.HOW_TO_READ_NUMBERS, energy.HOW_TO_READ_TABLE, figures.HOW_TO_READ_POWER):
        assert page.count(words) == 1
    # 24 s of 60 W and of 80 W, and 4 requests that were served.
    assert re.search(r"<th>energy \[J\]</th>\s*<td>3360.00</td>\s*<td>-</td>", page)
    assert re.search(r"<th>energy per served request \[J\]</th>\s*<td>672.00</td>\s*<td>-</td>", page)
    assert re.search(r"<th>energy method</th>\s*<td>power integral</td>\s*<td>-</td>", page)
    assert re.search(r"<th>1</th>\s*<td>1920.00</td>\s*<td>power integral</td>\s*<td>80.00</td>", page)


def test_the_report_runs_on_this_python_whatever_kernel_the_user_has(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "task-1")
    for place in ("share", "home/.local/share/jupyter", "home/Library/Jupyter"):
        kernel = tmp_path / place / "kernels" / "python3"
        kernel.mkdir(parents=True)
        command = {"argv": ["/bin/false"], "display_name": "Broken", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(command))

    done = report(tmp_path / "results", HOME=str(tmp_path / "home"), JUPYTER_PATH=str(tmp_path / "share"))

    assert (done.returncode, done.stderr) == (0, "")


def test_the_report_of_a_broken_run_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "task-1.csv").touch()

    done = report(tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"report: {tmp_path}/task-1.csv holds no request: move it away, or run the experiment again\n"
    assert [path.name for path in tmp_path.iterdir()] == ["task-1.csv"]


def test_the_report_of_a_folder_that_is_not_there_is_one_line() -> None:
    done = report("nonsense-folder")

    assert done.returncode == 1
    assert done.stderr == (
        "report: there is no folder nonsense-folder: name a results folder, such as results-autoscaling-cpu\n"
    )
