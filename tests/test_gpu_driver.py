"""The GPU kernels by the real numba-cuda over a stand-in of NVIDIA's driver: as scripts, as workers, and in its faults.

What only a GPU can tell is in test_gpu_kernels.py, under the mark `gpu`.
"""

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from stand_in_driver import CONTEXT_BYTES, KERNELS, Driver, both_kernels, every_card, one_card
from support import Server, StartServer, eventually

from kaas import ROOT
from kaas.matrices import Task, is_square_of, random_matrix, shared_matrix
from kaas.wire import Reply

PHASES = ["fork", "import", "context", "compile", "first_launch"]
LOST = {214: "ECC_UNCORRECTABLE", 700: "ILLEGAL_ADDRESS", 719: "LAUNCH_FAILED", 806: "MPS_RPC_FAILURE"} | {
    810: "MPS_CLIENT_TERMINATED"
}
"""Errors that end a CUDA context."""


def serve(start_server: StartServer, driver: Driver, kernel: str | Path, *arguments: str) -> Server:
    path = KERNELS[kernel] if isinstance(kernel, str) else kernel
    return start_server(path, *arguments, python=driver.environment.python, **driver.variables)


def square(server: Server, n: int = 100, dtype: str = "float64") -> Reply:
    """Have one matrix squared; a product that is said to be there must be right."""
    with shared_matrix(n, dtype) as a, shared_matrix(n, dtype) as c, server.connection() as kaas:
        a.matrix[:] = random_matrix(n)
        reply = kaas.invoke(Task(a.name, c.name, n, dtype).encode(), timeout=60.0)
        assert reply.status != "ok" or is_square_of(c.matrix, a.matrix), "a wrong product"
        return reply


def events(server: Server, name: str) -> list[str]:
    return [event.detail for event in server.events() if event.event == name]


# What they compute


@every_card
@both_kernels
def test_a_kernel_as_a_script_prints_its_time_and_nothing_on_stderr(driver: Driver, kernel: str) -> None:
    done = driver.run(KERNELS[kernel], "100")
    assert re.fullmatch(r"@@@ Elapsed inner time \(ms\): \S+\n", done.stdout)


@every_card
@both_kernels
def test_workers_serve_right_products_of_any_size_and_type_and_say_how_they_got_ready(
    start_server: StartServer, driver: Driver, kernel: str
) -> None:
    server = serve(start_server, driver, kernel, "-m", "2")
    replies = [square(server, n, dtype) for n in (1, 16, 17, 128, 129, 300) for dtype in ("float64", "float32")]
    assert {reply.status for reply in replies} == {"ok"}, replies
    eventually(lambda: len(events(server, "ready")) == 2)
    for ready in events(server, "ready"):
        assert re.findall(r"(\w+) [\d.]+ s", ready) == PHASES


@one_card
def test_the_fork_server_calls_no_function_of_the_driver(start_server: StartServer, driver: Driver) -> None:
    server = serve(start_server, driver, "paper", "-m", "2")
    assert square(server).status == "ok"
    eventually(lambda: len(server.workers("idle")) == 2)
    callers = {pid for pid, _ in driver.calls()}
    assert callers >= {worker["pid"] for worker in server.workers("idle")}
    assert not callers & {server.process.pid, server.forkserver().pid}
    assert server.forkserver().num_threads() == 1


@one_card
@both_kernels
def test_segments_that_stay_are_registered_once_with_the_driver_until_they_are_let_go(
    start_server: StartServer, driver: Driver, kernel: str
) -> None:
    driver.variables["SEGMENTS"] = "kept"
    server = serve(start_server, driver, kernel, "-m", "1")
    n = 100
    with shared_matrix(n) as a, shared_matrix(n) as c, server.connection() as kaas:
        a.matrix[:] = random_matrix(n)
        for _ in range(3):
            c.matrix[:] = 0.0
            assert kaas.invoke(Task(a.name, c.name, n).encode(), timeout=60.0).status == "ok"
            assert is_square_of(c.matrix, a.matrix)
    called = Counter(call for _, call in driver.calls())
    assert (called["cuMemHostRegister_v2"], called["cuMemHostUnregister"]) == (2, 0)
    assert square(server).status == "ok"
    called = Counter(call for _, call in driver.calls())
    assert (called["cuMemHostRegister_v2"], called["cuMemHostUnregister"]) == (4, 2)
    server.stop()
    called = Counter(call for _, call in driver.calls())
    assert (called["cuMemHostRegister_v2"], called["cuMemHostUnregister"]) == (4, 4)


# Memory


@one_card
@both_kernels
def test_an_idle_worker_holds_no_more_memory_of_the_gpu_than_its_context(
    start_server: StartServer, driver: Driver, kernel: str
) -> None:
    server = serve(start_server, driver, kernel, "-m", "1")
    for n in (1000, 300):
        assert square(server, n).status == "ok"
        # It is free before the reply goes out: nothing to wait for.
        (taken,) = driver.bytes_taken().values()
        assert taken == CONTEXT_BYTES


@one_card
@both_kernels
def test_a_request_that_fails_leaves_no_memory_taken(start_server: StartServer, driver: Driver, kernel: str) -> None:
    server = serve(start_server, driver, kernel, "-m", "1")
    assert square(server, 10).status == "ok"
    driver.fail("cuMemcpyDtoH_v2", 1)
    reply = square(server, 1000)
    assert (reply.status, "INVALID_VALUE" in reply.payload.decode()) == ("kernel_error", True), reply
    assert list(driver.bytes_taken().values()) == [CONTEXT_BYTES]
    assert square(server).status == "ok"
    assert "lost" not in server.names_of_events()


@one_card
@both_kernels
def test_a_matrix_that_does_not_fit_is_refused_before_memory_is_taken(
    start_server: StartServer, driver: Driver, kernel: str
) -> None:
    driver.variables["STAND_IN_MEMORY"] = str(CONTEXT_BYTES + 10**6)
    server = serve(start_server, driver, kernel, "-m", "1")
    needed = {"paper": 2 * 400 * 400 * 8, "fast": 400 * 400 * 8 + 512 * 512 * 4}[kernel]
    assert square(server, 10).status == "ok"
    allocations = Counter(function for _, function in driver.calls())["cuMemAlloc_v2"]
    reply = square(server, 400)
    assert reply.status == "kernel_error"
    assert f"400 x 400 matrix of float64 takes {needed} bytes on the GPU, and 1000000 are" in reply.payload.decode()
    assert Counter(function for _, function in driver.calls())["cuMemAlloc_v2"] == allocations


@one_card
def test_memory_that_another_process_took_meanwhile_is_the_same_refusal(
    start_server: StartServer, driver: Driver
) -> None:
    server = serve(start_server, driver, "paper", "-m", "1")
    assert square(server).status == "ok"
    driver.fail("cuMemAlloc_v2", 2, 2)  # Numba asks twice
    reply = square(server)
    assert (reply.status, "bytes on the GPU, and " in reply.payload.decode()) == ("kernel_error", True), reply
    assert square(server).status == "ok"
    assert "lost" not in server.names_of_events()


# A context that is lost


@one_card
def test_a_worker_whose_context_is_lost_answers_once_ends_and_is_replaced(
    start_server: StartServer, driver: Driver
) -> None:
    server = serve(start_server, driver, "paper", "-m", "2")
    assert square(server).status == "ok"
    eventually(lambda: len(server.workers("idle")) == 2)
    for code, name in LOST.items():
        driver.fail("cuMemcpyDtoH_v2", code)
        replies = [square(server) for _ in range(4)]
        assert [reply.status for reply in replies] == ["worker_lost"] + 3 * ["ok"], name
        assert "the CUDA context is lost" in replies[0].payload.decode()
        assert name in replies[0].payload.decode()
        eventually(lambda: name in "".join(events(server, "lost")[-1:]))  # noqa: B023 - said once it has ended
        # The next failure is meant for a request: a worker that is still being tried out would meet it first.
        eventually(lambda: len(server.workers("idle")) == 2)
    assert len(events(server, "lost")) == len(LOST)


@one_card
def test_wherever_the_context_is_lost_the_reply_says_what_went_wrong_first(
    start_server: StartServer, driver: Driver
) -> None:
    server = serve(start_server, driver, "paper", "-m", "1")
    for function, said in (
        ("cuMemGetInfo_v2", "cuMemGetInfo"),
        ("cuMemAlloc_v2", "cuMemAlloc"),
        ("cuMemcpyHtoD_v2", "cuMemcpyHtoD"),
        ("cuLaunchKernelEx", "While executing a kernel"),
        ("cuMemFree_v2", "cuMemFree"),
    ):
        assert square(server).status == "ok"
        driver.fail(function, 700)
        reply = square(server)
        assert reply.status == "worker_lost", function
        assert said in reply.payload.decode(), function


@one_card
def test_a_script_whose_context_is_lost_says_so_in_one_line(driver: Driver) -> None:
    driver.fail("cuMemcpyHtoD_v2", 719)
    done = driver.run(KERNELS["paper"], "10", check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert "the CUDA context is lost" in done.stderr


# A GPU that is not to be had


@one_card
@pytest.mark.parametrize(("function", "code"), [("cuInit", 807), ("cuDevicePrimaryCtxRetain", 805)])
def test_an_mps_server_that_is_not_ready_yet_is_waited_for(driver: Driver, function: str, code: int) -> None:
    driver.fail(function, code, 3)
    assert "@@@ Elapsed" in driver.run(KERNELS["paper"], "10").stdout
    assert driver.failures_left() == 0


@one_card
def test_an_error_that_a_person_has_to_mend_is_one_line_with_what_to_do(driver: Driver) -> None:
    hints = {
        46: "another process has it for itself",
        802: "nvidia-fabricmanager",
        803: "restart the machine",
        805: "CUDA_MPS_PIPE_DIRECTORY",
        807: "the MPS server is starting",
        808: "fewer workers",
    }
    code = """
import os, sys
from pathlib import Path
from kaas import gpu

gpu.PATIENCE = 0.0
for function in "cuInit", "cuDevicePrimaryCtxRetain":
    for code in sys.argv[1:]:
        Path(os.environ["STAND_INS"], "cuda-fail").write_text(f"{function} {code} 1")
        try:
            gpu.prepare_gpu(lambda name: gpu.contextlib.nullcontext(), None, None)
        except gpu.KaasError as error:
            print(code, type(error).__name__, error)
"""
    said = driver.run("-c", code, *map(str, hints)).stdout.splitlines()
    assert len(said) == 2 * len(hints)
    for line in said:
        number, kind, text = line.split(" ", 2)
        assert hints[int(number)] in text
        assert kind == ("TemporarilyUnavailable" if number in {"805", "807"} else "UsageError"), line


@one_card
def test_a_script_that_gets_no_gpu_says_why_in_one_line(driver: Driver) -> None:
    driver.fail("cuInit", 803)
    done = driver.run(KERNELS["paper"], "10", check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert "restart the machine" in done.stderr


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """Make the paper's kernel with less patience: as many seconds as its environment says."""
    kernel = tmp_path / "impatient.py"
    kernel.write_text(f"""
import os
from kaas import cli, gpu, kernels
from pathlib import Path

gpu.PATIENCE = float(os.environ.get("PATIENCE", "0.2"))
kernel = kernels.load(Path({str(KERNELS["paper"])!r}), "call")
call, prepare, close = kernel.call, kernel.prepare, kernel.close
if __name__ == "__main__":
    cli.run(lambda: gpu.run_alone(prepare, kernel.multiply, cli.matrix_size()))
""")
    return kernel


@one_card
def test_the_trial_of_the_kernel_waits_for_the_mps_server(
    start_server: StartServer, driver: Driver, impatient: Path
) -> None:
    driver.fail("cuInit", 807, 3)  # two in the first process, for all its patience, and one in the second
    server = serve(start_server, driver, impatient, "-m", "1")
    assert "MPS_SERVER_NOT_READY" in server.stderr()
    assert square(server).status == "ok"


@one_card
def test_workers_that_the_mps_server_refuses_are_not_left_out(
    start_server: StartServer, driver: Driver, impatient: Path
) -> None:
    driver.variables["PATIENCE"] = "0"
    server = serve(start_server, driver, impatient, "-m", "1")
    driver.fail("cuInit", 807, 2)
    assert square(server).status in {"ok", "worker_lost"}
    eventually(lambda: driver.failures_left() == 0)
    assert eventually(lambda: square(server).status == "ok")
    lost = events(server, "lost")
    assert len(lost) == 2
    assert all("MPS_SERVER_NOT_READY" in detail and "left out" not in detail for detail in lost)
    assert server.status()["by_gpu"][0]["workers"] == 1


# The checks for a GPU


@one_card
@pytest.mark.slow
def test_the_checks_for_a_gpu_pass(driver: Driver, tmp_path: Path) -> None:
    stand_in = tmp_path / "bin" / "nvidia-smi"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{ROOT}/tests/stand_ins/nvidia_smi.py" "$@"\n')
    stand_in.chmod(0o755)
    done = driver.run(
        *("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", ROOT, ROOT / "tests"),
        limit=500,
        KAAS_NEED_GPU="1",
        PATH=f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
    )
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE), done.stdout
