"""Whether a run was what it should be: when it need not go on, what its exit code says, and its last line."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from loads import NO_ROOM, Load
from support import StartServer

from kaas import description


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    load = Load(tmp_path)
    yield load
    load.end()


def answers(*outcomes: str) -> str:
    """Make a client that is answered so in turn, each a status and an error, quoted."""
    return f"""
        import itertools
        from kaas.results import Outcome
        turn = itertools.cycle([{", ".join(f"({outcome})" for outcome in outcomes)}])
        def run_client(arg):
            status, error = next(turn)
            return Outcome(1.0, 1.0, 0.0, False, status, error=error)
    """


BUSY = "'rejected', 'all 1 x 1 workers are busy'"
BROKEN = "'kernel_error', 'does not converge'"
NO_GPU = "'rejected', 'no GPU is left, for it cannot load the kernel'"


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ((BROKEN, BUSY), r"nothing was served up to the end of step 1/6 \(\d+ kernel_error, most often: does not "),
        ((NO_GPU,), r"nothing can be served after step 1/6 \(no GPU is left, for it cannot load the kernel\)"),
        ((BROKEN, NO_GPU), r"nothing can be served after step 1/6 \(no GPU is left, for it cannot load the kernel\)"),
    ],
    ids=["failures and refusals", "no GPU is left", "failures, and no GPU is left"],
)
def test_a_run_of_which_nothing_can_come_ends_after_its_first_step(
    load: Load, outcomes: tuple[str, ...], why: str
) -> None:
    code, said = load.run(answers(*outcomes), "--max-parallel", "6", "--interval", "1")

    assert code in {1, 3}, said
    assert re.search(f"^{why}.*; KEEP_GOING=1 goes on: finishing", said, re.M), said
    assert "step 2/6" not in said
    assert re.match(why, description.read(load.rows_file.with_suffix(".md"))["Ended"])

    said = load.run(answers(*outcomes), "--max-parallel", "2", "--task-name", "again", "--keep-going")[1]
    assert "step 2/2" in said


def test_a_run_that_loses_its_last_gpu_after_it_has_served_ends_with_an_error(load: Load) -> None:
    client = answers(NO_GPU).replace("next(turn)", "next(turn) if made.exists() else (made.touch(), ('ok', ''))[1]")
    client = client.replace("import itertools", "import itertools, pathlib; made = pathlib.Path('made')")

    code, said = load.run(client, "--max-parallel", "6", "--interval", "1")

    assert code == 3, said
    assert "step 1/6" in said
    assert re.search(r"nothing can be served after step \d+/6 \(no GPU is left", said), said


@pytest.mark.parametrize(
    "outcomes",
    [(BUSY,), (BUSY, NO_GPU), ("'ok', ''", BROKEN, BUSY)],
    ids=["refusals", "a GPU comes back", "some are served"],
)
def test_a_storm_of_refusals_does_not_end_a_run(load: Load, outcomes: tuple[str, ...]) -> None:
    said = load.run(answers(*outcomes), "--max-parallel", "3", "--interval", "1")[1]

    assert "step 3/3" in said


STEADY = "def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n"


@pytest.mark.parametrize(
    ("cleanup", "how"),
    [
        ("__import__('time').sleep(3600)", "2, most often: killed after 0.5 s"),
        ("raise ValueError('in use')", "2, most often: client.py, line 4, in cleanup: ValueError: in use"),
        ("__import__('os')._exit(7)", "2, most often: ended with exit code 7"),
    ],
    ids=["hangs", "raises", "dies"],
)
def test_clients_that_do_not_end_in_order_are_said_noted_and_an_error(load: Load, cleanup: str, how: str) -> None:
    client = STEADY + f"def cleanup():\n    {cleanup}\n"

    code, said = load.run(client, "--min-parallel", "2", "--max-parallel", "2", "--finish-timeout", "0.5")

    assert code == 3, said
    assert f"clients that did not end in order: {how}" in said
    assert description.read(load.rows_file.with_suffix(".md"))["Clients that did not end in order"] == how
    assert {row.status for row in load.rows()} == {"ok"}


def test_a_client_that_leaves_in_mid_run_and_does_not_end_in_order_is_an_error(load: Load) -> None:
    client = """
        number = 0
        def prepare(arg, copy):
            global number
            number = copy
        def run_client(arg):
            return 1.0, 1.0, 0.0, False
        def cleanup():
            if number:
                raise ValueError("in use")
    """
    code, said = load.run(client, "--max-parallel", "2", "--shape", "updown")

    assert code == 3, said
    assert "step 3/3: clients 1" in said
    assert "clients that did not end in order: 1, most often: client.py, line 10, in cleanup: ValueError" in said


def test_the_last_line_says_how_many_requests_failed_and_why_whatever_else_there_was_to_say(
    load: Load, start_server: StartServer
) -> None:
    client = """
        from kaas.client import Connection
        kaas = Connection()
        def run_client(arg):
            kaas.invoke(b"")
            raise ValueError("does not converge")
    """
    code, said = load.run(client, "--server", start_server("echo").address, "--keep-going")

    assert code == 3, said
    assert "rows and the server's counts differ: ok: 0 rows" in said
    number, last = len(load.rows()), said.splitlines()[-1]
    assert last.startswith(f"no request was served; {number} of {number} requests failed: {number} failed, most often:")
    assert last.endswith("in run_client: ValueError: does not converge")
    assert description.read(load.rows_file.with_suffix(".md"))["Went wrong"] == last


def test_the_last_line_of_a_run_that_ended_early_says_why(load: Load) -> None:
    code, said = load.run(NO_ROOM, "--interval", "600")

    assert code == 1, said
    last = "client 0 cannot go on (no room for the rows of requests); no request was served"
    assert said.splitlines()[-1] == last
    assert description.read(load.rows_file.with_suffix(".md"))["Went wrong"] == last


def test_failures_that_are_allowed_are_said_and_nothing_went_wrong(load: Load) -> None:
    client = answers(BROKEN, *["'ok', ''"] * 10_000)

    code, said = load.run(client, "--max-failed", "1")

    assert code == 0, said
    assert said.splitlines()[-1].endswith("requests failed: 1 kernel_error, most often: does not converge")
    assert "Went wrong" not in description.read(load.rows_file.with_suffix(".md"))
