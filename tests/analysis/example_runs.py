"""Small results folders, and questions to a figure, for the tests of what is drawn."""

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kaas import description, events, results
from kaas.events import Event
from kaas.results import Outcome, RunFiles
from kaas.row import Row, encode_row, make_row

T0 = 1_700_000_000.0


def request(at: float, outer_ms: float, status: str = "ok", *, cold: bool = False, waited: bool = False) -> Row:
    outcome = Outcome(outer_ms, outer_ms / 2, 1.0, cold, status, waited)
    return make_row(T0 + at, 0, 1 + int(at // 10), outcome)


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
        file.writelines(encode_row(row) for row in rows)
    description.begin(files.description, files.requests, T0, {"Client": "a client"}, {"Host": "a host"})
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


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def legend(axes: Axes) -> list[str]:
    """Give what the legend names, read by rows."""
    drawn = axes.get_legend()
    if not drawn:
        return []
    columns = np.array_split([text.get_text() for text in drawn.get_texts()], drawn._ncols)  # type: ignore[attr-defined]
    return [str(label) for row in zip_longest(*columns) for label in row if label is not None]


def said(axes: Axes) -> list[str]:
    """Give the words that stand in a panel."""
    return [text.get_text() for text in axes.texts]
