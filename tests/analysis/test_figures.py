import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import T0, legend, lines, log_power, request, said, write_run
from matplotlib.axes import Axes

from kaas import ROOT
from kaas.analysis import figures, runs
from kaas.errors import ResultsError


def draw(folder: Path) -> list[Axes]:
    (run,) = runs.find_runs(folder)
    return figures.combined(run).axes


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


def test_warm_requests_far_below_a_cold_start_are_told_apart_on_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [request(0, 250, cold=True), *(request(at, at) for at in (1, 2, 3)), request(4, 9, "rejected")]
    write_run(tmp_path, "task-1", [*rows, request(5, 90, "timeout")])

    completion = draw(tmp_path)[3]

    assert (completion.get_yscale(), completion.get_ylabel()) == ("log", "Task completion\ntime [ms], log")
    drawn = np.concatenate([lines(completion)[label].get_ydata() for label in ("warm (3)", "cold start (1)")])
    bottom, top = completion.get_ylim()
    assert 0 < bottom < drawn.min() < drawn.max() < top
    # What was not served still stands on the axis.
    x, y = completion.transAxes.transform((0, 0))
    for label in ("refused (1)", "failed (1)"):
        mark = lines(completion)[label]
        at = mark.get_transform().transform(mark.get_xydata())
        assert at[0, 1] == pytest.approx(y)
        assert at[0, 0] > x


def test_long_completion_times_are_in_seconds(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 4000)])

    completion = draw(tmp_path)[3]

    assert completion.get_ylabel() == "Task completion\ntime [s]"
    assert lines(completion)["warm (1)"].get_ydata() == pytest.approx([4.0])


def test_a_panel_without_data_says_so_in_words(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0, 1, "rejected")], happened=())
    files.monitoring.unlink()

    assert [said(panel) for panel in draw(tmp_path)] == [
        [],
        ["no server events in this run"],
        ["no utilization known for this run"],
        ["no request was served in this run"],
    ]


def test_monitoring_of_another_time_is_not_drawn_as_an_empty_panel(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    files.monitoring.write_text(f"timestamp,gpu,bus_id,utilization_pct\n{T0 - 18000},0,virtual:0,50\n")

    assert said(draw(tmp_path)[2]) == ["no utilization known for this run"]


def test_power_is_drawn_for_each_gpu_in_the_colour_of_its_utilization(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"), gpus=9)
    (run,) = runs.find_runs(tmp_path)

    power, joules, each = figures.power(run).axes

    assert power.get_ylabel() == "Power [W]\n(mean of last 1 s)"
    assert lines(power)["GPU 8"].get_ydata() == pytest.approx([220.0] * 25)
    assert lines(power)["mean of all 9"].get_ydata() == pytest.approx([140.0] * 25)
    colours = [
        {label: (line.get_color(), line.get_linestyle()) for label, line in lines(panel).items()}
        for panel in (power, figures.combined(run).axes[2])
    ]
    assert colours[0] == colours[1]
    assert [panel.get_xlim() for panel in (power, joules, each)] == [(0, 24)] * 3
    assert each.get_xlabel() == "Experiment time [s]"
    assert [panel.get_ylim()[0] for panel in (power, joules, each)] == [0] * 3


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


def test_energy_that_is_not_of_all_gpus_says_of_how_many(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    by_gpu = {0: "60", 1: "40", 2: ""}
    samples = "".join(f"{T0 + at},{gpu},{gpu},50,{watts}\n" for at in range(25) for gpu, watts in by_gpu.items())
    files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct,power_w\n" + samples)

    watts, joules, each = figures.power(runs.find_runs(tmp_path)[0]).axes

    assert legend(watts) == ["GPU 0", "GPU 1", "mean of 2 of 3"]
    assert joules.get_ylabel() == "Energy of 2 of 3\nGPUs [J]"
    assert legend(each) == ["in the whole run: 480 J (2 of 3 GPUs)"]


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

    panels = figures.power(runs.find_runs(tmp_path)[0]).axes[:2]

    watts, joules = (np.asarray(panel.get_lines()[0].get_xydata()) for panel in panels)
    assert len(watts) < 1300
    assert len(joules) < 1300
    assert watts[np.isnan(watts[:, 1])][:, 0] == pytest.approx([10.0])
    assert joules[-1] == pytest.approx([24, 1600])


def test_what_is_not_known_of_power_or_energy_is_said(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    (unknown,) = runs.find_runs(tmp_path)
    files.monitoring.write_text(f"timestamp,gpu,bus_id,energy_j\n{T0},0,0,100\n{T0 + 20},0,0,900\n")
    (counted,) = runs.find_runs(tmp_path)

    power_unknown, energy_unknown = "no power known for this run", "no energy known for this run"
    assert [said(panel) for panel in figures.power(unknown).axes] == [
        [power_unknown],
        [energy_unknown],
        ["no energy per request known for this run"],
    ]
    assert [said(panel) for panel in figures.power(counted).axes] == [[power_unknown], [], []]


def test_energy_of_a_request_is_that_of_all_gpus_in_the_time_it_was_served(tmp_path: Path) -> None:
    log_power(write_run(tmp_path, "task-1"))

    each = figures.power(runs.find_runs(tmp_path)[0]).axes[2]

    assert each.get_ylabel() == "Energy per served\nrequest [J]\n(mean of 1 s)"
    assert legend(each) == ["in the whole run: 672 J"]
    (drawn,) = each.patches
    values = drawn.get_data().values  # type: ignore[attr-defined]
    # 140 W, and one request that ended in each of the first four seconds, and one 19 s after the first began.
    assert values[[0, 1, 2, 3, 19]] == pytest.approx([140.0] * 5)
    assert np.isnan(values).sum() == 24 - 5


def test_a_figure_is_saved_for_the_screen_and_for_print_with_embedded_fonts(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")
    figure = figures.combined(runs.find_runs(tmp_path)[0])

    picture = figures.save(figure, tmp_path / "figure")

    assert picture == tmp_path / "figure.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    pdf = picture.with_suffix(".pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_the_same_data_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "task-1")
    (run,) = runs.find_runs(tmp_path)

    files: list[tuple[bytes, bytes]] = []
    for seconds in ("0", "1000000000"):  # what matplotlib takes for the date, if it writes one
        monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
        picture = figures.save(figures.requests(run), tmp_path / "figure")
        files.append((picture.read_bytes(), picture.with_suffix(".pdf").read_bytes()))

    assert files[0] == files[1]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")
    figure = figures.combined(runs.find_runs(tmp_path)[0])

    with pytest.raises(ResultsError, match=r"nowhere/figure\.png: No such file or directory"):
        figures.save(figure, tmp_path / "nowhere" / "figure")


def test_drawing_needs_no_pyplot_and_so_no_display() -> None:
    program = "import sys, kaas.analysis.figures; print('matplotlib.pyplot' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
