from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import PUBLISHED, booted, needs_published, request, write_run

from kaas.analysis import claims, runs
from kaas.analysis.claims import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, Claim
from kaas.analysis.judging import NOT_TESTABLE, Finding, over_repeats
from kaas.events import Event
from kaas.row import Row

STEP_S = 4
GROW, COLD, BOUNDED, PROPORTIONAL, ALL_USED, NEEDED, WORKS, SERIAL = range(8)
SETTING = {"Server number of GPUs": 3, "Server workers per GPU": 2}
# Three GPUs of two workers each, booted for the first, third and fifth client; the seventh is refused.
BOOTS = (booted(0, 0), booted(8, 1), booted(16, 2))


def ramp(
    most: int = 7, time_ms: Callable[[int], float] = lambda _: 500, cold: Iterable[int] = (1, 3, 5), full: int = 7
) -> list[Row]:
    """Give the requests of 1, 2, ... `most` clients, one more every 4 s, none of which ever pauses.

    Args:
        most: the most clients.
        time_ms: what a request takes, by the number of clients.
        cold: the clients whose first request boots a task runner.
        full: the first client whose requests are refused.
    """
    rows = []
    for clients in range(1, most + 1):
        time = time_ms(clients)
        begins = [(clients - 1) * STEP_S + turn * time / 1000 for turn in range(int(STEP_S * 1000 / time))]
        for client in range(1, clients + 1):
            status = "rejected" if client >= full else "ok"
            boots = client == clients and client in cold
            rows += [
                request(at, time, status, concurrency=clients, cold=boots and turn == 0)._replace(
                    inner_time_ms=0.0 if status == "rejected" else time - 21  # of the rest, 1 ms is setup
                )
                for turn, at in enumerate(begins)
            ]
    return rows


def check(
    folder: Path, rows: Iterable[Row], happened: Iterable[Event] = BOOTS, setting: Mapping[str, int] = SETTING
) -> list[Claim]:
    write_run(folder, "task-1", rows, happened, parameters=setting)
    (run,) = runs.find_runs(folder)
    return claims.check_run(run)


def verdicts(checked: list[Claim]) -> list[str]:
    """Give the verdicts on the paper's own claims."""
    return [claim.verdict for claim in checked[:NEEDED]]


def test_a_run_that_scales_as_it_should_satisfies_each_claim(tmp_path: Path) -> None:
    checked = check(tmp_path, ramp())

    assert verdicts(checked) == [HOLDS] * 5
    assert [claim.found for claim in checked] == [
        "up to 3 of 3 task runners with up to 7 clients, of 7 steps too many in 0, too few in 0",
        "3 cold starts, 3 boots",
        "completion time 0 ms per client, over the ramp +0% of 500 ms; time at the server 0 ms per client (from 0 to "
        "0; at most 83.2); what is neither setup nor kernel 0 ms per client (from 0 to 0; at most 8.33); 0.00% of "
        "requests took longer at the server than 998 ms (at most 0.5%)",
        # In each step of 4 s end 8 requests of each client, less 1 of the newest one.
        "with up to 6 clients: throughput ~ clients^1.04 (from 1.03 to 1.05); until the last GPU was booted (5 "
        "clients): ~ clients^1.04 (from 1.03 to 1.05)",
        "3 of 3 GPUs booted when the first of 8 was refused at 24.5 s, 0 of them with fewer than nine tenths of 6 "
        "places taken (of the first: 6)",
        "3 boots, 0 of them while places were free, 0 times more requests than places before a boot or the end; the "
        "replay boots 3 of 3 GPUs +0.00 to +0.00 s off",
        "",
        "",
    ]
    assert [claim.verdict for claim in checked[NEEDED:]] == [HOLDS, CANNOT_BE_TOLD, CANNOT_BE_TOLD]
    assert checked[PROPORTIONAL].note == "The share of each client is 1.88/s with 2 of them and 1.96/s with 6 (+4%)."


def test_where_another_policy_booted_the_gpus_the_papers_rule_does_not_judge_it(tmp_path: Path) -> None:
    # The next GPU is booted before somebody needs it: no request waits for a cold start but the first.
    write_run(tmp_path, "task-1", ramp(cold=(1,)), BOOTS, parameters=SETTING | {"Server policy": "ahead"})
    (run,) = runs.find_runs(tmp_path)

    checked = claims.check_run(run)

    assert DOES_NOT_HOLD not in [claim.verdict for claim in checked]
    assert "paper's policy, and this server's was ahead" in checked[COLD].note


def test_where_the_load_had_another_shape_the_claims_cannot_be_put_to_it(tmp_path: Path) -> None:
    for number in (1, 2):
        write_run(tmp_path, f"task-{number}", ramp(), BOOTS, parameters=SETTING | {"Shape": "bursts:2"})

    checked = claims.check(runs.find_runs(tmp_path))

    assert set(checked["verdict"]) == {NOT_TESTABLE}
    assert set(checked["note"]) == {
        "The claims are on clients that grow step by step, and the shape of this load was bursts:2."
    }


@pytest.mark.parametrize(
    ("happened", "found"),
    [
        # All of them at the begin.
        ([booted(0, 0), booted(0, 1), booted(0, 2)], "up to 3 of 3 task runners"),
        # The second GPU one client too early: 2 task runners for 2 clients.
        ([booted(0, 0), booted(4, 1), booted(16, 2)], "up to 3 of 3 task runners"),
        # Fewer and fewer: 1, 1, 2, 2, 3, 2, 1, where 10 pairs of steps agree and 5 do not.
        (
            [*BOOTS, *(Event("stopped", T, gpu, 2) for gpu, T in ((2, 1_700_000_020.0), (1, 1_700_000_024.0)))],
            "up to 3 of 3 task runners",
        ),
    ],
)
def test_task_runners_that_do_not_follow_the_clients_are_found(
    tmp_path: Path, happened: list[Event], found: str
) -> None:
    checked = check(tmp_path, ramp(), happened)

    assert checked[GROW].verdict == DOES_NOT_HOLD
    assert checked[GROW].found.startswith(found)


def test_task_runners_that_lag_behind_the_requests_are_found(tmp_path: Path) -> None:
    setting = {"Server number of GPUs": 8, "Server workers per GPU": 4}
    rows = ramp(most=16, cold=(1, 16), full=99)

    # Never one too many, and always more with more clients.
    late = check(tmp_path / "a", rows, [booted(0, 0, 4), booted(60, 1, 4)], setting)[GROW]
    behind_by_one = check(tmp_path / "b", rows, [booted(0, 0, 4), booted(32, 1, 4), booted(48, 2, 4)], setting)[GROW]

    assert late.verdict == DOES_NOT_HOLD
    assert late.found.startswith("")
    # One task runner of the three or four that 9 to 15 clients need, and two of the four of 16.
    assert late.found.endswith("of 16 steps too many in 0, too few in 8")
    assert behind_by_one.verdict == HOLDS


def test_clients_that_have_nothing_at_the_server_need_no_task_runner(tmp_path: Path) -> None:
    # Ten clients are counted, and one of them asks: the others hang, and are in no row.
    rows = [request(at / 2, 500, concurrency=1 + at // 8) for at in range(80)]

    grow = check(
        tmp_path, rows, [booted(0, 0), booted(36, 1)], {"Server number of GPUs": 8, "Server workers per GPU": 2}
    )

    assert grow[GROW].verdict == HOLDS


def test_task_runners_that_never_become_more_do_not_grow(tmp_path: Path) -> None:
    grow = check(tmp_path, ramp(cold=[1]), BOOTS[:1])[GROW]

    assert (grow.verdict, grow.note) == (DOES_NOT_HOLD, "The number of task runners never changed.")


@pytest.mark.parametrize("cold", [(1, 3), (1, 2, 3, 5)])
def test_a_boot_without_a_cold_start_or_one_without_a_boot_is_found(tmp_path: Path, cold: tuple[int, ...]) -> None:
    checked = check(tmp_path, ramp(cold=cold))

    assert verdicts(checked) == [HOLDS, DOES_NOT_HOLD, HOLDS, HOLDS, HOLDS]
    assert checked[COLD].found.startswith(f"{len(cold)} cold starts, 3 boots")


def test_a_boot_that_no_cold_start_waited_for_is_found_though_there_are_as_many(tmp_path: Path) -> None:
    late = [booted(0, 0), booted(8, 1), booted(18, 2)]  # the third cold start lasts from 16 s to 16.5 s

    checked = check(tmp_path, ramp(), late)[COLD]

    assert checked.verdict == DOES_NOT_HOLD
    assert checked.found == "3 cold starts, 3 boots, 1 of them without one in its time"


def test_one_cold_start_does_not_stand_for_two_boots(tmp_path: Path) -> None:
    rows = [*ramp(cold=(1, 3)), request(26, 500, cold=True, concurrency=7)]

    assert check(tmp_path, rows, [booted(0, 0), booted(8, 1), booted(8, 2)])[COLD].verdict == DOES_NOT_HOLD


def test_cold_starts_that_overlap_are_told_apart(tmp_path: Path) -> None:
    # The long one was the server's answer to the last of three boots, though it is of the time of all.
    long = request(0, 9000, cold=True, copy=1)
    rows = [long, request(0, 500, cold=True), request(2, 500, cold=True)]

    assert check(tmp_path, rows, [booted(0.2, 0), booted(2.2, 1), booted(8, 2)])[COLD].verdict == HOLDS


def test_a_task_runner_that_is_booted_again_costs_one_more_cold_start(tmp_path: Path) -> None:
    checked = check(tmp_path, [*ramp(), request(30, 500, cold=True, concurrency=7)], [*BOOTS, booted(30, 2)])

    assert checked[COLD].found == "4 cold starts, 4 boots"
    assert checked[COLD].verdict == HOLDS


def test_requests_that_queue_before_one_gpu_break_the_bound_and_the_proportion(tmp_path: Path) -> None:
    # From the third client on each one adds a half of what one takes with the two workers of the first GPU.
    checked = check(tmp_path, ramp(time_ms=lambda clients: 250 * max(2, clients)))

    assert verdicts(checked) == [HOLDS, HOLDS, DOES_NOT_HOLD, DOES_NOT_HOLD, HOLDS]
    assert checked[BOUNDED].found.startswith("completion time 250 ms per client, over the ramp +300% of 500 ms")
    assert "; time at the server 250 ms per client (from " in checked[BOUNDED].found


def test_a_slope_up_to_the_share_of_one_worker_is_within_the_bound(tmp_path: Path) -> None:
    # The median with one GPU is 500 ms: a sixth of it for each client is 83.3 ms.
    within = check(tmp_path / "a", ramp(time_ms=lambda clients: 500 + 80 * max(0, clients - 2)))
    beyond = check(tmp_path / "b", ramp(time_ms=lambda clients: 500 + 100 * max(0, clients - 2)))

    assert (within[BOUNDED].verdict, beyond[BOUNDED].verdict) == (HOLDS, DOES_NOT_HOLD)


def test_throughput_that_stays_behind_the_clients_is_found(tmp_path: Path) -> None:
    # What each client gets falls to a third of it with six.
    checked = check(tmp_path, ramp(time_ms=lambda clients: 500 * (1 + 0.4 * (clients - 1))))

    assert checked[PROPORTIONAL].verdict == DOES_NOT_HOLD


@pytest.mark.parametrize(("exponent", "verdict"), [(0.4, DOES_NOT_HOLD), (0.6, HOLDS)])
def test_a_throughput_that_bends_is_told_by_its_exponent(tmp_path: Path, exponent: float, verdict: str) -> None:
    # A line through the origin explains over 95 % of the variance of either.
    setting = {"Server number of GPUs": 8, "Server workers per GPU": 4}
    rows = ramp(most=16, time_ms=lambda clients: 100 * clients ** (1 - exponent), full=99)

    checked = check(tmp_path, rows, setting=setting)[PROPORTIONAL]

    assert checked.verdict == verdict
    found = checked.found.removeprefix("with up to 16 clients: throughput ~ clients^")
    assert float(found[:4]) == pytest.approx(exponent, abs=0.05)


def test_a_step_in_which_nothing_was_served_does_not_tell_of_a_proportion(tmp_path: Path) -> None:
    rows = [row._replace(status="timeout") if row.concurrency in (4, 5) else row for row in ramp()]

    checked = check(tmp_path, rows)[PROPORTIONAL]

    assert (checked.verdict, checked.note) == (CANNOT_BE_TOLD, "No request was served in 1 of the 5 steps that tell.")


@pytest.mark.parametrize(("gpu", "noted"), [("virtual:0", True), ("00000000:15:00.0", False)])
def test_where_gpus_are_virtual_that_explains_what_does_not_scale(tmp_path: Path, gpu: str, noted: bool) -> None:
    files = write_run(
        tmp_path, "task-1", ramp(time_ms=lambda clients: 250 * max(2, clients)), BOOTS, [(0, 0, 9)], parameters=SETTING
    )
    files.monitoring.write_text(files.monitoring.read_text().replace("virtual:0", gpu))

    (run,) = runs.find_runs(tmp_path)
    checked = claims.check_run(run)

    for claim in (BOUNDED, PROPORTIONAL):
        assert checked[claim].verdict == DOES_NOT_HOLD
        assert ("virtual and share the same cores" in checked[claim].note) == noted
    assert not any("virtual" in claim.note for claim in checked if claim.verdict == HOLDS)


@pytest.mark.parametrize(
    ("cores", "gpus", "testable"),
    # Of seven clients, one is refused where there are six workers, and of twelve workers only seven are busy.
    [("5", 3, False), ("6", 3, True), ("7", 6, True), ("1.2.3", 3, True)],
)
def test_where_virtual_gpus_have_more_busy_workers_than_cores_growth_is_not_testable(
    tmp_path: Path, cores: str, gpus: int, testable: bool
) -> None:
    parameters = SETTING | {"CPU usable": f"{cores} threads' worth", "Server number of GPUs": gpus}
    rows = ramp(time_ms=lambda clients: 250 * max(2, clients))
    write_run(tmp_path, "task-1", rows, BOOTS, [(0, 0, 9)], parameters=parameters)

    checked = claims.check_run(runs.find_runs(tmp_path)[0])

    for claim in (BOUNDED, PROPORTIONAL):
        assert (checked[claim].verdict == NOT_TESTABLE) == (not testable)
        assert checked[claim].verdict != HOLDS
    assert ("up to 6 busy workers shared 5 cores" in checked[BOUNDED].note) == (not testable)
    assert {claim.verdict for claim in checked} >= {HOLDS}, "others are judged as ever"


def test_what_no_repeat_can_test_is_not_testable_by_several() -> None:
    there, not_there = Finding("", sound=False), Finding("", sound=False, testable=False)
    assert [over_repeats([one, one])[1] for one in (there, not_there)] == [DOES_NOT_HOLD, NOT_TESTABLE]
    assert over_repeats([not_there._replace(sound=True)] * 2)[1] == HOLDS


def test_a_refusal_before_the_last_boot_is_found(tmp_path: Path) -> None:
    checked = check(tmp_path, [*ramp(), request(9, 250, "rejected", concurrency=3)])

    assert checked[ALL_USED].verdict == DOES_NOT_HOLD
    assert checked[ALL_USED].found.startswith("2 of 3 GPUs booted when the first of 9 was refused at 9.2 s")


def test_a_refusal_while_a_gpu_was_never_used_is_found(tmp_path: Path) -> None:
    checked = check(tmp_path, ramp(), setting=SETTING | {"Server number of GPUs": 4})

    assert checked[ALL_USED].verdict == DOES_NOT_HOLD
    assert checked[ALL_USED].found.startswith("3 of 4 GPUs booted")


def test_the_servers_log_says_best_when_a_request_was_refused(tmp_path: Path) -> None:
    # It came back at 16.25 s, after the last boot, but had been refused before it.
    rows = [*ramp(most=6), request(15, 1250, "rejected", concurrency=4)]

    assert check(tmp_path / "a", rows)[ALL_USED].verdict == HOLDS
    refused = Event("rejected", 1_700_000_015.5)
    assert check(tmp_path / "b", rows, [*BOOTS, refused])[ALL_USED].verdict == DOES_NOT_HOLD


def test_without_parameters_the_gpus_are_those_that_were_sampled(tmp_path: Path) -> None:
    for gpus in (3, 4):
        samples = [(at, gpu, 60.0) for at in range(2) for gpu in range(gpus)]
        write_run(tmp_path, f"task-{gpus}", ramp(), BOOTS, samples=samples)

    three, four = (claims.check_run(run)[ALL_USED] for run in runs.find_runs(tmp_path))

    assert (three.verdict, three.found[:6]) == (HOLDS, "3 of 3")
    assert (four.verdict, four.found[:6]) == (DOES_NOT_HOLD, "3 of 4")


def test_all_gpus_used_and_nothing_refused_satisfies_the_claim(tmp_path: Path) -> None:
    checked = check(tmp_path, ramp(most=6))

    assert checked[ALL_USED].verdict == HOLDS
    assert checked[ALL_USED].found == "all 3 GPUs booted by 16.0 s, no request refused"


ONE_RUNNER = "One task runner has a worker for each client: there were 2 at most."
NO_LOG = "No boot was logged by the server."


@pytest.mark.parametrize(
    ("rows", "happened", "setting", "notes"),
    [
        pytest.param(
            ramp(most=2),
            BOOTS[:1],
            SETTING,
            [ONE_RUNNER, "", ONE_RUNNER, ONE_RUNNER, "No request was refused, and 1 of 3 GPUs were used."],
            id="two clients",
        ),
        pytest.param(ramp(), (), SETTING, [NO_LOG, NO_LOG, NO_LOG, "", NO_LOG], id="no server log"),
        pytest.param(
            ramp(),
            (),
            {},
            [NO_LOG, NO_LOG, *["The number of GPUs or of their workers is not known."] * 2, NO_LOG],
            id="no server log and no parameters",
        ),
        pytest.param(
            [request(at / 2, 500, concurrency=5) for at in range(9)],
            BOOTS,
            SETTING,
            [
                "The ramp has too few steps to see growth: 1.",
                None,
                *["The ramp has too few steps to see growth: 1."] * 2,
                "No request was refused, and 1 of 3 GPUs were used.",
            ],
            id="a single step",
        ),
        pytest.param(
            ramp(full=9),
            BOOTS[:1],
            {"Server number of GPUs": 1, "Server workers per GPU": 2},
            [
                "There was one GPU only.",
                None,
                *["There was one GPU only."] * 2,
                "No request was refused, and there was one GPU only.",
            ],
            id="one GPU",
        ),
        pytest.param(
            [request(0, 0, "failed", concurrency=1), *(request(at, 0, "failed", concurrency=at) for at in range(1, 8))],
            BOOTS,
            SETTING,
            ["No request was served."] * 5,
            id="nothing served",
        ),
        pytest.param(ramp(), BOOTS, {}, ["", "", "", "", "The number of GPUs is not known."], id="no parameters"),
    ],
)
def test_where_a_run_does_not_tell_there_is_a_reason_and_no_verdict(
    tmp_path: Path,
    rows: list[Row],
    happened: tuple[Event, ...],
    setting: Mapping[str, int],
    notes: list[str | None],
) -> None:
    checked = check(tmp_path, rows, happened, setting)

    for claim, note in zip(checked[:NEEDED], notes, strict=True):
        if note:
            assert claim[2:] == ("", CANNOT_BE_TOLD, note)
        elif note == "":
            assert claim.verdict != CANNOT_BE_TOLD


def test_the_table_has_a_line_for_each_claim_and_repeat_with_the_tolerances(tmp_path: Path) -> None:
    for number in (1, 2):
        rows = [row._replace(timestamp=row.timestamp + 3600 * number) for row in ramp()]
        later = [boot._replace(timestamp=boot.timestamp + 3600 * number) for boot in BOOTS]
        write_run(tmp_path, f"task-{number}", rows, later, parameters=SETTING)

    frame = claims.check(runs.find_runs(tmp_path))

    assert frame.index.names == ["claim", "task"]
    assert frame.columns.tolist() == ["expected", "found", "verdict", "note"]
    assert frame.index.get_level_values("task").tolist() == ["task, 2 repeats", "task-1", "task-2"] * 8
    expected = frame["expected"].xs("task-1", level="task").tolist()
    assert "at most one fewer than the step's mean number of requests in flight" in expected[GROW]
    assert "exactly" in expected[COLD]
    assert "a slope over the clients of at most its median with one GPU / all workers" in expected[BOUNDED]
    assert "throughput ~ clients^e with an e of more than 0.5" in expected[PROPORTIONAL]
    assert "a place is held until the kernel has ended and 20% of what remains" in expected[NEEDED]


@needs_published
def test_the_published_repeats_satisfy_what_they_tell_of() -> None:
    checked = [claims.check_run(run) for run in runs.find_runs(PUBLISHED)]

    grown = "up to 8 of 8 task runners with up to 48 clients, of 48 steps too many in 0, too few in 0"
    boots = (
        "8 boots, 0 of them while places were free, 0 times more requests than places before a boot or the end; the "
        "replay boots 8 of 8 GPUs"
    )
    assert [[claim.found for claim in repeat] for repeat in checked] == [
        [
            grown,
            "8 cold starts, 8 boots",
            "completion time 57.4 ms per client, over the ramp +109% of 2465 ms; the client's own setup alone 47.2 "
            "ms per client (82%); time at the server -3.46 ms per client (from -8.88 to 7.31; at most 56.1); what is "
            "neither setup nor kernel 2.81 ms per client (from 2.6 to 3.01; at most 5.25); 0.00% of requests took "
            "longer at the server than 7183 ms (at most 0.5%)",
            "with up to 32 clients: throughput ~ clients^0.81 (from 0.77 to 0.84); until the last GPU was booted (47 "
            "clients): ~ clients^0.71 (from 0.66 to 0.74); from 33 to 48 clients: flat, 8.08/s",
            "all 8 GPUs booted by 466.9 s, no request refused",
            f"{boots} +0.00 to +0.02 s off",
            "of 8 GPUs 0 worked before their boot, 0 never after it",
            "while there was one GPU, from the end of one kernel to that of the next: 0.829 s, and 95 % of 31 more "
            "than 0.784 s (at least 0.622)",
        ],
        [
            grown,
            "8 cold starts, 8 boots",
            "completion time 51.4 ms per client, over the ramp +97% of 2480 ms; the client's own setup alone 36.7 ms "
            "per client (71%); time at the server 2.71 ms per client (from -0.419 to 7.97; at most 56.5); what is "
            "neither setup nor kernel 2.3 ms per client (from 2.09 to 2.53; at most 5.28); 0.00% of requests took "
            "longer at the server than 7230 ms (at most 0.5%)",
            "with up to 32 clients: throughput ~ clients^0.81 (from 0.78 to 0.84); until the last GPU was booted (40 "
            "clients): ~ clients^0.76 (from 0.73 to 0.79); from 33 to 48 clients: flat, 8.03/s",
            "8 of 8 GPUs booted when the first of 2 was refused at 482.4 s, 0 of them with fewer than nine tenths of "
            "32 places taken (of the first: 31)",
            f"{boots} +0.00 to +0.00 s off",
            "of 8 GPUs 0 worked before their boot, 0 never after it",
            "while there was one GPU, from the end of one kernel to that of the next: 0.835 s, and 95 % of 33 more "
            "than 0.791 s (at least 0.627)",
        ],
    ]
    assert [claim.verdict for repeat in checked for claim in repeat] == [HOLDS] * 16
    assert [repeat[PROPORTIONAL].note for repeat in checked] == [
        "The share of each client is 0.422/s with 2 of them and 0.23/s with 32 (-45%).",
        "The share of each client is 0.423/s with 2 of them and 0.234/s with 32 (-45%).",
    ]


def test_a_run_of_which_every_request_was_refused_tells_nothing_of_any_claim(tmp_path: Path) -> None:
    checked = check(tmp_path, ramp(full=1))
    assert {(claim.verdict, claim.note) for claim in checked} == {(CANNOT_BE_TOLD, "No request was served.")}


def test_a_run_whose_time_stamps_cannot_be_trusted_tells_nothing_of_any_claim(tmp_path: Path) -> None:
    write_run(tmp_path, "task-1", ramp(), BOOTS, parameters=SETTING)
    (run,) = runs.find_runs(tmp_path)
    checked = claims.check_run(replace(run, timed=False))
    assert {claim.verdict for claim in checked} == {CANNOT_BE_TOLD}


def test_a_verdict_over_repeats_is_of_those_that_did_the_same(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shifted = [row._replace(timestamp=row.timestamp + 3600 * number) for row in ramp(most=7 if number < 3 else 5)]
        later = [event._replace(timestamp=event.timestamp + 3600 * number) for event in BOOTS]
        clients = {"Maximum parallel requests": 7 if number < 3 else 5}
        write_run(tmp_path, f"x-{number}", shifted, later, parameters={**SETTING, **clients})
    table = claims.check(runs.find_runs(tmp_path))
    assert {task for task in table.index.get_level_values("task") if "repeats" in task} == {"x, 2 repeats"}
