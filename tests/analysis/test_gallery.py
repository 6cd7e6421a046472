"""Every picture of the gallery, and the two variants of the paper's figure: what is in them, and if it can be read."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_runs import BOOTS, ROWS, T0, legend, lines, log_power, request, said, write_run
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from kaas import ROOT
from kaas.analysis import figures, runs
from kaas.analysis.figures import GALLERY, Picture
from kaas.analysis.runs import Run
from kaas.events import Event
from kaas.results import Outcome
from kaas.row import Row, make_row

PUBLISHED = ROOT.parent / "shared" / "paper-results"
PICTURES = {picture.name: picture for picture in GALLERY}


def served(at: float, outer_ms: float, worker: int, *, cold: bool = False, copy: int = 0, clients: int = 1) -> Row:
    """A request in all its parts: 10 ms setup, 20 ms queue, 50 ms kernel, and the rest."""
    outcome = Outcome(outer_ms, 45.0, 10.0, cold, "ok", False, worker // 2, worker, 20.0, 50.0, "")
    return make_row(T0 + at, copy, clients, outcome)


FULL = (
    served(0, 400, 0, cold=True),
    served(1, 100, 0),
    served(2, 140, 1, copy=1, clients=2),
    served(3, 100, 2, copy=1, clients=2, cold=True),
    request(4, 1, "rejected"),
    request(5, 30, "kernel_error"),
    served(9, 1000, 0),
)
READY = (
    Event("booted", T0 + 0.1, gpu=0, num_workers=2),
    Event("ready", T0 + 0.3, gpu=0, worker=0, detail="fork 0.050 s, import 0.120 s"),
    Event("ready", T0 + 0.4, gpu=0, worker=1, detail="fork 0.100 s, import 0.190 s"),
    Event("booted", T0 + 3, gpu=1, num_workers=2),
    Event("ready", T0 + 3.2, gpu=1, worker=2, detail="fork 0.080 s, import 0.100 s"),
)


Full = Callable[[int], Run]


@pytest.fixture(scope="module")
def full_of(tmp_path_factory: pytest.TempPathFactory) -> Full:
    """Give a run in all its parts with so many GPUs, read once; nobody may change it."""

    @cache
    def read(gpus: int) -> Run:
        folder = tmp_path_factory.mktemp(f"full-{gpus}")
        log_power(write_run(folder, "task-1", FULL, READY, gpus), gpus)
        return runs.find_runs(folder)[0]

    return read


@pytest.fixture(scope="module")
def full(full_of: Full) -> Run:
    return full_of(2)


def rectangles(axes: Axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """Give left, right, bottom and top of the bars by their label."""
    return {
        str(bars.get_label()): [
            tuple(np.concatenate([path.vertices.min(0), path.vertices.max(0)])[[0, 2, 1, 3]].round(6).tolist())  # type: ignore[union-attr]
            for path in bars.get_paths()
        ]
        for bars in axes.collections
        if isinstance(bars, PolyCollection)
    }


def assert_readable(figure: Figure) -> None:
    """Check that nothing is cut off, and that no panel's labels or legend reach into another panel."""
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    boxes = [panel.get_tightbbox() for panel in figure.axes]
    for box in boxes:
        assert box is not None
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    for panel, box in zip(figure.axes, boxes, strict=True):
        for other in figure.axes:
            if panel.get_position().bounds != other.get_position().bounds:  # else it is its second axis
                assert not (box and box.padded(-1.0).overlaps(other.get_window_extent())), panel.get_ylabel()


def assert_says(figure: Figure, words: str) -> None:
    assert words in [text for panel in figure.axes for text in said(panel)]


def combined_all(run: Run) -> Figure:
    return figures.combined_all([run, run])


def compared(run: Run) -> Figure:
    return figures.compared([run], [run, run], ("own", "other"))


every_picture = pytest.mark.parametrize(
    "draw",
    [figures.combined, combined_all, compared, *(picture.draw for picture in GALLERY)],
    ids=["combined", "combined_all", "compared", *PICTURES],
)
Draw = Callable[[Run], Figure]


@every_picture
@pytest.mark.parametrize("gpus", [2, 64])
def test_nothing_is_cut_off_or_overlaps(full_of: Full, draw: Draw, gpus: int) -> None:
    run = full_of(gpus)
    boots = pd.DataFrame({"gpu": range(gpus), "num_workers": 4, "event": "booted", "elapsed": np.arange(gpus) / 10})
    ready = boots.assign(event="ready", worker=boots["gpu"] * 4, detail="fork 0.01 s, import 1 s", elapsed=8.0)
    number = len(run.requests)
    spread = run.requests.assign(gpu=np.arange(number) % gpus, copy=np.arange(number) * 10)

    figure = draw(replace(run, events=pd.concat([boots, ready], ignore_index=True), requests=spread))

    assert_readable(figure)
    assert all(panel.get_xlabel() or panel.get_ylabel() for panel in figure.axes)


@pytest.fixture(scope="module")
def nothing_served(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("nothing-served")
    write_run(folder, "task-1", [request(0, 1, "rejected"), request(1, 3, "timeout")], happened=())
    return runs.find_runs(folder)[0]


@every_picture
def test_a_run_without_a_served_request_is_drawn(nothing_served: Run, draw: Draw) -> None:
    assert_readable(draw(nothing_served))


@pytest.fixture(
    scope="module", params=[request(0, 100), request(0, 0.0, "rejected"), served(0, 100, 0, cold=True)], ids=range(3)
)
def one_request(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Run:
    folder = tmp_path_factory.mktemp("one-request")
    write_run(folder, "task-1", [request.param], happened=()).monitoring.unlink()
    return runs.find_runs(folder)[0]


@every_picture
def test_a_run_of_one_request_is_drawn(one_request: Run, draw: Draw) -> None:
    assert_readable(draw(one_request))


@pytest.fixture(scope="module")
def published() -> Run:
    if not PUBLISHED.is_dir():
        pytest.skip("the published results are not beside the project")
    return runs.find_runs(PUBLISHED)[1]


@every_picture
def test_the_published_data_are_drawn(published: Run, draw: Draw) -> None:
    assert_readable(draw(published))


def test_the_gallery_tells_what_it_has_and_why_it_has_not(tmp_path: Path, full: Run) -> None:
    write_run(tmp_path / "bare", "task-1", [request(0, 1, "kernel_error")], happened=()).monitoring.unlink()
    (bare,) = runs.find_runs(tmp_path / "bare")

    assert [picture.name for picture in GALLERY if picture.known(full)] == list(PICTURES)
    assert [picture.name for picture in GALLERY if picture.known(bare)] == ["requests"]
    for picture in GALLERY[1:]:
        assert picture.missing.endswith(".")
    for picture in GALLERY:
        assert picture.how_to_read.endswith(".")
    assert len({picture.title for picture in GALLERY}) == len(PICTURES) == len(GALLERY)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("utilization", "no utilization known for this run"),
        ("completion-times", "no request was served in this run"),
        ("throughput", "no request was served in this run"),
        ("decomposition", "no request was served in this run"),
        ("cold-starts", "no cold start was served in this run"),
        ("requests-per-task-runner", "which worker served a request is not known for this run"),
        ("power", "no power known for this run"),
    ],
)
def test_a_picture_of_nothing_says_so(tmp_path: Path, picture: str, words: str) -> None:
    write_run(tmp_path, "task-1", [request(0, 1, "rejected")], happened=()).monitoring.unlink()
    (run,) = runs.find_runs(tmp_path)

    assert_says(PICTURES[picture].draw(run), words)


def test_each_request_is_a_bar_in_the_row_of_its_client(full: Run) -> None:
    figure = figures.requests(full)

    runners, clients = figure.axes
    bars = {
        str(bars.get_label()): np.array(bars.get_segments()).round(6).tolist()
        for bars in clients.collections
        if isinstance(bars, LineCollection)
    }
    # From the begin to the end, in the client's row; the shades take turns within a client.
    assert bars == {
        "warm (3), in two shades in turn": [[[2, 1], [2.14, 1]], [[9, 0], [10, 0]]],
        "_": [[[1, 0], [1.1, 0]]],
        "cold start (2)": [[[0, 0], [0.4, 0]], [[3, 1], [3.1, 1]]],
    }
    assert legend(clients) == [
        "warm (3), in two shades in turn",
        "cold start (2)",
        "refused (1)",
        "failed (1)",
    ]
    assert np.asarray(lines(clients)["refused (1)"].get_xydata()).tolist() == [[4, 0]]
    assert np.asarray(lines(clients)["failed (1)"].get_xydata()).tolist() == [[5, 0]]
    (steps,) = runners.get_lines()
    assert np.asarray(steps.get_xydata()) == pytest.approx(np.array([[0, 0], [0.1, 1], [3, 2], [10, 2]]), abs=1e-5)
    assert runners.get_ylabel() == "Number of\ntask runners"
    assert runners.get_ylim() == pytest.approx((0, 2.2))
    assert (clients.get_xlim(), clients.get_ylim()) == ((0, 10), (-0.7, 1.7))


def test_requests_too_short_to_be_seen_are_one_bar_until_the_client_pauses(tmp_path: Path) -> None:
    at = [second + tenth / 100 for second in (*range(20), *range(40, 60)) for tenth in range(100)]
    write_run(tmp_path, "task-1", [make_row(T0 + begin, 0, 1, Outcome(8.0, 1, 1, False)) for begin in at])

    clients = figures.requests(runs.find_runs(tmp_path)[0]).axes[1]

    (bars,) = [drawn for drawn in clients.collections if isinstance(drawn, LineCollection)]
    assert legend(clients)[0] == "warm (4000), joined to longer bars"
    ends = [(segment[0][0], segment[1][0]) for segment in bars.get_segments()]
    assert np.array(ends) == pytest.approx(np.array([(0, 19.998), (40, 59.998)]), abs=1e-5)


def test_many_requests_are_few_artists_and_no_vectors(full: Run) -> None:
    many = pd.concat([full.requests] * 3000, ignore_index=True)

    clients = figures.requests(replace(full, requests=many)).axes[1]

    assert len(clients.collections) + len(clients.lines) < 10
    large = [bars for bars in clients.collections if len(bars.get_paths()) > 2000]
    assert large
    assert all(bars.get_rasterized() for bars in large)


def test_utilization_is_a_row_of_colours_for_each_gpu_and_their_sum(full_of: Full) -> None:
    figure = figures.utilization(full_of(3))

    by_gpu, summed, bar = figure.axes
    (image,) = by_gpu.images
    cells = np.asarray(image.get_array())
    assert cells.shape[0] == 3
    # GPU n is at 40 + n percent all the time.
    assert cells.min(axis=1).tolist() == cells.max(axis=1).tolist() == [40, 41, 42]
    assert image.get_clim() == (0, 100)
    assert bar.get_ylabel() == "Utilization [%]\n(mean of last 1 s)"
    assert legend(summed) == ["task runners booted", "utilization, summed (mean over the run: 41 % of all 3)"]
    total = lines(summed)["utilization, summed (mean over the run: 41 % of all 3)"]
    assert np.unique(np.asarray(total.get_ydata())) == pytest.approx([1.23])
    assert by_gpu.get_xlim() == summed.get_xlim() == (0, 10)


def test_the_mean_utilization_is_of_the_samples_whenever_each_gpu_was_sampled(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1", [request(0, 100), request(39, 1000)])
    # Of GPU 0, under a rising load, once a second; of GPU 1 at other moments, and far more often in the second half.
    rising = [(at, 0, 2.5 * at) for at in range(41)]
    steady = [(at + 0.3, 1, 10) for at in (*range(20), *np.arange(20, 39, 0.05))]
    around = [(-3, 0, 100), (-3, 1, 100), (44, 0, 100), (44, 1, 100)]
    stamps = sorted([*rising, *steady, *around])
    samples = "".join(f"{T0 + at},{gpu},{gpu},{percent}\n" for at, gpu, percent in stamps)
    files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct\n" + samples)

    summed = figures.utilization(runs.find_runs(tmp_path)[0]).axes[1]

    # 50 % and 10 %.
    assert "utilization, summed (mean over the run: 30 % of all 2)" in legend(summed)


def test_a_gap_in_the_samples_is_no_idle_gpu(tmp_path: Path) -> None:
    files = write_run(tmp_path, "task-1")
    log_power(files, missing=range(5, 15))

    by_gpu = figures.utilization(runs.find_runs(tmp_path)[0]).axes[0]

    cells: np.ndarray = np.ma.filled(np.ma.asarray(by_gpu.images[0].get_array()), np.nan)
    unknown = np.isnan(cells).all(axis=0)
    # Of 24 s, from 5 s after the last sample (at 4 s) to the next (at 15 s).
    assert unknown.mean() == pytest.approx(6 / 24, abs=0.01)
    assert by_gpu.get_facecolor()[:3] == (0.8, 0.8, 0.8)


def test_completion_times_of_each_kind_have_a_histogram_and_an_ecdf(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1")

    warm, waited, cold, ecdf = figures.completion_times(runs.find_runs(tmp_path)[0]).axes

    assert [legend(axes) for axes in (warm, waited, cold)] == [
        ["warm (3), median 90 ms"],
        ["waited for a boot (1), median 500 ms"],
        ["cold start (1), median 900 ms"],
    ]
    for axes, number in ((warm, 3), (waited, 1), (cold, 1)):
        (bars,) = rectangles(axes).values()
        assert sum(top for *_, top in bars) == number
    assert legend(ecdf) == ["warm", "waited for a boot", "cold start"]
    steps = np.asarray(lines(ecdf)["warm"].get_xydata())
    assert steps == pytest.approx(np.array([[80, 0], [80, 100 / 3], [90, 200 / 3], [100, 100]]))
    assert ecdf.get_xlabel() == "Task completion time [ms]"


def test_a_single_request_is_seen_beside_a_bin_of_many(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [*(request(at / 10, 100) for at in range(300)), request(40, 150)])

    histogram = figures.completion_times(runs.find_runs(tmp_path)[0]).axes[0]

    assert (histogram.get_yscale(), histogram.get_ylabel()) == ("log", "Requests,\nlog")
    (bars,) = rectangles(histogram).values()
    assert [top for *_, top in bars] == [300, 1]
    bottom, top = (histogram.transData.transform((0, height))[1] for height in (bars[1][2], bars[1][3]))
    assert top - bottom > 0.05 * histogram.get_window_extent().height
    (drawn,) = histogram.collections
    assert drawn.get_linewidth() == [0]


def test_completion_times_far_apart_have_a_logarithmic_axis_that_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 5000, cold=True), *(request(at, 3) for at in range(6, 12))])

    *_, ecdf = figures.completion_times(runs.find_runs(tmp_path)[0]).axes

    assert (ecdf.get_xscale(), ecdf.get_xlabel()) == ("log", "Task completion time [s], log")


def test_throughput_counts_replies_and_divides_by_the_clients(tmp_path: Path) -> None:
    rows = [make_row(T0 + at, 0, 1 + (at >= 30), Outcome(500, 1, 1, False)) for at in range(60)]
    write_run(tmp_path, "task-1", rows)

    total, per_client = figures.throughput(runs.find_runs(tmp_path)[0]).axes

    for axes, values in ((total, [1.0] * 60), (per_client, [1.0] * 30 + [0.5] * 30)):
        (steps,) = axes.patches
        data = steps.get_data()  # type: ignore[attr-defined]
        assert data.values[:59] == pytest.approx(values[:59])
        assert data.edges[-1] == pytest.approx(59.5)
    assert total.get_ylabel() == "Served requests\n[1/s] (mean of 1 s)"


def test_the_parts_of_the_completion_time_stand_on_each_other(full: Run) -> None:
    (axes,) = figures.decomposition(full).axes

    # With one client 400, 100 and 1000 ms, with two 140 and 100 ms.
    assert rectangles(axes) == {
        "setup": [(0.5, 1.5, 0, 10), (1.5, 2.5, 0, 10)],
        "queue (waiting for a boot, too)": [(0.5, 1.5, 10, 30), (1.5, 2.5, 10, 30)],
        "kernel": [(0.5, 1.5, 30, 80), (1.5, 2.5, 30, 80)],
        "rest (transfer, waiting for a core)": [(0.5, 1.5, 80, 500), (1.5, 2.5, 80, 120)],
    }
    assert np.asarray(lines(axes)["median (not mean)"].get_xydata()).tolist() == [[1, 400], [2, 120]]
    assert axes.get_ylabel() == "Completion time [ms]\n(columns: mean, line: median)"
    assert axes.get_xlabel() == "Number of clients"


def test_parts_that_were_not_logged_are_named_as_part_of_the_rest(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", [request(0, 100)])

    (axes,) = figures.decomposition(runs.find_runs(tmp_path)[0]).axes

    assert rectangles(axes) == {
        "setup": [(0.5, 1.5, 0, 1)],
        "inner time (kernel, its transfers, waiting for others)": [(0.5, 1.5, 1, 51)],
        "rest (connection, waiting for a worker)": [(0.5, 1.5, 51, 100)],
    }


def test_many_clients_are_grouped_and_the_axis_says_so(tmp_path: Path) -> None:
    rows = [make_row(T0 + at, 0, 1 + at, Outcome(100, 1, 1, False)) for at in range(150)]
    write_run(tmp_path, "task-1", rows)

    (axes,) = figures.decomposition(runs.find_runs(tmp_path)[0]).axes

    assert axes.get_xlabel() == "Number of clients, in groups of 5"
    assert len(rectangles(axes)["setup"]) == 31


def test_a_boot_is_divided_into_the_phases_of_its_slowest_worker(full: Run) -> None:
    (axes,) = figures.cold_starts(full).axes

    bars = rectangles(axes)
    assert list(bars) == legend(axes) == ["fork", "import", "rest"]
    assert [bars[phase][0][:2] for phase in bars] == [
        pytest.approx((0, 100)),
        pytest.approx((100, 290)),
        pytest.approx((290, 300), abs=1e-3),
    ]
    assert [bars[phase][1][:2] for phase in bars] == [
        pytest.approx((0, 80)),
        pytest.approx((80, 180)),
        pytest.approx((180, 200), abs=1e-3),
    ]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["GPU 0 (at 0 s)", "GPU 1 (at 3 s)"]
    assert axes.get_xlabel() == "From the boot until its slowest worker was ready [ms]"


def test_without_phases_a_cold_start_stands_against_warm_requests_with_as_many_clients(tmp_path: Path) -> None:
    rows = [*ROWS[:3], request(11, 2800, cold=True), request(14, 70), request(15, 90)]
    boots = [Event("booted", T0 + at, gpu=gpu, num_workers=4) for gpu, at in enumerate((0.1, 13.6))]
    write_run(tmp_path, "task-1", rows, boots)

    (axes,) = figures.cold_starts(runs.find_runs(tmp_path)[0]).axes

    assert [bar[:2] for bar in rectangles(axes)["cold start (phases not logged)"]] == [(0, 0.9), (0, 2.8)]
    medians = lines(axes)["median of warm requests with as many clients"]
    assert np.asarray(medians.get_xydata()).tolist() == [[0.085, 0], [0.08, 1]]
    # When it was booted, as in the table of boots, and not when the request for it was sent.
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["GPU 0 (at 0 s)", "GPU 1 (at 14 s)"]
    assert axes.get_xlabel() == "Task completion time [s]"


def test_a_cold_start_of_an_unknown_gpu_is_named_by_its_time(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", happened=())

    (axes,) = figures.cold_starts(runs.find_runs(tmp_path)[0]).axes

    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cold start (at 0 s)"]


def test_the_workers_of_a_gpu_stand_on_each_other(full: Run) -> None:
    (axes,) = figures.requests_per_task_runner(full).axes

    assert rectangles(axes) == {
        "its workers, from the lowest number up": [(-0.4, 0.4, 0, 3), (0.6, 1.4, 0, 1)],
        "_": [(-0.4, 0.4, 3, 4)],
    }
    assert "mean (2)" in legend(axes)


def test_refusals_are_counted_beside_what_was_in_flight(tmp_path: Path) -> None:
    rows = [*(served(at, 900, 0) for at in range(20)), *(request(at, 1, "rejected") for at in (5.5, 5.6, 17.5))]
    write_run(tmp_path, "task-1", sorted(rows, key=lambda row: row.timestamp), BOOTS[:1])

    load, refused, so_far = figures.refusals(runs.find_runs(tmp_path)[0]).axes

    (peaks,) = load.patches
    assert set(peaks.get_data().values) == {1}  # type: ignore[attr-defined]
    assert lines(load)["booted workers"].get_ydata()[-1] == 4  # type: ignore[index]
    (numbers,) = refused.patches
    data = numbers.get_data()  # type: ignore[attr-defined]
    assert {float(data.edges[place].round(3)): data.values[place] for place in np.flatnonzero(data.values)} == {
        5.5: 2,
        17.5: 1,
    }
    assert refused.get_ylabel() == "Refused\nin 0.5 s"
    (steps,) = so_far.get_lines()
    assert np.asarray(steps.get_xydata()) == pytest.approx(
        np.array([[0, 0], [5.5, 1], [5.6, 2], [17.5, 3], [19.9, 3]]), abs=1e-5
    )


def test_repeats_are_their_median_and_a_band(tmp_path: Path) -> None:
    for number, outer_ms in enumerate((100, 110, 150), 1):
        rows = [request(0, 300, cold=True), *(request(at, outer_ms) for at in range(1, 20))]
        boots = [Event("booted", T0 + 4 * number, gpu=0, num_workers=4)]
        write_run(tmp_path, f"task-{number}", rows, boots)
    found = runs.find_runs(tmp_path)

    clients, task_runners, utilization, completion = figures.combined_all(found).axes

    assert legend(clients) == ["median of 3 repeats", "lowest to highest"]
    assert legend(completion) == ["cold start (3)"]
    for axes, at, (low, median, high) in (
        (clients, 15, (2, 2, 2)),
        (task_runners, 6, (0, 0, 1)),
        (task_runners, 10, (0, 1, 1)),
        (utilization, 10, (40.5, 40.5, 40.5)),
        (completion, 10, (100, 110, 150)),
    ):
        line = np.asarray(axes.get_lines()[0 if axes is not completion else 1].get_xydata())
        assert line[np.searchsorted(line[:, 0], at), 1] == pytest.approx(median)
        (band,) = [drawn for drawn in axes.collections if isinstance(drawn, PolyCollection)]
        corners = np.asarray(band.get_paths()[0].vertices)
        near = corners[np.abs(corners[:, 0] - at) < 0.05, 1]
        assert (near.min(), near.max()) == pytest.approx((low, high))
    assert completion.get_ylabel() == "Task completion\ntime [ms]\n(median of last 1 s)"
    assert clients.get_xlim() == pytest.approx((0, 19.15))


def test_sets_of_one_length_are_compared_over_seconds(full: Run) -> None:
    panels = figures.compared([full], [full, full], ("own", "published")).axes

    assert legend(panels[0]) == ["own (1 repeat)", "published (2 repeats)", "lowest to highest"]
    assert panels[3].get_xlabel() == "Experiment time [s]"
    # Of the clients, those alive are drawn, too: in each set one died.
    assert [len(panel.get_lines()) for panel in panels] == [4, 2, 2, 2]
    assert len({(line.get_color(), line.get_linestyle()) for line in panels[0].get_lines()}) == 4


def test_sets_far_apart_are_compared_over_shares_of_time_and_on_a_logarithmic_axis(tmp_path: Path) -> None:
    write_run(tmp_path / "own", "task-1", [request(at, 2) for at in range(10)])
    write_run(tmp_path / "other", "task-1", [request(at, 2000) for at in range(0, 100, 3)]).monitoring.unlink()
    own, other = (runs.find_runs(tmp_path / name) for name in ("own", "other"))

    panels = figures.compared(own, other, ("own", "other")).axes

    assert panels[3].get_xlabel() == "Share of each experiment's time [%]"
    assert legend(panels[0]) == ["own (1 repeat, 9 s)", "other (1 repeat, 101 s)"]
    assert panels[3].get_xlim() == (0, 100)
    assert panels[3].get_yscale() == "log"
    assert panels[3].get_ylabel() == "Task completion\ntime [ms], log\n(median of last 1 s)"
    for line in panels[0].get_lines():
        assert np.asarray(line.get_xdata())[-1] == pytest.approx(100)
    assert legend(panels[2]) == ["other (1 repeat, 101 s): not known"]


def test_each_set_is_smoothed_over_a_window_of_its_own_length(tmp_path: Path) -> None:
    for name, last in (("short", 10), ("long", 500)):
        files = write_run(tmp_path / name, "task-1", [request(0, 100), request(last, 1000)])
        samples = "".join(f"{T0 + at},0,0,{0 if at < 5 else 100}\n" for at in range(last + 1))
        files.monitoring.write_text("timestamp,gpu,bus_id,utilization_pct\n" + samples)
    short, long = (runs.find_runs(tmp_path / name) for name in ("short", "long"))

    utilization, completion = figures.compared(short, long, ("short", "long")).axes[2:]

    assert utilization.get_ylabel() == "Utilization [%]\n(all GPUs, mean\nof last 1 s or 5 s)"
    assert completion.get_ylabel().endswith("(median of last 1 s or 5 s)")
    # A mean over 5 s would still hold samples of the idle time.
    line = np.asarray(utilization.get_lines()[0].get_xydata())
    assert line[np.searchsorted(line[:, 0], 100 * 7 / 11), 1] == 100


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("results-a", "results-b"), ("results-a", "results-b")),
        (("results", "results"), ("own", "other")),
        (("a" * 60 + "b" * 24, "results"), ("a" * 12 + "…" + "b" * 11, "results")),
        (("a" * 30 + "1" + "a" * 30, "a" * 30 + "2" + "a" * 30), ("own", "other")),
    ],
)
def test_names_of_sets_fit_the_legend_and_differ(full: Run, names: tuple[str, str], shown: tuple[str, str]) -> None:
    figure = figures.compared([full, full], [full, full], names)

    labels = [label for label in legend(figure.axes[0]) if label != "lowest to highest"]
    assert labels == [f"{name} (2 repeats)" for name in shown]
    assert_readable(figure)
    assert figure.axes[0].get_window_extent().width > 0.8 * figure.bbox.width


@pytest.mark.parametrize("picture", GALLERY, ids=PICTURES)
def test_a_picture_is_saved_as_vectors_and_at_200_dpi(tmp_path: Path, full: Run, picture: Picture) -> None:
    figure = picture.draw(full)

    png = figures.save(figure, tmp_path / picture.name)

    header = png.read_bytes()[:24]
    width, height = int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
    assert (width, height) == (1440, round(figure.get_figheight() * 200))
    pdf = png.with_suffix(".pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    media_box = f"[ 0 0 518.4 {figure.get_figheight() * 72:g} ]".encode()
    assert media_box in pdf
