"""load.py with other shapes than the ramp: clients that are taken away, and requests that arrive when they do."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from loads import Load
from support import StartServer, eventually

from kaas import description
from kaas.arrivals import Poisson
from kaas.load.due import Due

SLOW = """
    import time
    def run_client(arg):
        time.sleep(float(arg))
        return 1000 * float(arg), 1.0, 0.5, False
"""
ASKS = """
    import time
    from kaas.client import Connection
    from kaas.results import Outcome
    kaas = Connection()
    def run_client(arg):
        reply = kaas.invoke(b"x")
        return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status, gpu=reply.gpu, worker=reply.worker)
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    load = Load(tmp_path)
    yield load
    load.end()


def noted(load: Load) -> dict[str, str]:
    return description.read(load.rows_file.with_suffix(".md"))


def test_each_arrival_is_taken_once_and_one_that_is_given_back_before_all_later_ones() -> None:
    due = Due((0.0, 1.0, 2.0, 3.0), 100.0)
    assert (due.take(), due.take(), due.take()) == (100.0, 101.0, 102.0)
    due.give_back(102.0)
    due.give_back(100.0)
    assert (due.take(), due.is_empty) == (100.0, False)
    assert list(due.until(102.5)) == [102.0]
    assert due.is_empty
    assert due.take() is None


def test_clients_that_a_shape_takes_away_end_in_order_and_idle_task_runners_are_stopped(
    load: Load, start_server: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "naps.py").write_text("import time\ndef call(payload):\n    time.sleep(0.02)\n    return payload\n")
    server = start_server(tmp_path / "naps.py", "-g", "2", "-m", "1", "--idle-timeout", "0.5")

    code, said = load.run(
        ASKS,
        "--shape",
        "updown",
        "--max-parallel",
        "2",
        "--interval",
        "4",
        "--server",
        server.address,
        "--max-late",
        "99",
    )

    assert code == 0, said
    assert "1 to 2 clients, 12 s in all" in said
    assert "step 3/3: clients 1," in said
    assert "died" not in said
    rows = load.rows()
    assert [row.concurrency for row in rows][-1] == 1
    assert {row.copy for row in rows if row.concurrency == 2} == {0, 1}
    assert {row.status for row in rows} == {"ok"}
    assert (noted(load)["Shape"], noted(load)["Shape clients"]) == ("updown", "2")
    last = max(row.timestamp for row in rows)
    stopped = [event.gpu for event in server.events() if event.event == "stopped" and event.timestamp < last]
    assert 1 in stopped, "while the other goes on"


def test_requests_count_from_their_arrival_whether_a_client_was_free_or_not_and_none_is_left_out(load: Load) -> None:
    code, said = load.run(SLOW, "--input", "0.3", "--shape", "constant:10", "--max-parallel", "2", "--interval", "1")

    assert code == 0, said
    assert "constant:10, sent by 2 clients, 2 s in all" in said
    assert load.rows_file.read_text().splitlines()[0].endswith(",error,arrived,lag_ms")
    rows = sorted(load.rows())
    assert [row.timestamp for row in rows] == [row.arrived for row in rows]
    assert len(rows) == 20
    gaps = [other.timestamp - one.timestamp for one, other in pairwise(rows)]
    assert gaps == pytest.approx([0.1] * 19, abs=1e-4), "as the rate has it, though two clients serve 7 a second"
    for row in rows:
        assert row.outer_time_ms == pytest.approx(300 + row.lag_ms, abs=1e-3)
    # The last of them waited for nine others of its client.
    assert max(row.lag_ms for row in rows) > 9 * 300 - 1900
    facts = noted(load)
    assert "requests were sent more than 10 ms after they had arrived, by up to " in facts["Sent late"]
    assert facts["Sent late"] in said
    assert "lag_ms" in load.rows_file.with_suffix(".md").read_text()


def test_requests_that_no_client_could_send_before_the_end_are_failed_rows(load: Load) -> None:
    code, said = load.run(
        SLOW, "--input", "0.5", "--shape", "constant:50", "--interval", "1", "--finish-timeout", "0.6"
    )

    assert code == 3, said
    rows = load.rows()
    assert len(rows) == 50
    unsent = [row for row in rows if row.status == "failed"]
    assert {row.error for row in unsent} == {"no client was free to send it before the end"}
    assert len(unsent) > 40
    assert all(row.outer_time_ms == pytest.approx(row.lag_ms) for row in unsent)


def test_a_client_that_dies_takes_with_it_the_request_that_it_was_in_and_no_other(load: Load) -> None:
    client = """
        import os, signal
        from pathlib import Path
        def run_client(arg):
            if not Path("died").exists():
                Path("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client, "--shape", "poisson:20", "--max-parallel", "2", "--interval", "1")

    assert code == 3, said
    assert "died (ended by SIGKILL)" in said
    rows = load.rows()
    assert len({row.arrived for row in rows}) == len(rows)
    assert Counter(row.status for row in rows)["failed"] == 1
    expected = list(Poisson(20.0, 2.0))
    begun = min(rows).timestamp - expected[0]
    assert [row.timestamp - begun for row in sorted(rows)] == pytest.approx(expected, abs=1e-4)


def test_what_a_client_was_to_send_that_is_killed_before_it_arrives_is_sent_by_another(load: Load) -> None:
    (load.folder / "times").write_text("0\n6\n")
    client = """
        import os
        from pathlib import Path
        def run_client(arg):
            Path("client").write_text(str(os.getpid()))
            return 1.0, 1.0, 0.0, False
    """
    process = load.start(client, "--shape", "arrivals:times", "--interval", "1")
    eventually(load.has_rows)
    os.kill(int((load.folder / "client").read_text()), signal.SIGKILL)
    said, _ = process.communicate()

    assert process.returncode == 0, said
    assert "client 0 died (ended by SIGKILL)" in said
    one, other = load.rows()
    assert {one.status, other.status} == {"ok"}
    assert other.timestamp - one.timestamp == pytest.approx(6.0, abs=1e-4)
