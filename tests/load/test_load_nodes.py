"""The clients on the nodes of a real Ray, simulated ones: spread, rows on one clock, and what is lost with a node."""

import itertools
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loads import Load
from ray_nodes import StartCluster, needs_ray
from support import eventually

from kaas import ROOT, description, leftovers

pytestmark = [pytest.mark.slow, needs_ray]

CLIENT = """
    import os, time
    from pathlib import Path
    from kaas import ROOT
    own = Path({folder!r}) / Path(os.environ["KAAS_SCRATCH"]).name
    own.write_text(str(ROOT))
    def prepare(arg, copy):
        (Path({folder!r}) / f"client-{{copy}}").write_text(str(os.getpid()))
    def run_client(arg):
        begun = time.perf_counter()
        time.sleep(0.02)
        return (time.perf_counter() - begun) * 1000, 1.0, 0.0, False
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    made = Load(tmp_path)
    yield made
    made.end()


@pytest.fixture
def said(tmp_path: Path) -> Path:
    folder = tmp_path / "said"
    folder.mkdir()
    return folder


def test_clients_are_spread_over_the_nodes_and_their_rows_are_on_the_runs_clock(
    load: Load, said: Path, start_cluster: StartCluster
) -> None:
    ray = ("--engine", "ray", "--ray-address", start_cluster(2, 2).address)
    before = time.time()
    code, told = load.run(
        CLIENT.format(folder=str(said)), *ray, "--max-parallel", "4", "--interval", "1", "--max-late", "100"
    )
    after = time.time()

    assert code == 0, told
    rows = load.rows()
    assert {row.status for row in rows} == {"ok"}
    assert {row.copy for row in rows} == set(range(4))
    assert {row.concurrency for row in rows} == set(range(1, 5)), "those on the other node count, too"
    assert len(list(said.glob("kaas-*"))) == 2, "each node has a folder of its own"
    shipped = {Path(path.read_text()) for path in said.glob("kaas-*")}
    assert len(shipped) == 2, "a node that unpacks the project takes away nothing that another one runs from"
    assert ROOT not in shipped
    assert all(before < row.timestamp < after for row in rows)
    by_client = defaultdict(list)
    for row in rows:
        by_client[row.copy].append(row)
    facts = description.read(load.rows_file.with_suffix(".md"))
    known_to = max(map(float, re.findall(r"known to (\S+) ms", facts["Load nodes"]))) / 1000
    for of_one in by_client.values():
        for one, following in itertools.pairwise(sorted(of_one)):
            assert following.timestamp > one.timestamp + one.outer_time_ms / 1000 - 2 * known_to
    assert facts["Requests ok"] == str(len(rows))
    nodes = sorted(facts["Load nodes"].split("; "))
    assert [line.partition(":")[0] for line in nodes] == ["simulated-1", "simulated-2"]
    assert all(re.search(r": its clock is known to \d+\.\d+ ms$", line) for line in nodes), nodes


def test_of_a_node_that_is_lost_the_rows_stay_its_clients_are_told_and_the_others_have_as_many_more(
    load: Load, said: Path, start_cluster: StartCluster
) -> None:
    cluster = start_cluster(2, 2)
    ray = ("--engine", "ray", "--ray-address", cluster.address)
    # It goes on until the test has seen enough.
    process = load.start(
        CLIENT.format(folder=str(said)),
        *(*ray, "--min-parallel", "4", "--max-parallel", "4", "--interval", "600", "--max-late", "100"),
    )
    eventually(lambda: load.has_rows() and {row.copy for row in load.rows()} == {0, 1, 2, 3})
    cluster.raylet("simulated-2").kill()
    eventually(lambda: {0, 1, 2, 3, 4, 6} <= {row.copy for row in load.rows()}, what="the other has two more")
    process.terminate()
    told, _ = process.communicate()

    assert process.returncode == 130, told
    assert "node simulated-2 is lost with its 2 clients: " in told
    failed = [row for row in load.rows() if row.status != "ok"]
    assert sorted((row.copy, row.status, row.error) for row in failed) == [
        (copy, "failed", "node simulated-2 was lost, and its client") for copy in (1, 3)
    ]
    assert Counter(row.copy for row in load.rows() if row.status == "ok").keys() == {0, 1, 2, 3, 4, 6}
    assert "simulated-2: its clock is known to" in description.read(load.rows_file.with_suffix(".md"))["Load nodes"]


def test_a_run_that_has_lost_a_node_ends_as_one_whose_clients_were_killed(
    load: Load, said: Path, start_cluster: StartCluster
) -> None:
    cluster = start_cluster(2, 2)
    ray = ("--engine", "ray", "--ray-address", cluster.address, "--max-late", "100")
    client = CLIENT.format(folder=str(said)) + "\n    time.sleep(0)\n"
    process = load.start(client, *ray, "--min-parallel", "2", "--max-parallel", "2", "--interval", "15")
    eventually(lambda: load.has_rows() and {row.copy for row in load.rows()} == {0, 1})
    # A client that is killed by itself is a row as on one machine.
    os.kill(int((said / "client-0").read_text()), 9)
    eventually(lambda: any(row.status == "failed" for row in load.rows()))
    cluster.raylet("simulated-2").kill()
    told, _ = process.communicate()

    assert process.returncode == 3, told
    errors = sorted(row.error for row in load.rows() if row.status == "failed")
    assert errors == ["node simulated-2 was lost, and its client", "the client ended by SIGKILL"]
    assert "2 of " in told
    assert "node simulated-1: client 0 died (ended by SIGKILL)" in told


@pytest.mark.parametrize(
    ("cleanup", "how"),
    [("raise ValueError('in use')", "ValueError: in use"), ("time.sleep(3600)", "killed after 0.5 s")],
    ids=["raises", "hangs"],
)
def test_clients_that_do_not_end_in_order_on_their_nodes_are_said_and_an_error(
    load: Load, said: Path, start_cluster: StartCluster, cleanup: str, how: str
) -> None:
    client = CLIENT.format(folder=str(said)) + f"    def cleanup():\n        {cleanup}\n"
    ray = ("--engine", "ray", "--ray-address", start_cluster(2, 2).address, "--max-late", "100")
    code, told = load.run(client, *ray, "--min-parallel", "2", "--max-parallel", "2", "--finish-timeout", "0.5")

    assert code == 3, told
    assert re.search(rf"^clients that did not end in order: 2, most often: .*{how}", told, re.M), told


def test_a_load_generator_that_is_killed_leaves_no_client_on_any_node(
    load: Load, said: Path, start_cluster: StartCluster
) -> None:
    cluster = start_cluster(2, 2)
    ray = ("--engine", "ray", "--ray-address", cluster.address)
    process = load.start(
        CLIENT.format(folder=str(said)), *ray, "--min-parallel", "2", "--max-parallel", "2", "--interval", "600"
    )
    eventually(load.has_rows)
    clients = [psutil.Process(int(path.read_text())) for path in said.glob("client-*")]
    process.kill()
    process.wait()
    eventually(lambda: not any(client.is_running() for client in clients), what="the clients have ended")
    eventually(lambda: not cluster.has("kaas.load.clients"), what="what starts them has ended")
    load.marked.assert_nothing_left()
    cluster.end()
    leftovers.sweep()  # as the next run does


@pytest.mark.parametrize(
    ("client", "complaint"),
    [
        ("raise ValueError('of no use')", "node 127.0.0.1: "),
        ("def run_client(arg): pass\ndef prepare(arg, copy):\n    raise ValueError('of no use')", "cannot be prepared"),
    ],
    ids=["does not load", "cannot be prepared"],
)
def test_a_client_module_that_is_of_no_use_on_a_node_is_one_line(
    load: Load, start_cluster: StartCluster, client: str, complaint: str
) -> None:
    code, told = load.run(client, "--engine", "ray", "--ray-address", start_cluster(1, 1).address)

    assert code == 1, told
    assert complaint in told
    assert "of no use" in told
    assert "Traceback" not in told
