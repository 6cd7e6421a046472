"""The scripts as a user runs them: in a copy of the project, as subprocesses."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from project import MATRICES, NOTEBOOK, PLAIN, Project, free_port
from support import eventually, read_until

from kaas import ROOT, description
from kaas.client import Connection
from kaas.errors import Refused

SHORT: dict[str, Any] = {"INTERVAL": 0.5, "MAX_MPL": 4, "MAX_MPL_PER_GPU": 2, "N": 200, "AVAILABLE_GPUS": 2}
QUICK: dict[str, Any] = {"INTERVAL": 0.5, "MAX_MPL": 1}
LONG: dict[str, Any] = PLAIN | {"INTERVAL": 600, "MIN_MPL": 2, "MAX_MPL": 2, "AVAILABLE_GPUS": 1}


def test_a_short_run_serves_every_request_boots_both_gpus_and_draws_each_repeat_and_all(
    project: Project, tmp_path: Path
) -> None:
    project.results = tmp_path / "else where" / project.results.name
    expected = "failed=0, refused<1, cold_starts==2, p50<=100s"
    code, said = project.draw_the_report().run(
        OUTER_REPEATS=2, FN="cuda-matmul-cpu.py", RESULTS="../else where", EXPECT=expected, **SHORT
    )

    assert code == 0, said
    assert not list(project.folder.glob("results-*"))
    told = json.loads((project.results / "summary.json").read_text())
    assert [repeat["figures"]["cold_starts"] for repeat in told["repeats"]] == [2, 2]
    assert told["pooled"]["autoscaling-cuda-matmul-cpu-200"]["p50"]["repeats"] == 2
    assert "autoscaling-report.html" in said
    assert "summary.json" in said
    rows = project.rows()
    assert {row.status for row in rows} == {"ok"}
    assert {row.concurrency for row in rows} == set(range(1, 5))
    assert sum(row.cold_start for row in rows) == 2
    assert [event["gpu"] for event in project.events() if event["event"] == "booted"] == ["0", "1"]
    busy = [float(sample["utilization_pct"]) for sample in project.utilization() if sample["utilization_pct"]]
    assert max(busy) > 0
    for name in ("autoscaling-combined.pdf", "autoscaling-combined.png", "autoscaling-report.html"):
        assert (project.results / name).stat().st_size > 10_000
    parameters = description.read(next(project.results.glob("*-1.md")))
    assert parameters["Maximum parallel requests"] == "4"
    assert parameters["EXPECT"] == expected
    assert parameters["Requests ok"] == str(len(rows))
    assert not list(project.results.glob(".*"))
    assert len(list(project.results.glob("autoscaling-cuda-matmul-cpu-200-[12].csv"))) == 2
    assert {path.stem for path in project.results.glob("autoscaling-combined*.png")} == {
        "autoscaling-combined",
        "autoscaling-combined-all",
    }


def test_refusals_are_rows_and_as_many_as_the_server_logs(project: Project) -> None:
    code, said = project.run(
        **MATRICES | {"N": 400, "AVAILABLE_GPUS": 1, "MAX_MPL_PER_GPU": 1, "INTERVAL": 0.5, "MAX_MPL": 3}
    )

    assert code == 0, said
    statuses = Counter(row.status for row in project.rows())
    assert statuses["rejected"] > 0
    assert set(statuses) == {"ok", "rejected"}
    assert all(row.inner_time_ms == 0.0 for row in project.rows() if row.status == "rejected")
    refused = [event for event in project.events() if event["event"] == "rejected"]
    assert len(refused) == statuses["rejected"]
    assert {(event["num_workers"], event["gpu"]) for event in refused} == {("0", "0")}


def test_an_earlier_run_is_moved_aside_and_nothing_of_it_is_lost(project: Project) -> None:
    project.results.mkdir()
    (project.results / "precious.csv").write_text("data")

    code, said = project.run(**QUICK, TZ="Asia/Tokyo", **PLAIN)

    assert code == 0, said
    (aside,) = project.folder.glob("results-autoscaling.*")
    assert (aside / "precious.csv").read_text() == "data"
    assert not (project.results / "precious.csv").exists()
    assert str(aside.name) in said
    moved = datetime.strptime(aside.name.partition(".")[2], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    assert timedelta() < datetime.now(UTC) - moved < timedelta(hours=1), "its date is in UTC, as all others are"
    assert "Of earlier runs, 1 is kept (results-autoscaling.*): 0.0 MB" in said


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C at the terminal", "SIGINT to the script"])
def test_ctrl_c_ends_everything_in_order_and_keeps_the_data(project: Project, to_all: bool) -> None:
    process = project.start(**LONG | MATRICES)
    eventually(project.has_rows)

    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)

    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert {row.status for row in project.rows()} == {"ok"}
    assert [event["event"] for event in project.events()][-1] == "stopped"
    assert project.marked.left() == []


def test_a_second_ctrl_c_does_not_wait_for_requests(project: Project) -> None:
    stuck = "import time, pathlib\ndef run_client(arg):\n    pathlib.Path('hangs').touch()\n    time.sleep(3600)\n"
    (project.folder / "stuck.py").write_text(stuck)
    process = project.start(**LONG | {"CLIENT": "stuck"})
    eventually((project.folder / "hangs").exists)

    os.killpg(process.pid, signal.SIGINT)
    before = read_until(process, "told to end: finishing the requests in flight; Ctrl-C again stops at once\n")
    os.killpg(process.pid, signal.SIGINT)

    said, _ = process.communicate()
    assert process.returncode == 130, [*before, said]
    assert "stopping at once" in said


def test_ctrl_c_while_figures_are_drawn_says_that_all_data_are_there_and_what_draws_them() -> None:
    script = """
        source "$ROOT/scripts/experiment.sh"
        EXPERIMENT=mine
        name_results
        drawing=yes
        trap 'on_signal 130' INT
        kill -INT $$
    """
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"ROOT": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert f"all data are there, and scripts/report {ROOT}/results-mine draws them" in done.stderr


def test_sigterm_ends_everything_in_order(project: Project) -> None:
    process = project.start(**LONG)
    eventually(project.has_rows)

    process.terminate()

    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert {row.status for row in project.rows()} == {"ok"}


def test_a_killed_script_leaves_nothing_running_and_no_torn_row(project: Project) -> None:
    process = project.start(**LONG | MATRICES)
    eventually(project.has_rows)

    process.kill()

    process.wait()
    eventually(lambda: not project.marked.left())
    assert process.stdout is not None
    process.stdout.close()
    assert next(project.results.glob("*-1.csv")).read_bytes().endswith(b"\n")
    # Server and clients notice it one by one.
    assert {"ok"} <= {row.status for row in project.rows()} <= {"ok", "shutting_down", "failed"}

    killed = next(project.results.glob("*-1.csv")).read_bytes()
    code, said = project.run(**MATRICES | QUICK, RESUME=1)

    assert code == 0, said
    (aside,) = project.folder.glob("results-autoscaling.*")
    assert f"No repeat in results-autoscaling is complete\nWhat there was of repeat 1 is now in {aside.name}" in said, (
        said
    )
    assert next(aside.glob("*-1.csv")).read_bytes() == killed
    assert description.read(next(project.results.glob("*-1.md")))["RESUME"] == "1"
    with next(project.results.glob("*-1.md")).open("a") as noted:
        noted.write("Exit code: 3\n")  # as if some requests had failed
    kept = {path: path.read_bytes() for path in project.results.iterdir()}
    code, said = project.run(**MATRICES | QUICK, RESUME=1)
    assert (code, "Complete in results-autoscaling: repeat 1" in said, "Repeat 1" in said) == (3, True, False), said
    code, said = project.run("autoscale-cpu.sh", "--check", **MATRICES | QUICK, RESUME=1)
    assert (code, "Complete in results-autoscaling: repeat 1" in said) == (0, True), said
    code, said = project.run("autoscale-cpu.sh", "--check", **MATRICES | QUICK | {"MAX_MPL": 2}, RESUME=1)
    assert (code, "RESUME: MAX_MPL is 2, but the repeats in results-autoscaling had 1" in said) == (2, True), said
    assert {path: path.read_bytes() for path in project.results.iterdir()} == kept


def test_a_server_that_dies_is_said_and_the_rows_stay(project: Project) -> None:
    watch = project.folder / "kaas" / "load" / "server.py"
    text = watch.read_text()
    assert "_GONE_AFTER = 10.0" in text
    watch.write_text(text.replace("_GONE_AFTER = 10.0", "_GONE_AFTER = 1.0"))
    process = project.start(**LONG)
    eventually(project.has_rows)
    (server,) = (line for line in project.marked.left() if "gpu-server-scaling.py" in line)

    os.kill(int(server.partition(":")[0]), signal.SIGKILL)

    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "the server has been gone for 1 s" in said
    statuses = {row.status for row in project.rows()}
    assert statuses == {"ok", "failed"}


def test_a_runs_server_answers_nobody_who_lacks_its_token_and_nothing_shows_that(project: Project) -> None:
    process = project.start(**LONG)
    eventually(project.has_rows)
    (load,) = (line for line in project.marked.left() if "load.py" in line)
    token = psutil.Process(int(load.partition(":")[0])).environ()["KAAS_TOKEN"]
    assert re.fullmatch("[0-9a-f]{32}", token)

    with Connection(f"127.0.0.1:{project.port}", token="") as kaas, pytest.raises(Refused, match="unauthorized"):
        kaas.status()
    command_lines = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()

    assert process.returncode == 130, said
    assert {row.status for row in project.rows()} == {"ok"}
    assert "load.py" in command_lines
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".md" and path.parent == project.results for path in files)
    assert token not in said + command_lines
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_the_token_is_another_for_each_run_unless_the_user_has_set_one_and_not_for_every_program() -> None:
    script = f"ROOT={shlex.quote(str(ROOT))}; source $ROOT/scripts/experiment.sh; draw_token; echo $KAAS_TOKEN; env"

    def draw(**given: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KAAS_")}
        done = subprocess.run(
            ["bash", "-euc", script],
            env=environment | {"KAAS_PYTHON": sys.executable} | given,
            capture_output=True,
            text=True,
            check=True,
        )
        token, *inherited = done.stdout.splitlines()
        assert not any("KAAS_TOKEN" in line or token in line for line in inherited)
        return token

    drawn = {draw() for _ in range(3)}
    assert len(drawn) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in drawn)
    assert draw(KAAS_TOKEN="the user's own") == "the user's own"


def test_a_kernel_that_cannot_start_ends_the_script_with_the_end_of_the_servers_log(project: Project) -> None:
    (project.folder / "broken.py").write_text(
        "raise RuntimeError('no such device')\ndef call(payload): return payload\n"
    )

    code, said = project.run(**PLAIN | {"FN": "broken"})

    assert code == 1
    assert "no such device" in said
    assert "did not become ready" in said
    assert "Traceback" not in said


FAILS = "def call(payload):\n    raise ValueError('does not converge')\n"
ASKS = """
from kaas.client import Connection
from kaas.results import Outcome
kaas = Connection()
def run_client(arg):
    reply = kaas.invoke(arg.encode())
    return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status, error=reply.payload.decode())
"""


def test_a_run_of_which_nothing_is_served_ends_after_its_first_step_and_draws_nothing(project: Project) -> None:
    (project.folder / "fails.py").write_text(FAILS)
    (project.folder / "asks.py").write_text(ASKS)

    code, said = project.run(FN="fails", CLIENT="asks", N="x", OUTER_REPEATS=3, MAX_MPL=50, INTERVAL=0.5)

    assert code == 3, said
    assert "every request of step 1/50 failed" in said
    assert "ValueError: does not converge" in said
    last = said.splitlines()[-1]
    assert re.search(r"repeat 1: no request was served; (\d+) of \1 requests failed: \1 kernel_error, most", last)
    assert "KEEP_GOING=1 goes on" in last
    assert "Repeat 2" not in said
    assert not list(project.results.glob("*.html"))


def test_the_last_line_of_a_run_that_was_not_clean_says_how_many_requests_failed_and_why(project: Project) -> None:
    once = "from pathlib import Path\nTURN = Path(__file__).with_name('turn')\n"
    once += "def call(payload):\n    if not TURN.exists():\n        TURN.touch()\n"
    once += "        raise ValueError('does not converge')\n    return payload\n"
    (project.folder / "fails.py").write_text(once)
    (project.folder / "asks.py").write_text(ASKS)

    settings: dict[str, Any] = {"FN": "fails", "CLIENT": "asks", "N": "x", "OUTER_REPEATS": 2}
    settings |= {"MAX_MPL": 1, "INTERVAL": 1}
    code, said = project.run(**settings)

    assert code == 3, said
    assert "Repeat 2 of 2" in said
    why = r": repeat 1: 1 of \d+ requests failed: 1 kernel_error, most often: ValueError: does not converge"
    assert re.search(why, said.splitlines()[-1]), said

    code, said = project.run(**settings, RESUME=1)
    assert code == 3, said
    assert said.splitlines()[-1].endswith("not a clean one: a repeat that was there was none, as its .md says")


def test_the_servers_own_settings_are_settings_of_the_script(project: Project) -> None:
    settings: dict[str, Any] = {
        "POLICY": "ahead",
        "SHAPE": "constant:8",
        "WHEN_FULL": "queue",
        "MAX_QUEUE": 7,
        "IDLE_TIMEOUT": 33,
        "CALL_TIMEOUT": 44,
        "METRICS_PORT": 0,
    }

    code, said = project.run(**PLAIN | settings, AVAILABLE_GPUS=1, MAX_MPL_PER_GPU=1, MAX_MPL=2, INTERVAL=0.5)

    assert code == 0, said
    facts = description.read(next(project.results.glob("*.md")))
    told = {name: facts[f"Server {name}"] for name in ("policy", "when full", "idle timeout [s]", "call timeout [s]")}
    assert told == {"policy": "ahead", "when full": "queue", "idle timeout [s]": "33.0", "call timeout [s]": "44.0"}
    assert {row.status for row in project.rows()} == {"ok"}
    assert (facts["Shape"], len(project.rows())) == ("constant:8", 8)
    assert "metrics on http" in next(project.results.glob("*-server.log")).read_text()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"MAX_MPL": "many"}, "MAX_MPL is 'many': give a whole number"),
        ({"FN": "cuda-matmul-cup"}, "did you mean cuda-matmul-cpu?"),
        ({"CLIENT": "nobody"}, "no module 'nobody'"),
        ({"INTERVAL": "-1"}, "INTERVAL: '-1' is not a number of seconds above 0"),
        ({"PORT": "99999"}, "PORT: '99999' is not a port from 0 to 65535"),
        ({"POLICY": "best"}, "POLICY: invalid choice: 'best'"),
        (
            {"SHAPE": "upanddown"},
            "SHAPE is 'upanddown': give steps, updown, bursts[:NUMBER], trace:FILE, constant:RATE, ",
        ),
        ({"SHAPE": "trace:nowhere.csv"}, "SHAPE is 'trace:nowhere.csv': nowhere.csv: No such file"),
        ({"SHAPE": "poisson:0"}, "SHAPE is 'poisson:0': '0' is not a number of arrivals a second above 0"),
        ({"TIME_SCALE": "10"}, "TIME_SCALE goes with --rehearse-paper"),
        ({"CALIBRATION": "published-1"}, "CALIBRATION goes with --rehearse-paper"),
        ({"WHEN_FULL": "never"}, "WHEN_FULL: invalid choice: 'never'"),
        ({"MIN_MPL": 5, "MAX_MPL": 2}, "a ramp from 5 clients to 2 goes down, not up (MIN_MPL, MAX_MPL)"),
        ({"EXPERIMENT": "a/b"}, "EXPERIMENT: 'a/b' cannot name a file"),
        ({"EXPERIMENT": "-x"}, "EXPERIMENT: '-x' cannot name a file"),
        ({"N": "1e3"}, "N is '1e3': give the matrix's size"),
        ({"N": "-3"}, "N is '-3': give the matrix's size"),
        ({"EXPECT": "p96<3"}, "EXPECT: there is no figure 'p96': name one of requests, ok, "),
        ({"REPEAT_UNTIL": "p95"}, "REPEAT_UNTIL: 'p95' is no width: write as in throughput 5%"),
        ({"REPEAT_UNTIL": "p95 5%", "OUTER_REPEATS": 2}, "OUTER_REPEATS is 2: with REPEAT_UNTIL it is the most"),
        ({"SEGMENTS": "keep"}, "SEGMENTS is 'keep': give "),
        ({"KAAS_TRANSPORT": "pigeon"}, "KAAS_TRANSPORT is 'pigeon': give auto, shm or inline"),
        ({"RESUME": "yes"}, "RESUME is 'yes': give 1, or nothing"),
        ({"ENGINE": "nope"}, "ENGINE is 'nope': give local or ray"),
        ({"RAY_NODES": "2"}, "RAY_NODES goes with ENGINE=ray"),
        ({"ENGINE": "ray", "RAY_ADDRESS": "auto"}, "RAY_ADDRESS is 'auto': give HOST:PORT of Ray's head"),
        ({"ENGINE": "ray", "LINK_PORT": "many"}, "LINK_PORT is 'many': give a port"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_done(
    project: Project, settings: dict[str, Any], complaint: str
) -> None:
    code, said = project.run(**settings)

    assert code == 2, said
    assert complaint in said
    assert len(said.splitlines()) == 1
    assert not list(project.folder.glob("results-*"))


@pytest.mark.parametrize(
    ("check", "complaint"),
    [
        ("raise ValueError('of no use')", "check('x'): ValueError: of no use"),
        ("raise UsageError(f'N is {arg!r}:\\n give more')", "N is 'x': give more"),
    ],
)
def test_a_client_modules_own_check_looks_at_the_input_before_anything_is_done(
    project: Project, check: str, complaint: str
) -> None:
    with (project.folder / "plain-client.py").open("a") as file:
        file.write(f"""
import atexit, os, sys
from kaas.errors import UsageError
where = os.environ["KAAS_ADDRESS"]
atexit.register(print, "and that is that", file=sys.stderr)
def check(arg):
    {check}
""")

    code, said = project.run(**PLAIN)

    assert code == 2, said
    assert said.endswith(f"{complaint}\n")
    assert len(said.splitlines()) == 1
    assert not project.results.exists()


def test_port_0_is_any_that_is_free_and_sh_will_do_to_start_the_script(project: Project) -> None:
    process = project.start("-c", f"cd / && exec sh {project.folder}/{project.script}", PORT=0, **PLAIN | QUICK)
    said, _ = process.communicate()

    assert process.returncode == 0, said
    assert {row.status for row in project.rows()} == {"ok"}
    assert not description.read(next(project.results.glob("*-1.md")))["Server"].endswith(":0")


def test_a_port_in_use_is_refused_before_anything_is_done(project: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", project.port))
        other.listen()

        code, said = project.run()

    assert code == 2
    assert f"port {project.port} on 127.0.0.1" in said
    assert not project.results.exists()


def test_two_runs_do_not_write_to_one_folder(project: Project) -> None:
    process = project.start(**LONG)
    eventually(project.has_rows)

    code, said = project.run(PORT=free_port())

    assert code == 2
    assert f"another run is writing to {project.results} (process {process.pid} on " in said
    process.terminate()
    process.communicate()
    assert {row.status for row in project.rows()} == {"ok"}
    assert not [path for path in project.folder.iterdir() if path.name.startswith(".results")]


def test_where_no_file_system_has_locks_no_row_is_lost(project: Project, without_locks: dict[str, str]) -> None:
    settings: dict[str, Any] = {**SHORT, **MATRICES, "MIN_MPL": 2, **without_locks}
    code, said = project.run(**settings)

    assert code == 0, said
    assert {row.status for row in project.rows()} == {"ok"}
    assert {row.concurrency for row in project.rows()} >= {2, 4}
    assert project.utilization()


def test_a_script_started_through_a_link_from_elsewhere_finds_a_kernel_beside_its_user(
    project: Project, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("def call(payload):\n    return payload\n")
    (elsewhere / "asks.py").write_text(
        "import time\ndef run_client(arg):\n    time.sleep(0.01)\n    return 10.0, 1.0, 0.0, False\n"
    )
    (elsewhere / "link.sh").symlink_to(project.folder / "autoscale-cpu.sh")

    code, said = project.run(str(elsewhere / "link.sh"), cwd=elsewhere, FN="mine.py", CLIENT="./asks", N="a/b", **QUICK)

    assert code == 0, said
    assert {row.status for row in project.rows()} == {"ok"}


def test_what_a_kernel_prints_tears_no_event_line_and_hides_no_refusal(project: Project) -> None:
    (project.folder / "prints.py").write_text(
        "import sys\n"
        "def call(payload):\n"
        "    sys.stderr.write('.')\n"
        "    print('@@@ ERROR out of paper')\n"
        "    return payload\n"
    )
    (project.folder / "asks.py").write_text(
        "from kaas.client import Connection\n"
        "from kaas.results import Outcome\n"
        "kaas = Connection()\n"
        "def run_client(arg):\n"
        "    reply = kaas.invoke(b'')\n"
        "    return Outcome(1.0, 1.0, 0.0, reply.cold_start, reply.status)\n"
    )

    code, said = project.run(
        FN="prints",
        CLIENT="asks",
        AVAILABLE_GPUS=1,
        MAX_MPL_PER_GPU=1,
        MIN_MPL=3,
        MAX_MPL=3,
        INTERVAL=0.5,
        BACKOFF=0.01,
    )

    assert code == 0, said
    refused = sum(row.status == "rejected" for row in project.rows())
    assert refused > 0
    assert sum(event["event"] == "rejected" for event in project.events()) == refused


def test_help_shows_the_settings_and_an_argument_is_refused(project: Project) -> None:
    code, said = project.run("autoscale-cpu.sh", "--help")
    assert code == 0
    assert "MAX_MPL_PER_GPU=4" in said

    code, said = project.run("autoscale-cpu.sh", "now")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "there is no argument such as 'now': settings stand before the command" in said
    for typed, complaint in ("--chek", ": did you mean --check?"), ("-v", "."):
        code, said = project.run("autoscale-cpu.sh", typed)
        there_are = "There are --check --dry-run --rehearse-paper --help --version"
        assert (code, said) == (2, f"autoscale-cpu.sh: there is no option {typed}{complaint} {there_are}\n")


def test_a_dry_run_says_what_would_be_run_and_what_it_needs_and_does_nothing(project: Project) -> None:
    project.results.mkdir()
    before = sorted(path for path in project.folder.rglob("*") if "__pycache__" not in path.parts)

    code, said = project.run(
        "autoscale-cpu.sh", "--dry-run", OUTER_REPEATS=3, INTERVALL=1, MAX_MPL=6, N=2000, EXPECT="failed=0"
    )

    assert code == 0, said
    assert "gpu-server-scaling.py cuda-matmul-cpu --port" in said
    assert "load.py --client=cuda-matmul-client --input=2000" in said
    assert "the same for the repeats 2 to 3" in said
    assert "results-autoscaling is moved aside, to results-autoscaling.<date>-<time>" in said
    assert "and see whether failed=0" in said
    assert "shared memory: needs 367 MiB" in said
    assert sorted(path for path in project.folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_smoke_test_is_small_unless_told_otherwise(project: Project) -> None:
    code, said = project.run("autoscale-cpu.sh", "--dry-run", SMOKE=1, MAX_MPL=7, KAAS_PYTHON="")
    assert code == 0, said
    assert "--num-gpus 2 --max-req-per-gpu 2" in said
    assert "--input=200" in said
    assert "--max-parallel 7" in said
    assert "1 x 7 steps x 1 s, about 23 s" in said
    assert "scripts/setup" in said, "there is no .venv yet"
    assert project.run("autoscale-cpu.sh", SMOKE=2) == (2, "autoscale-cpu.sh: SMOKE is '2': give 1, or nothing\n")


@pytest.mark.parametrize("settings", [{"KAAS_TRANSPORT": "inline"}, {"ENGINE": "ray", "RAY_NODES": 2}])
def test_where_matrices_travel_in_messages_the_server_takes_them_as_large(
    project: Project, settings: dict[str, Any]
) -> None:
    code, said = project.run("autoscale-cpu.sh", "--dry-run", N=4000, KAAS_PYTHON="", **settings)
    assert (code, "--message-size 128000200 " in said) == (0, True), said


@pytest.mark.parametrize(("shape", "spread"), [("updown", True), ("poisson:8", False)])
def test_over_several_nodes_an_open_loop_is_sent_from_this_machine(project: Project, shape: str, spread: bool) -> None:
    settings: dict[str, Any] = {"ENGINE": "ray", "RAY_NODES": 2, "SHAPE": shape, "KAAS_PYTHON": ""}
    code, said = project.run("autoscale-cpu.sh", "--dry-run", **settings)
    (load,) = (line for line in said.splitlines() if " load.py " in line)
    assert (code, "--engine ray" in load) == (0, spread), said


def test_the_readmes_own_kernel_and_client_run(project: Project) -> None:
    for name, source in re.findall(
        r"`(reverse[\w-]*\.py)`:\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    ):
        (project.folder / name).write_text(source)
    assert (project.folder / "reverse.py").exists()
    assert (project.folder / "reverse-client.py").exists()

    code, said = project.run(FN="reverse", CLIENT="reverse-client", N="hello", INTERVAL=0.5, MAX_MPL=2)

    assert code == 0, said
    assert {row.status for row in project.rows()} == {"ok"}


@pytest.mark.parametrize("option", ["--help", "--check"])
def test_on_a_terminal_no_line_is_broken_in_the_middle_of_a_word(project: Project, option: str) -> None:
    environment = project.marked.environment | {"PORT": "0", "TERM": "xterm", "COLUMNS": "60"}
    screen, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        line = ["bash", "autoscale-cpu.sh", option]
        shown = subprocess.Popen(line, cwd=project.folder, env=environment, stdin=terminal, stdout=terminal)
        os.close(terminal)
        read = b""
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while part := os.read(screen, 65536):
                read += part
        assert shown.wait() == 0
    finally:
        os.close(screen)
    told = subprocess.run(line, cwd=project.folder, env=environment, capture_output=True, text=True, check=True).stdout
    lines = read.decode().splitlines()
    assert [text for text in lines if len(text) > 60 and len(text.split()) > 1] == []  # a path may be as long
    assert len(lines) > len(told.splitlines())
    # What is free changes from one moment to the next.
    words = [re.sub(r"[\d.]+ [GM]iB", "", " ".join(text.split())) for text in (read.decode(), told)]
    assert words[0] == words[1]


def test_what_the_readme_says_can_be_tested_is_there() -> None:
    chosen = [
        shlex.split(words) for words in re.findall(r"`\./scripts/test ([^`]+)`", (ROOT / "README.md").read_text())
    ]
    assert chosen
    for words in chosen:
        if words[0] != "-k":
            assert all((ROOT / path).exists() for path in words), words
            continue
        collected = subprocess.run(
            # One that finds a test in this file finds one among all, which take much longer to collect.
            [sys.executable, "-m", "pytest", "--collect-only", "-q", *words, __file__],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert collected.returncode == 0, collected.stdout
        assert "test_" in collected.stdout


@pytest.fixture
def own_python(project: Project) -> Path:
    """Give the project a .venv, which is the one that runs the tests."""
    if not (Path(sys.prefix) / ".installed-requirements-dev.txt").exists():
        pytest.skip("this Python was not set up by scripts/setup")
    (project.folder / ".venv").symlink_to(sys.prefix)
    return project.folder / ".venv"


def test_a_python_that_is_not_there_is_said_before_anything_is_done(project: Project) -> None:
    code, said = project.run(KAAS_PYTHON="/nope")
    assert (code, said) == (2, "autoscale-cpu.sh: KAAS_PYTHON is '/nope', and there is no such program\n")
    assert not project.results.exists()


@pytest.mark.usefixtures("own_python")
def test_the_scripts_own_python_heeds_no_other_libraries_of_the_users(project: Project, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('not the one that was installed')\n")
    others: dict[str, Any] = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": "/nope",
        "PYTHONSAFEPATH": "1",
        "KAAS_PYTHON": "",
    }
    code, said = project.run(**MATRICES | others | QUICK, AVAILABLE_GPUS=1)
    assert code == 0, said

    project.draw_the_report()
    # Which numpy is found does not depend on what is drawn with it.
    cell = {"cell_type": "code", "source": "import numpy; print(numpy.pi)", "outputs": [], "metadata": {}}
    draws = {"cells": [cell | {"execution_count": None, "id": "draws"}], "metadata": {}, "nbformat": 4}
    (project.folder / NOTEBOOK).write_text(json.dumps(draws | {"nbformat_minor": 5}))
    link = tmp_path / "draw"
    link.symlink_to(project.folder / "scripts" / "report")
    code, said = project.run(str(link), str(project.results), **others)
    assert code == 0, said
    assert "3.14159" in (project.results / "autoscaling-report.html").read_text()


@pytest.mark.usefixtures("own_python")
def test_setting_up_again_does_nothing(project: Project) -> None:
    assert project.run("scripts/setup") == (0, "")
    assert project.run("scripts/setup", "--dev") == (0, "")


EACH_ITS_OWN = """
import itertools, os, time
_real, _steps = time.time, itertools.count()
# Each process has a time of its own, of another day, and it is set back and forth all the time.
time.time = lambda: _real() - 86_400.0 * (os.getpid() % 10_000) + (1800 if next(_steps) % 2 else -1800)
time.time_ns = lambda: int(time.time() * 1e9)
"""


def test_a_clock_that_is_set_all_the_time_gives_files_whose_time_stamps_fit_together(
    project: Project, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(EACH_ITS_OWN)
    begun = time.monotonic()

    code, said = project.run(PYTHONPATH=tmp_path, **SHORT | PLAIN)

    lasted = time.monotonic() - begun
    assert code == 0, said
    rows = [row.timestamp + row.outer_time_ms / 1000 for row in project.rows()]
    told = [float(event["timestamp"]) for event in project.events()]
    samples = [float(sample["timestamp"]) for sample in project.utilization()]
    logged = [
        datetime.strptime(line.partition(" server ")[0], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        for line in next(project.results.glob("*-1-server.log")).read_text().splitlines()
        if " server INFO: " in line
    ]
    assert [told, samples, logged] == [sorted(told), sorted(samples), sorted(logged)]
    stamps = rows + told + samples + logged
    assert max(stamps) - min(stamps) < lasted, "a program counts from an epoch of its own"
