"""The load generator as a real process, with client modules that need no server unless they say so."""

import itertools
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loads import NO_ROOM, Load
from support import eventually, exists, read_until

from kaas import description
from kaas.clock import Watch
from kaas.row import COLUMNS


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    load = Load(tmp_path)
    yield load
    load.end()


STEADY = """
    import time
    def run_client(arg):
        time.sleep(0.002)
        return 2.0, 1.0, 0.5, False
"""


def test_clients_are_added_step_by_step_and_every_row_says_how_many_were_running(load: Load) -> None:
    code, said = load.run(STEADY, "--min-parallel", "2", "--max-parallel", "6", "--step-size", "2")

    assert code == 0, said
    rows = load.rows()
    assert {row.concurrency for row in rows} == {2, 4, 6}
    assert {row.copy for row in rows} == set(range(6))
    assert {row.status for row in rows} == {"ok"}
    assert "step 3/3: clients 6," in said
    assert "ok, warm" in said


def test_the_description_explains_every_column_the_parameters_and_the_machine(load: Load) -> None:
    load.run(STEADY, "--experiment-description", "A test")

    text = load.rows_file.with_suffix(".md").read_text()
    assert all(f"`{column}`" in text for column in COLUMNS)
    facts = description.read(load.rows_file.with_suffix(".md"))
    assert facts["Input"] == "7"
    assert facts["Experiment description"] == "A test"
    assert {"Host", "OS", "CPU", "Memory", "GPUs", "Python", "Git revision", "Time zone"} <= set(facts)


@pytest.mark.parametrize("segments", ["fresh", "kept"])
def test_the_description_says_whether_segments_are_kept(load: Load, segments: str) -> None:
    load.marked.environment["SEGMENTS"] = segments
    load.run(STEADY)

    assert description.read(load.rows_file.with_suffix(".md"))["Segments"] == segments


def test_a_client_gets_its_input_and_its_number_and_is_cleaned_up(load: Load) -> None:
    client = """
        from pathlib import Path
        def prepare(arg, copy):
            Path(f"prepared-{arg}-{copy}").touch()
        def run_client(arg):
            return 1.0, 1.0, 0.0, arg == "7"
        def cleanup():
            Path("cleaned").touch()
    """
    code, said = load.run(client, "--min-parallel", "2", "--max-parallel", "2")

    assert code == 0, said
    assert {path.name for path in load.folder.glob("prepared-*")} == {"prepared-7-0", "prepared-7-1"}
    assert (load.folder / "cleaned").exists()
    assert all(row.cold_start for row in load.rows())


def test_a_request_that_fails_in_the_client_is_a_row_and_the_client_goes_on(load: Load) -> None:
    client = """
        calls = 0
        def run_client(arg):
            global calls
            calls += 1
            if calls == 1:
                raise RuntimeError("lost my way")
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client)

    assert code == 3, said
    first, *others = load.rows()
    assert (first.status, first.inner_time_ms, first.error) == (
        "failed",
        0.0,
        "client.py, line 7, in run_client: RuntimeError: lost my way",
    )
    assert {row.status for row in others} == {"ok"}


def test_a_refused_client_waits_before_it_asks_again(load: Load) -> None:
    refused = """
        from kaas.results import Outcome
        def run_client(arg):
            return Outcome(0.1, 0.0, 0.0, False, "rejected")
    """

    code, said = load.run(refused, "--interval", "1", "--backoff", "0.3")

    assert code == 1, said
    assert "no request was served" in said
    begun = [row.timestamp for row in load.rows()]
    assert {row.status for row in load.rows()} == {"rejected"}
    assert all(later - earlier >= 0.3 for earlier, later in itertools.pairwise(begun))


def test_a_client_that_dies_is_said_and_another_takes_its_place(load: Load) -> None:
    client = """
        import os, signal
        from pathlib import Path
        def run_client(arg):
            if not Path("died").exists():
                Path("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client, "--interval", "2")

    assert code == 3, said
    assert "client 0 died (ended by SIGKILL)" in said
    assert {row.copy for row in load.rows()} == {0}
    assert {row.concurrency for row in load.rows()} == {1}


def test_a_wrong_product_is_counted_said_and_an_error(load: Load) -> None:
    client = """
        from kaas.results import Outcome
        def run_client(arg):
            return Outcome(5.0, 4.0, 0.0, False, "wrong_result")
    """
    code, said = load.run(client)

    assert code == 3
    assert "requests failed: " in said
    assert "wrong_result" in said
    assert {row.inner_time_ms for row in load.rows()} == {0.0}


@pytest.mark.parametrize(
    ("client", "complaint"),
    [
        ("def prepare(arg, copy):\n    raise ValueError('no such input')\n", "ValueError: no such input"),
        ("def prepare(arg, copy):\n    raise ConnectionResetError('by my server')\n", "by my server"),
        ("raise OSError('no such library')\n", "no such library"),
    ],
    ids=["prepare fails", "prepare fails by a connection of its own", "import fails"],
)
def test_a_client_that_cannot_begin_is_one_line_and_leaves_no_results(load: Load, client: str, complaint: str) -> None:
    code, said = load.run(client + "def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n")

    assert code == 1
    assert complaint in said
    assert len(said.splitlines()) == 1
    assert not load.rows_file.exists()


def test_a_server_that_is_not_there_is_waited_for_and_then_one_line(load: Load) -> None:
    code, said = load.run(STEADY, "--server", "127.0.0.1:9", "--ready-timeout", "0.3")

    assert code == 1
    assert "no server is ready after 0.3 s" in said
    assert len(said.splitlines()) == 1


def test_an_earlier_run_is_never_overwritten(load: Load) -> None:
    assert load.run(STEADY)[0] == 0
    before = load.rows_file.read_bytes()

    code, said = load.run(STEADY)

    assert code == 1
    assert "holds an earlier run" in said
    assert load.rows_file.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_keeps_the_data(load: Load, number: signal.Signals) -> None:
    process = load.start(STEADY, "--interval", "600")
    eventually(load.has_rows)

    process.send_signal(number)

    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "ok, warm" in said
    assert description.read(load.rows_file.with_suffix(".md"))["Requests ok"] == str(len(load.rows()))


def test_a_second_signal_ends_it_though_a_request_hangs(load: Load) -> None:
    client = """
        import time
        from pathlib import Path
        def run_client(arg):
            Path("hangs").touch()
            time.sleep(3600)
    """
    process = load.start(client, "--interval", "600")
    eventually((load.folder / "hangs").exists)

    process.send_signal(signal.SIGINT)
    before = read_until(process, "Ctrl-C: finishing the requests in flight; Ctrl-C again stops at once\n")
    process.send_signal(signal.SIGINT)

    said, _ = process.communicate()
    assert process.returncode == 130, [*before, said]
    assert "at once" in said


def test_killing_it_loses_no_finished_request_and_leaves_no_client(load: Load) -> None:
    client = """
        import os
        finished = os.open("finished", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open("scratch", "w") as file:
            file.write(os.environ["KAAS_SCRATCH"])
        def run_client(arg):
            os.write(finished, b"x")
            return 1.0, 1.0, 0.0, False
    """
    process = load.start(client, "--interval", "600", "--min-parallel", "3", "--max-parallel", "3")
    eventually(load.has_rows)
    clients = psutil.Process(process.pid).children(recursive=True)
    scratch = Path((load.folder / "scratch").read_text())

    process.kill()

    process.communicate()
    eventually(lambda: not any(client.is_running() for client in clients))
    assert not scratch.exists()
    assert load.rows_file.read_bytes().endswith(b"\n")
    assert Counter(row.status for row in load.rows()) == {"ok": (load.folder / "finished").stat().st_size}


def test_the_load_ends_though_its_fork_server_is_killed(load: Load) -> None:
    process = load.start(STEADY, "--interval", "600", "--min-parallel", "2", "--max-parallel", "2")
    eventually(load.has_rows)
    (forkserver,) = psutil.Process(process.pid).children()
    orphans = forkserver.children()

    forkserver.kill()

    eventually(lambda: not any(exists(orphan.pid) for orphan in orphans))
    seen = len(load.rows())
    eventually(lambda: len(load.rows()) > seen, what="others have taken their places")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "died" in said


def test_rows_that_cannot_be_written_end_the_run_and_it_is_said(load: Load) -> None:
    code, said = load.run(NO_ROOM, "--interval", "600")

    assert code == 1
    assert "client 0 cannot go on (no room for the rows of requests)" in said


def test_a_clock_that_is_set_in_mid_run_moves_no_time_stamp_and_is_noted(load: Load) -> None:
    set_back = """
        import time
        from pathlib import Path
        wall, rows = time.time, Path("results-test/task.csv")
        time.time = lambda: wall() - 1000 * (rows.exists() and rows.read_text().count(chr(10)) > 3)
    """
    code, said = load.run(STEADY, "--interval", "2", first=set_back)

    assert code == 0, said
    stamps = [row.timestamp for row in load.rows()]
    assert max(stamps) - min(stamps) < 30
    text = load.rows_file.with_suffix(".md").read_text()
    facts = description.read(load.rows_file.with_suffix(".md"))
    assert facts["Clock notes"].startswith("the wall clock was set by -1000.0"), text


def test_a_run_that_stood_still_says_so(load: Load) -> None:
    process = load.start(STEADY, "--interval", "60")
    eventually(load.has_rows)
    process.send_signal(signal.SIGSTOP)
    time.sleep(Watch.GAP + 1)  # not to be safe: this is what the test is about
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    process.communicate()

    assert "stood still for" in description.read(load.rows_file.with_suffix(".md"))["Clock notes"]


def test_clients_that_take_long_to_prepare_are_late_which_is_said_noted_and_an_error(load: Load) -> None:
    client = """
        import time
        def prepare(arg, copy):
            if copy:
                time.sleep(2.5)
        def run_client(arg):
            time.sleep(0.01)
            return 10.0, 10.0, 0.0, False
    """
    code, said = load.run(client, "--max-parallel", "3", "--interval", "1.5")

    assert code == 3, said
    assert [f"step {step}/3: " in said for step in (1, 2, 3)] == [True, True, True]
    facts = description.read(load.rows_file.with_suffix(".md"))
    assert "step 2/3 had its 2 clients" in facts["Late steps"]
    assert facts["Late steps"].split("; ")[0] in said


def test_clients_are_prepared_before_they_are_due_so_none_is_late(load: Load) -> None:
    client = """
        import time
        def prepare(arg, copy):
            time.sleep(0.8)
        def run_client(arg):
            time.sleep(0.01)
            return 10.0, 10.0, 0.0, False
    """
    code, said = load.run(client, "--max-parallel", "3", "--interval", "2")

    assert code == 0, said
    assert "Late steps" not in description.read(load.rows_file.with_suffix(".md"))
    first = {copy: min(row.timestamp for row in load.rows() if row.copy == copy) for copy in (0, 1, 2)}
    assert first[1] - first[0] > 1.9, "none begins before it is due"


def test_a_step_in_which_every_request_fails_ends_the_run_unless_told_to_go_on(load: Load) -> None:
    client = "def run_client(arg):\n    raise ValueError('does not converge')\n"

    code, said = load.run(client, "--max-parallel", "50", "--interval", "1")

    assert code == 3, said
    assert re.search(
        r"^every request of step 1/50 failed \(\d+ failed, most often: "
        r"client.py, line 2, in run_client: ValueError: does not converge\)",
        said,
        re.M,
    )
    assert "step 2/50" not in said
    assert "every request of step 1/50 failed" in description.read(load.rows_file.with_suffix(".md"))["Ended"]

    code, said = load.run(client, "--max-parallel", "2", "--task-name", "again", "--keep-going")
    assert code == 3, said
    assert "step 2/2" in said


def test_failed_requests_up_to_a_limit_are_none_of_the_runs(load: Load) -> None:
    client = """
        import itertools
        turn = itertools.count()
        def run_client(arg):
            if next(turn) < 2:
                raise ValueError
            return 1.0, 1.0, 0.0, False
    """
    assert load.run(client, "--max-failed", "2")[0] == 0
    code, said = load.run(client, "--max-failed", "1", "--task-name", "again")
    assert code == 3
    assert re.search(
        r"^2 of \d+ requests failed: 2 failed, most often: client.py, line 6, in run_client: ValueError", said, re.M
    )


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (
            "Outcome(1.0, 1.0, 0.0, False, gpu='GPU-abc')",
            "run_client returned gpu='GPU-abc': give a whole number, or None",
        ),
        ("Outcome(1.0, 1.0, 0.0, False, 'so\\nso')", r"run_client returned status='so\nso': give one of ok, "),
        ("Outcome(float('nan'), 1.0, 0.0, False)", "run_client returned outer_ms=nan: give milliseconds of at least 0"),
        ("Outcome('long', 1.0, 0.0, False)", "run_client returned outer_ms='long': give milliseconds"),
        ("(1.0, 1.0, 0.0)", "run_client returned (1.0, 1.0, 0.0): return (outer_ms, inner_ms, setup_ms, cold_start)"),
        ("None", "run_client returned None: return (outer_ms, inner_ms, setup_ms, cold_start)"),
    ],
)
def test_an_outcome_with_an_odd_field_is_a_failed_row_that_names_it(load: Load, outcome: str, complaint: str) -> None:
    client = f"from kaas.results import Outcome\ndef run_client(arg):\n    return {outcome}\n"

    code, said = load.run(client)

    assert code == 3, said
    assert "Traceback" not in said
    assert {row.status for row in load.rows()} == {"failed"}
    assert load.rows()[0].error.startswith(f"client.py, line 2: {complaint}")
    assert complaint in said


def test_an_outcomes_fields_are_made_what_they_stand_for(load: Load) -> None:
    client = """
        import numpy as np
        from kaas.results import Outcome
        def run_client(arg):
            more = {"waited_for_boot": 1, "gpu": np.int64(3), "error": "a\\n, b"}
            return Outcome(np.float64(2.0), 1, np.float32(0), np.bool_(True), **more)
    """
    assert load.run(client)[0] == 0
    row = load.rows()[0]
    assert (row.cold_start, row.waited_for_boot, row.gpu, row.error) == (True, True, 3, "a , b")


def test_a_line_that_is_no_row_is_counted_and_the_run_goes_on(load: Load) -> None:
    process = load.start(STEADY, "--interval", "600")
    eventually(load.has_rows)
    with load.rows_file.open("a") as file:
        file.write("what,is,this\n")
    seen = len(load.rows_file.read_bytes())
    eventually(lambda: len(load.rows_file.read_bytes()) > seen + 1000)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()

    assert process.returncode == 130, said
    facts = description.read(load.rows_file.with_suffix(".md"))
    assert facts["Malformed rows"] == "1"
    assert facts["Ended"] == "Ctrl-C"


def test_a_client_that_exits_with_1_is_a_failed_request_and_another_takes_its_place(load: Load) -> None:
    client = """
        import os
        from pathlib import Path
        def run_client(arg):
            if not Path("exited").exists():
                Path("exited").touch()
                os._exit(1)
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client, "--interval", "2")

    assert code == 3, said
    assert "client 0 died (ended with exit code 1)" in said
    rows = Counter((row.status, row.error) for row in load.rows())
    assert rows.pop(("failed", "the client ended with exit code 1")) == 1
    assert set(rows) == {("ok", "")}


def test_no_two_clients_have_one_number_after_their_fork_server_was_killed(load: Load) -> None:
    client = """
        import os, time
        from pathlib import Path
        number = 0
        def prepare(arg, copy):
            global number
            number = copy
        def run_client(arg):
            Path(f"{number}.{os.getpid()}").touch()
            time.sleep(0.2)
            Path(f"{number}.{os.getpid()}").unlink()
            return 200.0, 200.0, 0.0, False
    """
    process = load.start(client, "--interval", "600")
    eventually(lambda: list(load.folder.glob("0.*")))
    (forkserver,) = psutil.Process(process.pid).children()
    before = {child.pid for child in forkserver.children()}

    forkserver.kill()

    mine = {f"0.{pid}" for pid in before}
    eventually(lambda: any(path.name not in mine for path in load.folder.glob("0.*")))
    assert not any(map(exists, before))
    process.send_signal(signal.SIGINT)
    process.communicate()


MAP = "with {}(1{}) as pool: (doubled,) = pool.map(double, [Number(int(arg))])"
WAYS = {
    method: MAP.format(f"multiprocessing.get_context({method!r}).Pool", "")
    for method in ("spawn", "forkserver", "fork")
}
WAYS |= {
    f"executor, {method}": MAP.format("ProcessPoolExecutor", f", multiprocessing.get_context({method!r})")
    for method in ("spawn", "forkserver")
}
WAYS["joblib"] = """import os; os.environ["JOBLIB_TEMP_FOLDER"] = "."
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    (doubled,) = Parallel(n_jobs=2)([delayed(double)(Number(int(arg)))])
    get_reusable_executor().shutdown()"""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_client_module_gives_work_to_processes_of_its_own(load: Load, way: str) -> None:
    client = f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

class Number:
    def __init__(self, value):
        self.value = value

def double(number):
    return Number(2 * number.value)

def run_client(arg):
    {way}
    return float(doubled.value), 1.0, 0.0, False
"""
    code, said = load.run(client)

    assert code == 0, said
    assert {row.outer_time_ms for row in load.rows()} == {14.0}
