"""A results folder as frames: find its runs, and put the files of each together.

Each frame has a column `elapsed`: seconds since the run's first request began. What a run lacks (a file, a column's
values, the end of a last line) becomes a sentence in `Run.notes`, and what cannot be right one in `Run.checks`; only a
folder of which no request can be shown is an error. The files are read in kaas.analysis.reading and checked in
kaas.analysis.validity; what is derived from them stands in kaas.analysis.series.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kaas import description, results
from kaas.analysis import nvidia_logs, reading
from kaas.analysis.run import Run, experiment_and_repeat
from kaas.analysis.validity import Check, beside, clock, ending, rows
from kaas.errors import ResultsError

__all__ = ["Run", "by_experiment", "find_runs", "newest_results"]

_BEGINS_AGAIN_AFTER_S = 1.0
"""Without a request in flight: a client sends one after the other, so where others left it takes no time to speak of,
while a second run takes longer than this to load what it needs."""
_ALWAYS = float("-inf"), float("inf")
_SERVER_WITHOUT_WORK_S = 60.0
"""How old all of a server's events may be: by then (`--idle-timeout`) it would have stopped what it booted."""


def find_runs(folder: Path) -> list[Run]:
    """Read every repeat in `folder`, in natural order of their names (`...-2` before `...-10`).

    A repeat whose requests are empty or cannot be read is left out, with a note on a run of the same experiment, or on
    the first.

    Raises:
        ResultsError: there is no such folder or no run in it, or the requests of none can be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder} is not a folder: name a results folder, such as results-autoscaling")
    tasks = sorted((path.stem for path in _request_files(folder)), key=_natural)
    if not tasks:
        raise ResultsError(f"{folder} holds no run (a .csv with the columns {', '.join(reading.FIRST_SEVEN)})")
    found: list[Run] = []
    left_out: dict[str, ResultsError] = {}
    for task in tasks:
        try:
            found.append(_read_run(results.RunFiles(folder, task), tasks))
        except ResultsError as error:
            left_out[task] = error
    if not found:
        raise left_out[tasks[0]]
    for task, why in left_out.items():
        siblings = (place for place, run in enumerate(found) if run.experiment == experiment_and_repeat(task)[0])
        place = next(siblings, 0)
        note = f"{task} is left out: {str(why).removeprefix(f'{folder}/')}."
        found[place] = replace(found[place], notes=(*found[place].notes, note))
    return found


def by_experiment(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Give the repeats of each experiment by its name, in the order in which they come."""
    experiments: dict[str, list[Run]] = {}
    for run in found:
        experiments.setdefault(run.experiment, []).append(run)
    return experiments


def newest_results(parent: Path) -> Path:
    """Give the `results-*` folder in `parent` whose requests were written last.

    Raises:
        ResultsError: none holds a request.
    """
    files = [path for folder in parent.glob("results-*") for path in _request_files(folder) if reading.has_rows(path)]
    if not files:
        raise ResultsError(f"no results-* folder in {parent} holds a run: run ./autoscale-cpu.sh first")
    return max(files, key=lambda path: path.stat().st_mtime).parent


def _request_files(folder: Path) -> list[Path]:
    """Give the files of requests in `folder`.

    One of 0 bytes counts, as it is where a run came to nothing, and one beside its description, whatever is in it.
    """
    others = ("-serverlogs", "-gpu-monitoring")
    files = [path for path in folder.glob("*.csv") if path.is_file() and not path.stem.endswith(others)]
    return [path for path in files if not path.stat().st_size or _is_meant_as_requests(path)]


def _is_meant_as_requests(path: Path) -> bool:
    return reading.is_of_requests(path) or path.with_name(f"{path.stem}.md").exists()


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_run(files: results.RunFiles, tasks: list[str]) -> Run:
    notes: list[str] = []
    described: list[str] = []
    parameters, told = _description(files.description, described)
    is_steps = ending.shape_of(parameters) == ending.STEPS
    read, steps, timed, checks = _checked(reading.read_requests(files.requests, notes), is_steps=is_steps)
    # Of another shape, clients may come again after nobody was there.
    requests, shown = _first_longest(files.requests.name, read, notes) if is_steps else (_in_time(read), _ALWAYS)
    start, end = rows.as_arrived(requests)["timestamp"].iloc[0], float(_ends(requests).max())
    if not (requests["status"] == "ok").any():
        notes.append(f"{files.requests.name} has no request that was served: there are no completion times to show.")
    notes += described
    # The original counted the clients when it wrote a row, at the request's end; ours when the request is sent.
    columns = reading.first_line(files.requests)
    at_end = "status" not in columns

    log, path = (_beside(wanted, files.task, tasks) for wanted in (files.serverlogs, files.monitoring))
    if shorter := [taken.name for taken in (log, path) if not taken.name.startswith(files.task)]:
        were = "were" if len(shorter) > 1 else "was"
        notes.append(f"{' and '.join(shorter)}, named for a shorter task, {were} read as its own.")
    events = beside.undo_in_events(reading.read_events(log, notes), steps, requests)
    events = _between(_in_time(events), shown)
    events = _of_the_run(log.name, events, (start - _SERVER_WITHOUT_WORK_S, end), notes)
    exact = not checks[-1].found  # where stamps were rounded, boots would seem too early
    monitoring, offset_h = _monitoring(path, steps, (start, end), notes, checks)
    monitoring = _of_the_run(path.name, _between(_in_time(monitoring), shown), (start, end), notes)
    checks += [
        beside.boots_can_be(events, requests if exact else requests.iloc[:0], whole_setup=at_end),
        of_the_run := beside.of_the_run(monitoring, events, requests),
    ]
    if of_the_run.found:
        monitoring, offset_h = monitoring.iloc[:0].copy(), None

    requests = rows.as_arrived(requests)
    for frame in (requests, events, monitoring):
        frame["elapsed"] = frame["timestamp"] - start
    events, within = ending.within(events, end - start)
    checks += [
        within,
        beside.covers(monitoring, end - start),
        ending.lasted(end - start, told),
        *([ending.came_to_end(requests, parameters, end - start)] if timed else []),
        ending.stood_still(parameters),
    ]
    requests["sent"] = requests["elapsed"] + requests["lag_ms"] / 1000
    requests["counted"] = _ends(requests, "elapsed") if at_end else requests["sent"]
    if is_steps:
        _note_silent_clients(requests, notes)
    return Run(
        files.task,
        parameters,
        requests,
        events,
        monitoring,
        tuple(notes),
        files.folder,
        offset_h,
        told,
        tuple(checks),
        timed,
        tuple(read_from for read_from in (files.requests, files.description, log, path) if read_from.is_file()),
        "waited_for_boot" in columns,
    )


def _checked(
    requests: pd.DataFrame, *, is_steps: bool
) -> tuple[pd.DataFrame, tuple[clock.Step, ...], bool, list[Check]]:
    """Put the rules on single rows and on their clock to requests in the order of their file; give what is left.

    Raises:
        ResultsError: nothing is.
    """
    requests, seconds = rows.in_seconds(requests)
    requests, possible = rows.possible(requests)
    if requests.empty:
        raise ResultsError(f"no request is left: {possible.found}")
    requests, once = rows.once(requests)
    requests = rows.as_sent(requests)
    is_sorted = clock.is_by_begin(requests)
    requests, steps, set_at = clock.undo(requests, pauses_tell=is_steps)
    requests, together = rows.together(requests, None if is_sorted else clock.overlapping(requests))
    timed, overlaps = clock.overlaps(requests)
    return requests, steps, timed, [seconds, possible, rows.parts_fit(requests), once, together, set_at, overlaps]


def _monitoring(
    path: Path, steps: Sequence[clock.Step], times: tuple[float, float], notes: list[str], checks: list[Check]
) -> tuple[pd.DataFrame, float | None]:
    """Read the samples, and bring their time stamps to UTC; say by how much they were ahead, if they were local."""
    monitoring, local = reading.read_monitoring(path, notes)
    monitoring, in_order = beside.in_order(monitoring, local=local)
    checks.append(in_order)
    if not local or monitoring.empty:
        return beside.undo_ahead(monitoring, steps), None
    try:
        offset_h = nvidia_logs.zone_offset_h(monitoring, *times)
    except ResultsError as error:
        notes.append(f"{path.name} is left out: {error}.")
        return monitoring.iloc[:0].copy(), None
    monitoring["timestamp"] -= offset_h * 3600
    return beside.undo_ahead(monitoring, steps), offset_h


def _in_time(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("timestamp", kind="stable", ignore_index=True)


def _description(path: Path, notes: list[str]) -> tuple[dict[str, str], description.Told]:
    try:
        parameters, told = description.read(path), description.read_told(path)
    except ValueError:  # not UTF-8
        parameters, told = {}, description.Told()
    if not parameters:
        notes.append(f"{path.name} is missing or empty: the parameters are not known.")
    return parameters, told


def _ends(requests: pd.DataFrame, begins: str = "timestamp") -> "pd.Series[float]":
    return requests[begins] + requests["outer_time_ms"] / 1000


def _note_silent_clients(requests: pd.DataFrame, notes: list[str]) -> None:
    silent, never = ending.silent_clients(requests)
    became = []
    if len(silent):
        since = " to ".join(dict.fromkeys(f"{second:.0f}" for second in (silent.min(), silent.max())))
        became.append(f"{len(silent)} had no more replies after {since} s")
    if never:
        became.append(f"{len(never)} never had any")
    if became:
        notes.append(f"Of {int(requests['copy'].max()) + 1} clients {' and '.join(became)}.")


def _first_longest(name: str, in_file: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Give the requests of one run in order of time, and the times between which nothing belongs to another.

    A file may hold several runs, if they were written to one name: with each, the clients fall to as few as at first,
    after nothing was in flight for longer than a client takes to ask again. Their rows stand one after the other in the
    file: where they do not, it is one run whose clock was set.
    """
    requests = in_file.sort_values("timestamp", kind="stable")
    idle_since = _ends(requests).cummax().shift(fill_value=float("inf"))
    clients = requests["concurrency"]
    fewest = clients.iloc[0]
    begins = (requests["timestamp"] > idle_since + _BEGINS_AGAIN_AFTER_S) & (clients <= fewest)
    begins &= clients.shift(fill_value=fewest) > fewest
    number = begins.cumsum()
    if not begins.any() or not number.sort_index().is_monotonic_increasing:
        return requests.reset_index(drop=True), _ALWAYS
    sizes = number.value_counts(sort=False).sort_index()
    chosen = int(sizes.idxmax())
    notes.append(
        f"{name} holds {len(sizes)} runs one after the other ({', '.join(map(str, sizes))} requests): "
        f"only number {chosen + 1}, the largest, is shown."
    )
    before, after = requests[number < chosen], requests[number > chosen]
    shown = (
        float(_ends(before).max()) if len(before) else float("-inf"),
        float(after["timestamp"].min()) if len(after) else float("inf"),
    )
    return requests[number == chosen].reset_index(drop=True), shown


def _between(frame: pd.DataFrame, times: tuple[float, float]) -> pd.DataFrame:
    return frame[frame["timestamp"].between(*times)].reset_index(drop=True)


def _of_the_run(name: str, frame: pd.DataFrame, times: tuple[float, float], notes: list[str]) -> pd.DataFrame:
    """Leave out the whole of a file if nothing in it is of these times or around them: it is of something else."""
    if frame.empty or (frame["timestamp"].iloc[0] <= times[1] and frame["timestamp"].iloc[-1] >= times[0]):
        return frame
    where = "before" if frame["timestamp"].iloc[-1] < times[0] else "after"
    notes.append(f"{name} is left out: all of it is of a time {where} the requests, so it belongs to something else.")
    return frame.iloc[:0].copy()


def _beside(path: Path, task: str, tasks: list[str]) -> Path:
    """Find the file meant by `path`: the published ones are named for a shorter task than their requests are."""
    if path.exists():
        return path
    ending = path.name.removeprefix(task)
    names = [other.name.removesuffix(ending) for other in path.parent.glob("*" + ending)]
    near = [name for name in names if name not in tasks and _shortens(name, task)]
    return path.with_name(near[0] + ending) if len(near) == 1 else path


def _shortens(name: str, task: str) -> bool:
    """Say if `name` is `task` with some words left out, for the same repeat."""
    words, longer = name.split("-"), task.split("-")
    remaining = iter(longer)
    return words[-1] == longer[-1] and all(word in remaining for word in words)
