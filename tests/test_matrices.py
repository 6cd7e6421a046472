import contextlib
import gc
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ready_python import ReadyPython
from support import LIMIT

from kaas import ROOT, kernels, matrices
from kaas.errors import TaskError, UsageError
from kaas.matrices import Matrix, Task, attached_matrix, is_square_of, random_matrix, shared_matrix

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAME = "kaas_" + "0123456789abcdef" + "0123"
HUGE = 10**7
"""N of a matrix of 728 TiB: more than a process can address."""


def is_gone(name: str) -> bool:
    try:
        with attached_matrix(name, 1, "float64"):
            return False
    except TaskError:
        return True


def is_mapped(name: str) -> bool:
    """Whether this process still has the segment in its memory (Linux tells)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what a process has mapped")
    return name in maps.read_text()


def python(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def square(a: Matrix, c: Matrix) -> None:
    np.matmul(a, a, out=c)


# Tasks


def test_a_task_comes_back_from_its_payload() -> None:
    for dtype in matrices.DTYPES:
        task = Task(NAME, "kaas_" + "f" * 20, 500, dtype)
        assert Task.decode(task.encode()) == task


def test_a_task_without_a_dtype_is_one_of_float64() -> None:
    assert Task.decode(json.dumps({"a": NAME, "c": NAME, "n": 3}).encode()) == Task(NAME, NAME, 3, "float64")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -5}, "n is -5"),
        ({"n": 2.0}, "n is 2.0"),
        ({"n": "2"}, "n is '2'"),
        ({"n": True}, "n is True"),
        ({"n": None}, "n is None"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"n": 10**30}, "n is 1000"),
        ({"n": [[[]]]}, "n is a list"),
        ({"dtype": ["float64"]}, "dtype is a list"),
        ({"dtype": "x" * 10_000}, "dtype is 'xxx"),
        ({"dtype": None}, "dtype is None"),
        ({"a": ""}, "segment's name"),
        ({"a": 5}, "segment's name"),
        ({"a": "psm_12345678"}, "segment's name"),  # somebody else's segment
        ({"c": NAME + "0"}, "segment's name"),
        ({"c": NAME + "\n"}, "segment's name"),
        ({"c": "../" + NAME}, "segment's name"),
        ({"more": 1}, "not a matrix task"),
    ],
)
def test_a_malformed_task_is_refused_and_what_is_wrong_with_it_named(changed: dict[str, object], said: str) -> None:
    payload = json.dumps({"a": NAME, "c": NAME, "n": 3, "dtype": "float64"} | changed).encode()
    with pytest.raises(TaskError, match=re.escape(said)) as raised:
        Task.decode(payload)
    assert len(str(raised.value)) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
nearly_tasks = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("a", "c", "n", "dtype"), json_values | st.just(NAME) | st.just("float64") | st.just(1))
)


@patient
@given(st.binary(max_size=100) | (json_values | nearly_tasks).map(lambda value: json.dumps(value).encode()))
def test_garbage_raises_nothing_but_task_errors(payload: bytes) -> None:
    with contextlib.suppress(TaskError):
        task = Task.decode(payload)
        assert task.n >= 1
        assert task.dtype in matrices.DTYPES


@patient
@given(st.binary(max_size=100) | (json_values | nearly_tasks).map(lambda value: json.dumps(value).encode()))
def test_a_kernel_answers_garbage_with_nothing_but_task_errors(payload: bytes) -> None:
    # Of a segment that is not there, whatever the rest is: nothing of it may reach the multiplication.
    with pytest.raises(TaskError):
        matrices.answer(payload, square)


@patient
@given(st.integers(1, 3000))
def test_a_value_nested_to_any_depth_is_refused(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for field in ("n", "dtype"):
        task = {"a": NAME, "c": NAME, "n": 1} | {field: "?"}
        with pytest.raises(TaskError):
            Task.decode(json.dumps(task).replace('"?"', nested).encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_a_number_that_is_no_size_is_refused(number: str) -> None:
    with pytest.raises(TaskError):
        Task.decode(f'{{"a": "{NAME}", "c": "{NAME}", "n": {number}}}'.encode())


@pytest.mark.parametrize("payload", [b"[" * 200_000, b'{"a":' * 200_000])
def test_json_that_is_nested_deeper_than_python_can_follow_is_no_task(payload: bytes) -> None:
    with pytest.raises(TaskError):
        Task.decode(payload)


# Segments: who creates, attaches and unlinks


def test_what_one_side_writes_the_other_reads() -> None:
    with shared_matrix(3) as ours:
        ours.matrix[:] = random_matrix(3)
        with attached_matrix(ours.name, 3, "float64") as theirs:
            assert np.array_equal(theirs.matrix, random_matrix(3))
            theirs.matrix[1, 2] = 42.0
        assert ours.matrix[1, 2] == 42.0


@pytest.mark.parametrize("dtype", matrices.DTYPES)
@pytest.mark.parametrize("n", [1, 7])
def test_a_segment_is_a_matrix_of_its_size_and_dtype_in_rows(n: int, dtype: str) -> None:
    with shared_matrix(n, dtype) as segment:
        assert segment.matrix.shape == (n, n)
        assert segment.matrix.dtype == np.dtype(dtype)
        assert segment.matrix.flags["C_CONTIGUOUS"]
        assert not segment.matrix.any()


@pytest.mark.parametrize("dtype", matrices.DTYPES)
def test_a_segment_can_be_made_with_its_content_even_from_a_file_that_is_only_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "matrix.npy", random_matrix(7).astype(dtype))
    content = np.load(tmp_path / "matrix.npy", mmap_mode="r")
    with shared_matrix(7, dtype, content) as segment, attached_matrix(segment.name, 7, dtype) as attached:
        assert np.array_equal(attached.matrix, content)
        attached.matrix[:] = 1.0
    assert np.array_equal(content, random_matrix(7).astype(dtype))


def test_a_segments_name_is_short_enough_for_macos_and_one_that_a_task_takes() -> None:
    names = []
    for _ in range(20):
        with shared_matrix(1) as segment:
            names.append(segment.name)
    assert len(set(names)) == 20
    for name in names:
        assert len(name) <= 30
        assert Task.decode(Task(name, name, 1).encode()).a == name


def test_a_segment_is_gone_after_use() -> None:
    with shared_matrix(4) as segment:
        assert not is_gone(segment.name)
    assert is_gone(segment.name)
    assert not is_mapped(segment.name)


def test_attaching_leaves_the_segment_there() -> None:
    with shared_matrix(4) as segment:
        for _ in range(3):
            with attached_matrix(segment.name, 4, "float64") as attached:
                assert attached.matrix.shape == (4, 4)
        assert not is_gone(segment.name)
    assert is_gone(segment.name)


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_segment_is_unlinked_when_its_block_raises_even_while_the_matrix_is_held(raised: type[BaseException]) -> None:
    names = []

    def use() -> None:
        with shared_matrix(4) as segment:
            names.append(segment.name)
            held = segment.matrix
            held[:] = 1.0
            raise raised

    with pytest.raises(raised):
        use()
    gc.collect()
    assert is_gone(names[0])
    with shared_matrix(1):
        pass
    assert not is_mapped(names[0])  # what could not be closed while it was held is closed with the next one


def test_a_segment_is_unlinked_when_a_second_one_cannot_be_created() -> None:
    code = f"""
from kaas.errors import UsageError
from kaas.matrices import shared_matrix
try:
    with shared_matrix(4) as first:
        print(first.name, flush=True)
        with shared_matrix({HUGE}):
            pass
except UsageError as error:
    print(error)
"""
    done = python("-c", code)
    name, said = done.stdout.splitlines()
    assert is_gone(name)
    assert said.startswith("no shared memory for a matrix of 800000000000000 bytes")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_segment_that_somebody_else_has_unlinked_is_no_error_for_its_creator() -> None:
    code = """
from pathlib import Path
from kaas.matrices import shared_matrix
with shared_matrix(4) as segment:
    Path("/dev/shm", segment.name).unlink(missing_ok=True)  # what a cleaning script may do, on Linux
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_room_for_a_segment_is_said_when_it_is_created_and_not_by_a_crash_when_it_is_written() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("this system tells nothing about its shared memory")
    # More than all of it, not just than what is free, so that trying takes nothing away from anybody.
    n = int((2 * shutil.disk_usage(shm).total / 8) ** 0.5)
    with pytest.raises(UsageError, match="no shared memory"), shared_matrix(n):
        pass


def test_attaching_to_what_is_not_there_is_a_task_error() -> None:
    with pytest.raises(TaskError, match=NAME), attached_matrix(NAME, 1, "float64"):
        pass


@pytest.mark.parametrize("n", [1000, 10**9])
def test_a_segment_too_small_for_the_matrix_is_a_task_error(n: int) -> None:
    with shared_matrix(2) as segment:
        with pytest.raises(TaskError, match=segment.name), attached_matrix(segment.name, n, "float64"):
            pass
        assert not is_gone(segment.name)


def test_an_attaching_process_neither_unlinks_nor_complains_when_it_ends() -> None:
    code = """
import sys
from kaas.matrices import attached_matrix
with attached_matrix(sys.argv[1], 2, "float64") as segment:
    print(segment.matrix[1, 1])
"""
    with shared_matrix(2) as segment:
        segment.matrix[:] = 7.0
        for _ in range(2):
            done = python("-c", code, segment.name)
            assert (done.returncode, done.stdout, done.stderr) == (0, "7.0\n", "")
        assert not is_gone(segment.name)
        assert segment.matrix[1, 1] == 7.0


def test_a_creating_process_leaves_nothing_and_does_not_complain_when_it_ends() -> None:
    code = """
import sys
from kaas.matrices import attached_matrix, shared_matrix
try:
    with shared_matrix(2) as segment, attached_matrix(segment.name, 2, "float64") as attached:
        print(segment.name)
        raise ValueError
except ValueError:
    pass
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_gone(done.stdout.strip())


# What a kernel does with a task


def test_an_answer_is_the_product_and_the_time_that_it_took() -> None:
    with shared_matrix(5) as a, shared_matrix(5) as c:
        a.matrix[:] = random_matrix(5)
        reply = json.loads(matrices.answer(Task(a.name, c.name, 5).encode(), square))
        assert np.allclose(c.matrix, random_matrix(5) @ random_matrix(5))
    assert list(reply) == ["inner_time_ms"]
    assert reply["inner_time_ms"] > 0


@pytest.mark.parametrize("missing", ["a", "c"])
def test_a_task_whose_segment_is_gone_is_a_task_error(missing: str) -> None:
    with shared_matrix(2) as segment:
        names = {"a": segment.name, "c": segment.name} | {missing: NAME}
        with pytest.raises(TaskError, match=NAME):
            matrices.answer(Task(**names, n=2).encode(), square)


def fails_at_once(a: Matrix, c: Matrix) -> None:
    view = a[0]
    raise ZeroDivisionError(f"{len(view)}")


def fails_deeper(a: Matrix, c: Matrix) -> None:
    fails_at_once(a[:], c[:])


def fails_after_another_failure(a: Matrix, c: Matrix) -> None:
    try:
        fails_deeper(a, c)
    except ZeroDivisionError as error:
        raise RuntimeError("in the kernel") from error


def is_interrupted(a: Matrix, c: Matrix) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("multiply", [fails_at_once, fails_deeper, fails_after_another_failure, is_interrupted])
def test_a_kernel_that_raises_while_it_holds_the_matrix_keeps_no_segment(multiply: matrices.Multiply) -> None:
    with shared_matrix(4) as a, shared_matrix(4) as c:
        names = (a.name, c.name)
        with contextlib.suppress(Exception, KeyboardInterrupt):
            matrices.answer(Task(*names, 4).encode(), multiply)
            pytest.fail("it did not raise")
    gc.collect()
    for name in names:
        assert is_gone(name)
        assert not is_mapped(name)


@pytest.mark.parametrize("multiply", [fails_at_once, fails_deeper, fails_after_another_failure])
def test_what_a_kernel_raises_comes_through(multiply: matrices.Multiply) -> None:
    with shared_matrix(4) as a, pytest.raises((ZeroDivisionError, RuntimeError)):
        matrices.answer(Task(a.name, a.name, 4).encode(), multiply)


def test_a_kernel_that_keeps_the_matrix_does_not_crash_its_worker() -> None:
    # In a process of its own: to read memory that is no longer mapped ends the process.
    code = """
from kaas.matrices import Task, answer, shared_matrix
kept = []
with shared_matrix(4) as a, shared_matrix(4) as c:
    a.matrix[:] = 3.0
    answer(Task(a.name, c.name, 4).encode(), lambda a, c: kept.append(a))
    print(kept[0][0, 0])
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (0, "3.0\n")


# Freivalds' check

SIZES = [1, 2, 3, 17, 64, 300]
LARGE_SIZES = [64, 1000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@numba.njit(fastmath={"contract"})  # in parallel it would be faster, but to compile it would take longer than all else
def accumulate(matrix: npt.NDArray[np.float32], total: npt.NDArray[np.float32]) -> None:
    """Add up matrix @ matrix in the order of the GPU kernel: of each element the terms one by one, with fused adds."""
    n, rows, columns = len(matrix), 64, 512
    for begin in range(-(-n // rows)):  # blocks, for the processor's caches
        for left in range(0, n, columns):
            for k in range(n):
                terms = matrix[k, left : left + columns]
                for i in range(begin * rows, min((begin + 1) * rows, n)):
                    factor, sums = matrix[i, k], total[i, left : left + columns]
                    for j in range(len(terms)):
                        sums[j] += factor * terms[j]


def accumulated_in_float32(matrix: Matrix) -> Matrix:
    """As the GPU kernel does: term by term, in float32."""
    single = matrix.astype(np.float32)
    total = np.zeros_like(single)
    accumulate(single, total)
    return total.astype(np.float64)


@pytest.fixture(scope="module", params=LARGE_SIZES)
def squared(request: pytest.FixtureRequest) -> tuple[Matrix, Matrix]:
    """A matrix and its product as a GPU computes it."""
    matrix = random_matrix(request.param)
    return matrix, accumulated_in_float32(matrix)


@pytest.mark.parametrize("n", SIZES)
def test_a_right_product_is_accepted(n: int) -> None:
    matrix = random_matrix(n)
    for _ in range(20):
        assert is_square_of(matrix @ matrix, matrix)


@pytest.mark.parametrize("n", SIZES)
def test_a_product_accumulated_in_float32_is_accepted(n: int) -> None:
    matrix = random_matrix(n)
    product = accumulated_in_float32(matrix)
    for _ in range(20):
        assert is_square_of(product, matrix)


def test_a_large_product_accumulated_in_float32_is_accepted(squared: tuple[Matrix, Matrix]) -> None:
    matrix, product = squared
    for _ in range(3):
        assert is_square_of(product, matrix)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_of_a_matrix_with_signs_is_accepted(dtype: type) -> None:
    matrix = random_matrix(100) - 0.5
    for _ in range(20):
        assert is_square_of(accumulated_in_float32(matrix).astype(dtype), matrix.astype(dtype))


@pytest.mark.parametrize("n", SIZES)
def test_a_product_with_one_wrong_element_is_refused(n: int) -> None:
    matrix = random_matrix(n)
    for row, column in {(0, 0), (n - 1, 0), (n // 2, n - 1)}:
        product = accumulated_in_float32(matrix)
        product[row, column] *= 1.01
        assert not is_square_of(product, matrix)


# Of a product as it is, each writes a part anew.
FAULTS: dict[str, tuple[tuple[Any, Any], Callable[[Matrix, Matrix], Any]]] = {
    "the last tile of terms is missing": (np.s_[:, :], lambda part, a: part - a[:, -16:] @ a[-16:]),
    "the first tile of terms is there twice": (np.s_[:, :], lambda part, a: part + a[:, :16] @ a[:16]),
    "an element is a fiftieth too small": (np.s_[0, -1], lambda part, a: part * 0.98),
    "an element is ten times too small": (np.s_[-1, -1], lambda part, a: part / 10),
    "an element is ten times too large": (np.s_[-1, 0], lambda part, a: part * 10),
    "an element is far too large": (np.s_[0, 0], lambda part, a: 1e200),
    "an element is zero": (np.s_[1, 1], lambda part, a: 0.0),
    "an element is not a number": (np.s_[-1, -1], lambda part, a: np.nan),
    "an element is infinite": (np.s_[-1, -1], lambda part, a: np.inf),
    "a tile is zero": (np.s_[-16:, -16:], lambda part, a: 0.0),
    "a row is that of another": (np.s_[-1:, :], lambda part, a: a[:1] @ a),
    "it is transposed": (np.s_[:, :], lambda part, a: part.T),
    "a fault is in every element": (np.s_[:, :], lambda part, a: part * 1.001),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_large_product_that_is_wrong_is_refused(squared: tuple[Matrix, Matrix], fault: str) -> None:
    matrix, product = squared
    part, wrong = FAULTS[fault]
    right = product[part].copy()
    try:
        product[part] = wrong(right, matrix)
        assert not is_square_of(product, matrix)
    finally:
        product[part] = right


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_check_takes_far_less_memory_than_a_matrix(dtype: type) -> None:
    matrix: Matrix = random_matrix(1500).astype(dtype)
    product = matrix @ matrix
    tracemalloc.start()
    try:
        assert is_square_of(product, matrix)
        assert tracemalloc.get_traced_memory()[1] < matrix.nbytes / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", SIZES)
def test_a_product_with_a_tile_of_zeros_is_refused(n: int) -> None:
    matrix = random_matrix(n)
    product = matrix @ matrix
    product[-16:, -16:] = 0.0
    assert not is_square_of(product, matrix)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_product_that_nobody_has_written_is_refused(n: int, value: float) -> None:
    assert not is_square_of(np.full((n, n), value), random_matrix(n))


@pytest.mark.parametrize("n", [2, 17, 100])
def test_another_product_than_the_square_is_refused(n: int) -> None:
    matrix = random_matrix(n)
    # With so small an N, one draw of signs in a few may not see it.
    for wrong in (matrix, matrix @ matrix.T, matrix * matrix):
        assert not all(is_square_of(wrong, matrix) for _ in range(30))


# The matrix itself, and its file


def test_every_client_has_the_same_matrix() -> None:
    assert np.array_equal(random_matrix(5), random_matrix(5))
    assert random_matrix(5).dtype == np.float64
    assert ((random_matrix(50) >= 0) & (random_matrix(50) < 1)).all()


def test_several_processes_at_once_make_the_matrix_file_once(tmp_path: Path) -> None:
    code = """
import pathlib, sys
import numpy as np
from kaas.matrices import matrix_file, random_matrix
sys.stdin.readline()
path = matrix_file(200, pathlib.Path(sys.argv[1]))
assert np.array_equal(np.load(path), random_matrix(200))
print(path, path.stat().st_ino)
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("begin\n")
        child.stdin.flush()
    said = [child.communicate(timeout=LIMIT) for child in children]
    assert {errors for _, errors in said} == {""}
    assert len({output for output, _ in said}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"matrix-200.npy", "matrix-200.lock"}


def test_a_matrix_file_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    path = matrices.matrix_file(3, tmp_path)
    np.save(path, np.ones((3, 3)))
    assert matrices.matrix_file(3, tmp_path) == path
    assert np.load(path).sum() == 9.0


def test_a_matrix_file_is_its_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = matrices.matrix_file(3, tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (path, path.with_suffix(".lock"))} == {0o600}


@pytest.mark.parametrize("mode", [0o1777, 0o770, 0o702])
def test_a_folder_in_which_others_can_plant_a_matrix_file_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "matrix-3.lock").symlink_to(victim)
    with pytest.raises(UsageError, match="only you can write to"):
        matrices.matrix_file(3, folder)
    assert victim.read_text() == "precious"


def test_a_matrix_file_with_a_pickle_in_it_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "matrix-3.npy", np.array([[{}]]), allow_pickle=True)
    tmp_path.chmod(0o700)
    done = python(ROOT / "cuda-matmul-client.py", "3", KAAS_SCRATCH=str(tmp_path))
    assert done.returncode != 0
    assert "object" in done.stderr


def test_a_matrix_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"matrix-3\.npy"):
        matrices.matrix_file(3, tmp_path / "nowhere")


def test_a_matrix_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        matrices.matrix_file(HUGE, tmp_path)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "many", " 5", "\u00b2"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="N is"):
        matrices.matrix_size(text)


# The kernels


@pytest.fixture(scope="module", params=["cpu", "blas"])
def kernel(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    path, modules = list(sys.path), set(sys.modules)
    with patch.dict(os.environ):
        yield kernels.load(ROOT / f"cuda-matmul-{request.param}.py", "call")
    sys.path[:] = path
    for name in {name for name in set(sys.modules) - modules if name.startswith("cuda-matmul")}:
        del sys.modules[name]


@pytest.mark.parametrize("dtype", matrices.DTYPES)
@pytest.mark.parametrize("n", [1, 2, 17, 64])
def test_a_kernel_computes_the_product(kernel: ModuleType, n: int, dtype: str) -> None:
    matrix = random_matrix(n).astype(dtype)
    with shared_matrix(n, dtype) as a, shared_matrix(n, dtype) as c:
        a.matrix[:] = matrix
        c.matrix[:] = 1000.0  # what is there before must not matter
        kernel.call(Task(a.name, c.name, n, dtype).encode())
        assert np.allclose(c.matrix, matrix @ matrix, rtol=1e-12 if dtype == "float64" else 1e-5)
        assert np.array_equal(a.matrix, matrix)


def test_a_kernel_refuses_a_payload_that_is_no_task(kernel: ModuleType) -> None:
    with pytest.raises(TaskError):
        kernel.call(b"hello")


def test_the_gpu_kernel_computes_the_product_in_the_simulator(tmp_path: Path) -> None:
    # With tiles as they are, and with smaller ones: the simulator makes a thread for each of a block's.
    code = """
import pathlib, sys
import numpy as np
from kaas import kernels, matrices
from kaas.matrices import Task, random_matrix, shared_matrix
kernel = kernels.load(pathlib.Path(sys.argv[1]), "call")
f64, f32 = matrices.DTYPES
for tile, n, dtype in (16, 5, f32), (16, 16, f64), (16, 17, f64), (4, 1, f64), (4, 5, f64), (4, 20, f64):
    kernel.TILE = tile
    matrix = random_matrix(n).astype(dtype)
    with shared_matrix(n, dtype) as a, shared_matrix(n, dtype) as c:
        a.matrix[:] = matrix
        c.matrix[:] = 1000.0
        kernel.call(Task(a.name, c.name, n, dtype).encode())
        assert np.allclose(c.matrix, matrix @ matrix, rtol=1e-5), (n, dtype)
        assert matrices.is_square_of(c.matrix, matrix), (n, dtype)
        print(n, dtype)
"""
    done = python("-c", code, ROOT / "cuda-matmul-fn.py", cwd=tmp_path, NUMBA_ENABLE_CUDASIM="1", WORKER_GPU="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:-1] == [
        "5 float32",
        "16 float64",
        "17 float64",
        "1 float64",
        "5 float64",
        "20 float64",
    ]


# The kernels as scripts


@pytest.mark.parametrize(
    ("name", "n", "environment"),
    [
        ("cuda-matmul-cpu.py", "50", {}),
        ("cuda-matmul-blas.py", "50", {}),
        ("cuda-matmul-fn.py", "3", {"NUMBA_ENABLE_CUDASIM": "1"}),
    ],
)
def test_a_kernel_as_a_script_prints_the_time_that_it_took(
    tmp_path: Path, name: str, n: str, environment: dict[str, str]
) -> None:
    done = python(ROOT / name, n, cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    match = re.fullmatch(r"@@@ Elapsed inner time \(ms\): (\S+)\n", done.stdout)
    assert match is not None
    assert float(match[1]) > 0


@pytest.fixture(scope="module")
def with_numba(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadyPython]:
    """A Python that has compiled something already, with a cache of its own."""
    prepare = 'import numba; numba.njit("float64(float64)")(lambda value: value * 2)'
    with ReadyPython(prepare, {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}) as ready:
        yield ready


@pytest.mark.parametrize("order", [("worker", "script"), ("script", "worker")])
def test_a_kernel_compiled_by_a_worker_runs_as_a_script_and_the_other_way_round(
    with_numba: ReadyPython, tmp_path: Path, order: tuple[str, str]
) -> None:
    # A file of its own, so that the first of the two compiles and the second takes what it finds.
    kernel = shutil.copy(ROOT / "cuda-matmul-cpu.py", tmp_path)
    as_worker = """
import pathlib, sys
from kaas import kernels
from kaas.matrices import Task, is_square_of, random_matrix, shared_matrix
kernel = kernels.load(pathlib.Path(sys.argv[1]), "call")
with shared_matrix(9) as a, shared_matrix(9) as c:
    a.matrix[:] = random_matrix(9)
    kernel.call(Task(a.name, c.name, 9).encode())
    assert is_square_of(c.matrix, a.matrix)
"""
    commands = {"script": (kernel, "9"), "worker": ("-c", as_worker, kernel)}
    for way in order:
        done = with_numba.run(*commands[way], cwd=tmp_path)
        assert (way, done.returncode, done.stderr) == (way, 0, "")


def said_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["cuda-matmul-cpu.py", "cuda-matmul-blas.py"])
@pytest.mark.parametrize("n", ["many", "0", pytest.param(str(HUGE), id="more than memory")])
def test_a_kernel_as_a_script_says_in_one_line_that_a_size_cannot_be(
    with_numba: ReadyPython, tmp_path: Path, name: str, n: str
) -> None:
    assert said_in_one_line(with_numba.run(ROOT / name, n, cwd=tmp_path)).startswith(f"{name}: ")


def test_the_gpu_kernel_without_a_gpu_says_so_in_one_line(tmp_path: Path) -> None:
    done = python(ROOT / "cuda-matmul-fn.py", "3", cwd=tmp_path, NUMBA_ENABLE_CUDASIM="0", NUMBA_DISABLE_CUDA="1")
    assert "GPU" in said_in_one_line(done)
