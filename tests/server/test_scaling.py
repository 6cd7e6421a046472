"""Where invocations go: the order of boots, refusals, the queue, and task runners that are no longer needed."""

import json
from pathlib import Path

from support import StartServer, eventually

TWO_BY_TWO = ("-g", "2", "-m", "2")


def test_the_next_gpu_is_booted_when_all_booted_ones_are_full_and_then_invocations_are_rejected(
    start_server: StartServer, gate: Path
) -> None:
    server = start_server("wait", *TWO_BY_TWO)
    with server.frames() as frames:
        frames.invoke_together(gate, range(1, 6))
        rejected = frames.reply(5)
        status = server.status()
        gate.touch()
        replies = frames.replies(1, 2, 3, 4)
    assert (rejected.status, rejected.gpu, rejected.worker) == ("rejected", None, None)
    assert (status["in_flight"], status["task_runners"], status["counters"]["cold_starts"]) == (4, 2, 2)
    assert [(replies[i].status, replies[i].gpu, replies[i].worker, replies[i].cold_start) for i in range(1, 5)] == [
        ("ok", 0, 0, True),
        ("ok", 0, 1, False),
        ("ok", 1, 2, True),
        ("ok", 1, 3, False),
    ]
    assert all(replies[i].waited_for_boot for i in range(1, 5))
    events = server.events()
    assert [(event.gpu, event.num_workers) for event in events if event.event == "booted"] == [(0, 2), (1, 2)]
    assert sorted(event.worker for event in events if event.worker is not None) == [0, 1, 2, 3]
    assert [event.event for event in events].count("rejected") == 1


def test_on_booted_gpus_the_one_with_the_fewest_in_flight_is_next(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", *TWO_BY_TWO)
    with server.frames() as frames:
        for number in range(1, 4):
            frames.invoke(gate, number)
        gate.touch()
        frames.replies(1, 2, 3)
        eventually(lambda: len(server.workers("idle")) == 4)
        gate.unlink()
        for number in range(4, 8):
            frames.invoke(gate, number)
        eventually(lambda: server.status()["in_flight"] == 4)
        gate.touch()
        replies = frames.replies(4, 5, 6, 7)
    assert [replies[number].worker for number in range(4, 8)] == [0, 2, 1, 3]
    assert not any(replies[number].waited_for_boot or replies[number].cold_start for number in range(4, 8))


def test_a_worker_sees_its_own_gpu_only_and_as_number_0(start_server: StartServer) -> None:
    server = start_server("whoami", *TWO_BY_TWO, "--idle-timeout", "0")
    with server.frames() as frames:
        frames.invoke_together(b"", range(1, 4))
        replies = frames.replies(1, 2, 3)
    for number, gpu in ((1, "0"), (3, "1")):
        reply = replies[number]
        found = json.loads(reply.payload)
        assert (str(reply.gpu), found["CUDA_VISIBLE_DEVICES"], found["WORKER_GPU"]) == (gpu, gpu, "0")
        assert {"worker": reply.worker, "gpu": reply.gpu, "pid": found["pid"]}.items() <= server.status()["workers"][
            reply.worker or 0
        ].items()


def test_each_refusal_is_counted_and_printed_once(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1")
    with server.frames() as frames:
        for number in range(1, 22):
            frames.invoke(gate, number)
        refused = frames.replies(*range(2, 22))
        assert {reply.status for reply in refused.values()} == {"rejected"}
        gate.touch()
        assert frames.reply(1).status == "ok"
    assert server.counters() == {"accepted": 21, "ok": 1, "rejected": 20, "replies": 21, "cold_starts": 1}
    assert server.names_of_events().count("rejected") == 20


def test_a_queue_is_served_first_come_first_served_and_is_bounded(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--when-full", "queue", "--max-queue", "3")
    with server.frames() as frames:
        for number in range(1, 6):
            frames.invoke(gate, number)
        assert frames.reply(5).status == "rejected"
        assert (server.status()["in_flight"], server.status()["queued"]) == (4, 3)
        gate.touch()
        replies = frames.replies(1, 2, 3, 4)
    assert list(replies) == [5, 1, 2, 3, 4]
    assert [replies[number].status for number in range(1, 5)] == ["ok"] * 4
    assert [replies[number].cold_start for number in range(1, 5)] == [True, False, False, False]
    assert replies[2].queued_ns < replies[3].queued_ns < replies[4].queued_ns
    assert server.status()["queued"] == 0
    assert server.names_of_events().count("rejected") == 1


def test_who_waits_longer_than_the_queue_timeout_is_answered_timeout(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--when-full", "queue", "--queue-timeout", "0.2")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        frames.invoke(gate, 2)
        reply = frames.reply(2)
        assert (reply.status, reply.worker) == ("timeout", None)
        assert b"--queue-timeout" in reply.payload
        assert (server.status()["in_flight"], server.status()["queued"]) == (1, 0)
        gate.touch()
        assert frames.reply(1).status == "ok"


def test_a_clients_own_timeout_holds_in_the_queue(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--when-full", "queue", "--queue-timeout", "60")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        frames.invoke(gate, 2, timeout=0.2)
        reply = frames.reply(2)
        assert (reply.status, b"not done within 0.2 s" in reply.payload) == ("timeout", True)
        gate.touch()
        assert frames.reply(1).status == "ok"


def test_a_client_that_leaves_the_queue_leaves_no_gap(start_server: StartServer, gate: Path) -> None:
    server = start_server("wait", "-m", "1", "--when-full", "queue")
    with server.frames() as frames:
        frames.invoke(gate, 1)
        with server.frames() as other:
            other.invoke(gate)
            eventually(lambda: server.status()["queued"] == 1)
        eventually(lambda: server.status()["queued"] == 0)
        frames.invoke(gate, 2)
        gate.touch()
        assert [reply.status for reply in frames.replies(1, 2).values()] == ["ok", "ok"]
    assert server.counters() == {"accepted": 3, "ok": 2, "abandoned": 1, "replies": 2, "cold_starts": 1}


def test_a_task_runner_without_work_is_stopped_and_booted_again(start_server: StartServer) -> None:
    server = start_server("whoami", "-m", "2", "--idle-timeout", "0.3")
    with server.connection() as kaas:
        first = kaas.invoke(b"")
        eventually(lambda: server.status()["task_runners"] == 0)
        assert server.status()["workers"] == []
        eventually(lambda: not server.worker_processes(), what="its processes have ended and are reaped")
        second = kaas.invoke(b"")
    assert (first.cold_start, second.cold_start) == (True, True)
    assert json.loads(first.payload)["pid"] != json.loads(second.payload)["pid"]
    assert server.counters()["cold_starts"] == 2
    stops = [event for event in server.events() if event.event == "stopped"]
    assert (stops[0].gpu, stops[0].num_workers, stops[0].detail) == (0, 2, "idle")


def test_a_task_runner_with_work_is_not_stopped(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("wait", *TWO_BY_TWO, "--idle-timeout", "0.3")
    first, second = tmp_path / "first", tmp_path / "second"
    with server.frames() as frames:
        for number, gate in enumerate((first, first, second), 1):
            frames.invoke(gate, number)
        first.touch()
        eventually(lambda: server.status()["task_runners"] == 1)
        assert [worker["gpu"] for worker in server.workers("busy")] == [1]
        second.touch()
        assert frames.reply(3).status == "ok"
    stopped = eventually(lambda: [event.gpu for event in server.events() if event.event == "stopped"][1:])
    assert stopped == [1]
