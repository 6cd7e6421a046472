"""What goes wrong under load: every request has one row all the same, and nothing is left behind."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
from loads import Load
from support import Server, StartServer, eventually

from kaas import description, segments

IMPATIENT = "from kaas.load import server; server._GONE_AFTER = 0.5"

CALLS = """
    import os, time
    from kaas import client
    from kaas.results import Outcome
    client._GRACE = 0.1
    kaas = client.Connection()
    calls = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def run_client(arg):
        os.write(calls, b"x")
        begun = time.perf_counter()
        reply = kaas.invoke(b"", timeout=60.0)
        ms = (time.perf_counter() - begun) * 1000
        return Outcome(ms, ms, 0.0, reply.cold_start, reply.status, error="" if reply.status == "ok" else reply.status)
"""

SHARES = """
    import os, signal, time
    from pathlib import Path
    from kaas.matrices import shared_matrix
    def is_first():
        try:
            return not Path("first").touch(exist_ok=False)
        except FileExistsError:
            return False
    def run_client(arg):
        with shared_matrix(4) as a, shared_matrix(4) as c:
            if is_first():
                {fault}
        return 1.0, 1.0, 0.0, False
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    load = Load(tmp_path)
    yield load
    load.end()


def assert_every_call_is_one_row(load: Load) -> None:
    assert len(load.rows()) == (load.folder / "calls").stat().st_size


def assert_accounts_agree(load: Load, server: Server) -> Counter[str]:
    """Check that the rows are what the server has counted, by status; `failed` is what the client never heard of."""
    rows, counted = Counter(row.status for row in load.rows()), server.counters()
    assert {status: counted.get(status, 0) for status in rows if status != "failed"} == {
        status: number for status, number in rows.items() if status != "failed"
    }
    assert counted["accepted"] == rows.total() - rows["failed"] + counted.get("abandoned", 0)
    assert server.status()["in_flight"] == 0
    return rows


def test_the_request_of_a_client_that_is_killed_is_a_row(load: Load) -> None:
    client = """
        import os, signal, time
        from pathlib import Path
        def run_client(arg):
            if not Path("died").exists():
                Path("died").write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client, "--interval", "2")

    assert code == 3, said
    (row,) = (row for row in load.rows() if row.status != "ok")
    assert (row.status, row.error) == ("failed", "the client ended by SIGKILL")
    assert 0 <= float((load.folder / "died").read_text()) - row.timestamp < row.outer_time_ms / 1000
    assert (row.copy, row.concurrency) == (0, 1)


def test_a_client_that_is_killed_after_its_row_is_written_gets_no_second_one(load: Load) -> None:
    client = """
        import os, signal
        from pathlib import Path
        from kaas.load.board import Board
        def killed(self, client):
            if not Path("died").exists():
                Path("died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        Board.finish = killed
        calls = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        def run_client(arg):
            os.write(calls, b"x")
            return 1.0, 1.0, 0.0, False
    """
    code, said = load.run(client, "--interval", "2")

    assert code == 0, said
    assert "died (ended by SIGKILL)" in said
    assert Counter(row.status for row in load.rows()) == {"ok": (load.folder / "calls").stat().st_size}


DIES_IN_PREPARE = """
    import os, signal, time
    from pathlib import Path
    def is_begun():
        while not Path("begun").exists():
            time.sleep(0.01)
        return True
    def prepare(arg, copy):
        tries = Path(f"tries-{{copy}}")
        with tries.open("a") as file:
            file.write("x")
        if {condition}:
            os.kill(os.getpid(), signal.SIGKILL)
    def run_client(arg):
        Path("begun").touch()
        return 1.0, 1.0, 0.0, False
"""


def test_a_client_that_is_killed_while_it_is_prepared_is_replaced_and_the_run_goes_on(load: Load) -> None:
    client = DIES_IN_PREPARE.format(condition="tries.stat().st_size < 3")
    code, said = load.run(client, "--max-parallel", "3", "--interval", "1", "--max-late", "100")

    assert code == 0, said
    for number in range(3):
        assert said.count(f"client {number} died while it was prepared (ended by SIGKILL)") == 2
    assert {row.copy for row in load.rows()} == {0, 1, 2}


def test_clients_that_are_killed_again_and_again_while_they_are_prepared_end_the_run(load: Load) -> None:
    client = DIES_IN_PREPARE.format(condition="copy and is_begun()")
    code, said = load.run(client, "--max-parallel", "2", "--interval", "600")

    assert code == 1, said
    assert "client 1 cannot be prepared (ended by SIGKILL): finishing the requests in flight" in said
    assert {row.status for row in load.rows()} == {"ok"}

    code, said = load.run(DIES_IN_PREPARE.format(condition="True"), "--task-name", "again")
    assert code == 1, said
    assert said.splitlines()[-1] == "load.py: client 0 cannot be prepared (ended by SIGKILL)"
    assert not load.rows_file.with_name("again.csv").exists()


def test_what_starts_the_clients_and_dies_again_and_again_ends_the_run(load: Load) -> None:
    client = """
        import os, signal, time
        def prepare(arg, copy):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)
        def run_client(arg): ...
    """
    code, said = load.run(client, "--max-parallel", "2")

    assert code == 1, said
    assert said.splitlines()[-1].startswith("load.py: client ")
    assert said.splitlines()[-1].endswith(" cannot be prepared (ended, it is not known how)")


def test_requests_that_end_only_because_their_clients_are_killed_are_rows(load: Load) -> None:
    client = """
        import time
        def run_client(arg):
            time.sleep(3600)
    """
    code, said = load.run(client, "--min-parallel", "3", "--max-parallel", "3", "--finish-timeout", "0.1")

    assert code == 3
    assert "3 clients did not end within 0.1 s and are killed" in said
    assert Counter(row.status for row in load.rows()) == {"failed": 3}
    assert description.read(load.rows_file.with_suffix(".md"))["Requests failed"] == "3"


def test_shared_memory_of_a_client_that_was_killed_is_removed_at_the_end_and_nobody_elses(load: Load) -> None:
    others = SharedMemory(f"kaas_{segments.draw_run()}{12 * '0'}", create=True, size=8)
    try:
        code, said = load.run(SHARES.format(fault="os.kill(os.getpid(), signal.SIGKILL)"), "--interval", "2")

        assert code == 3, said
        assert "segments of shared memory removed that killed clients had left: 2\n" in said
        assert "leaked" not in said
        assert "Traceback" not in said
        SharedMemory(others.name).close()
    finally:
        others.close()
        others.unlink()


def test_names_of_a_run_share_its_digits_and_two_runs_do_not(load: Load) -> None:
    client = """
        from pathlib import Path
        from kaas.matrices import shared_matrix
        def run_client(arg):
            with shared_matrix(4) as a:
                Path("names").open("a").write(a.name + "\\n")
            return 1.0, 1.0, 0.0, False
    """
    found = []
    for task in ("one", "two"):
        load.run(client, "--min-parallel", "2", "--max-parallel", "2", "--task-name", task)
        names = (load.folder / "names").read_text().split()
        (load.folder / "names").unlink()
        assert len(set(names)) == len(names) > 1
        found.append({name[: len("kaas_") + 8] for name in names})
    assert [len(digits) for digits in found] == [1, 1]
    assert found[0] != found[1]


@pytest.mark.parametrize("fault", ["pass", "time.sleep(3600)"], ids=["clients work", "a client hangs"])
def test_a_load_generator_that_is_killed_leaves_no_client_and_no_shared_memory(load: Load, fault: str) -> None:
    process = load.start(
        SHARES.format(fault=fault),
        "--min-parallel",
        "3",
        "--max-parallel",
        "3",
        "--interval",
        "600",
        "--finish-timeout",
        "1",
    )
    eventually(load.has_rows)

    process.kill()

    said, _ = process.communicate()  # which returns when its clients have ended, too
    load.marked.assert_nothing_left()
    assert "Traceback" not in said
    assert {row.status for row in load.rows()} == {"ok"}


def test_a_server_that_is_killed_under_load_ends_it_in_order_and_the_rows_stay(
    load: Load, start_server: StartServer
) -> None:
    server = start_server("echo")
    process = load.start(
        CALLS,
        "--server",
        server.address,
        "--min-parallel",
        "3",
        "--max-parallel",
        "3",
        "--interval",
        "600",
        first=IMPATIENT,
    )
    eventually(load.has_rows)

    server.send(signal.SIGKILL)

    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert re.search(r"^the server has been gone for 0\.5 s \(.*\): finishing the requests", said, re.MULTILINE)
    assert "Traceback" not in said
    statuses = Counter(row.status for row in load.rows())
    assert set(statuses) == {"ok", "failed"}
    described = description.read(load.rows_file.with_suffix(".md"))
    assert {status: int(described[f"Requests {status}"]) for status in statuses} == statuses
    assert_every_call_is_one_row(load)


def test_a_server_that_hangs_fails_its_clients_and_ctrl_c_ends_the_load(load: Load, start_server: StartServer) -> None:
    server = start_server("echo")
    process = load.start(CALLS.replace("60.0", "0.5"), "--server", server.address, "--interval", "600")
    eventually(load.has_rows)

    server.send(signal.SIGSTOP)
    try:
        eventually(lambda: any(row.status == "failed" for row in load.rows()))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    finally:
        server.send(signal.SIGCONT)

    assert process.returncode == 130, said
    assert "gave no answer within 0.6 s" in load.rows()[-1].error
    assert_every_call_is_one_row(load)


def test_a_server_that_will_not_answer_this_load_any_more_ends_it_in_order(
    load: Load, start_server: StartServer
) -> None:
    server = start_server("echo")
    process = load.start(CALLS, "--server", server.address, "--interval", "600")
    eventually(load.has_rows)
    assert server.stop() == 0

    start_server("echo", "--port", server.address.rpartition(":")[2], KAAS_TOKEN="another")

    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "refused a status query: unauthorized" in said
    assert "ok, warm" in said
    assert "failed" in {row.status for row in load.rows()} <= {"ok", "failed", "unauthorized", "shutting_down"}


def test_a_server_that_drains_answers_with_rows_of_their_own(load: Load, start_server: StartServer, gate: Path) -> None:
    client = """
        from pathlib import Path
        from kaas.client import Connection
        from kaas.results import Outcome
        kaas, number = Connection(), 0
        def prepare(arg, copy):
            global number
            number = copy
        def run_client(arg):
            Path("waits" if number else "asks").touch()
            reply = kaas.invoke(arg.encode() if number else b"/")
            return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status)
    """
    server = start_server("wait")
    arguments = ("--min-parallel", "2", "--max-parallel", "2", "--interval", "600", "--input", str(gate))
    process = load.start(client, "--server", server.address, *arguments)
    eventually(lambda: server.status()["in_flight"] and load.has_rows() and (load.folder / "waits").exists())

    server.send(signal.SIGTERM)

    eventually(lambda: any(row.status == "shutting_down" for row in load.rows()))
    gate.touch()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert any((row.copy, row.status) == (1, "ok") for row in load.rows()), "what was in flight was answered"


def test_rows_and_the_servers_counters_tell_the_same_of_every_fault(load: Load, start_server: StartServer) -> None:
    kernel = load.folder / "moody.py"
    kernel.write_text(
        "import os, time\n"
        "def call(payload):\n"
        "    exec(payload)\n"  # this test's own client sends it
        "    return b''\n"
    )
    client = """
        import itertools
        from kaas.client import Connection
        from kaas.results import Outcome
        kaas = Connection()
        moods = itertools.cycle((b"pass", b"1 / 0", b"os._exit(3)", b"pass", b"raise SystemExit", b"time.sleep(0.6)"))
        def run_client(arg):
            reply = kaas.invoke(next(moods), timeout=0.3)
            return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status)
    """
    server = start_server(kernel, "--num-gpus", "1", "--max-req-per-gpu", "2")
    every = {"ok", "kernel_error", "worker_lost", "timeout", "rejected"}

    process = load.start(
        client, "--server", server.address, "--min-parallel", "3", "--max-parallel", "3", "--interval", "600"
    )
    eventually(lambda: load.has_rows() and {row.status for row in load.rows()} == every)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()

    assert process.returncode == 130, said
    assert set(assert_accounts_agree(load, server)) == every


def test_the_request_of_a_client_that_is_killed_is_a_row_and_abandoned_in_the_server(
    load: Load, start_server: StartServer, gate: Path
) -> None:
    client = """
        import os
        from pathlib import Path
        from kaas.client import Connection
        from kaas.results import Outcome
        kaas = Connection()
        def run_client(arg):
            Path("pid").write_text(str(os.getpid()))
            reply = kaas.invoke(arg.encode())
            return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status)
    """
    server = start_server("wait")
    process = load.start(client, "--server", server.address, "--interval", "600", "--input", str(gate))
    eventually(lambda: server.status()["in_flight"] == 1)

    os.kill(int((load.folder / "pid").read_text()), signal.SIGKILL)

    eventually(load.has_rows)
    gate.touch()
    eventually(lambda: any(row.status == "ok" for row in load.rows()))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert assert_accounts_agree(load, server)["failed"] == server.counters()["abandoned"] == 1


def test_requests_with_a_wrong_token_are_rows(load: Load, start_server: StartServer) -> None:
    server = start_server("echo", KAAS_TOKEN="right")
    load.marked.environment["KAAS_TOKEN"] = "right"

    code, said = load.run(CALLS.replace("Connection()", "Connection(token='wrong')"), "--server", server.address)

    assert code == 3
    assert "no request was served" in said
    assert {row.status for row in load.rows()} == {"unauthorized"}
    assert_every_call_is_one_row(load)


def test_a_disk_that_is_full_ends_the_run_with_a_line_and_no_torn_row(load: Load) -> None:
    client = "def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"

    code, said = load.run(client, "--min-parallel", "3", "--max-parallel", "3", "--interval", "600", first=limit)

    assert code == 1
    assert re.search(
        rf"^client \d cannot go on \(.*rows .*{load.rows_file.name}.*\): finishing the requests", said, re.MULTILINE
    ), said
    assert "Traceback" not in said
    written = load.rows_file.read_bytes()
    assert 9_000 < len(written) <= 10_000
    assert written.endswith(b"\n")
    assert {row.status for row in load.rows()} == {"ok"}


def test_a_disk_that_is_full_from_the_start_is_one_line(load: Load) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))"

    code, said = load.run("def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n", first=limit)

    assert code == 1
    assert "no room for what the clients share" in said
    assert len(said.splitlines()) == 1
    assert not load.rows_file.exists()


def test_a_description_that_cannot_be_finished_is_said_and_an_error(load: Load) -> None:
    client = """
        from pathlib import Path
        def run_client(arg):
            return 1.0, 1.0, 0.0, False
        def cleanup():
            Path("results-test/task.md").unlink()
            Path("results-test/task.md").mkdir()
    """
    code, said = load.run(client)

    assert code == 1
    assert "task.md cannot be written: Is a directory" in said
    assert "Traceback" not in said
    assert load.has_rows()


def test_a_clock_that_is_set_back_changes_neither_the_ramp_nor_a_time_stamp_nor_a_duration(load: Load) -> None:
    step_back = """
        import itertools, time
        real, steps = time.time, itertools.count()
        time.time = lambda: real() - 3600 * next(steps)
        odd = itertools.count()
    """
    client = (
        step_back
        + """
        def run_client(arg):
            time.sleep(0.01)
            if next(odd) % 2:
                raise RuntimeError
            return 10.0, 1.0, 0.0, False
    """
    )
    code, said = load.run(client, "--max-parallel", "3", first=step_back)

    assert "step 3/3: clients 3" in said
    assert code == 3, said  # for every other request failed
    rows = load.rows()
    assert {row.concurrency for row in rows} == {1, 2, 3}
    stamps = [row.timestamp for row in rows if row.copy == 0]
    assert stamps == sorted(stamps)
    assert all(10 <= row.outer_time_ms < 60_000 for row in rows)


def test_processes_that_share_a_runs_token_do_not_show_it(load: Load) -> None:
    load.marked.environment["KAAS_TOKEN"] = "0123456789secret"
    process = load.start("def run_client(arg):\n    return 1.0, 1.0, 0.0, False\n", "--interval", "600")
    eventually(load.has_rows)

    shown = [" ".join(one.cmdline()) for one in psutil.Process(process.pid).children(recursive=True)]

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert len(shown) > 1
    files = [path.read_text() for path in load.folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert not any("0123456789secret" in text for text in (*shown, *files, said))
