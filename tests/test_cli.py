import argparse
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LIMIT, SERVER, command, run_here

from kaas import ROOT, cli
from kaas.errors import ConnectionFailed, KaasError, ModuleError, ResultsError, UsageError

patient = settings(deadline=None)


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/load.py", "--interval", "10"])


def exit_code_of(main: Callable[[], int | None]) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


# Argument types


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (cli.positive_int, "1", 1),
        (cli.positive_int, "48", 48),
        (cli.count, "0", 0),
        (cli.count, "7", 7),
        (cli.seconds, "0", 0.0),
        (cli.seconds, "2.5", 2.5),
        (cli.seconds, "1e-3", 0.001),
        (cli.positive_seconds, "0.001", 0.001),
        (cli.positive_seconds, "10", 10.0),
        (cli.port, "0", 0),
        (cli.port, "8080", 8080),
        (cli.port, "65535", 65535),
    ],
)
def test_sound_arguments_are_read(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value
    assert type(kind(text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (cli.positive_int, "0"),
        (cli.positive_int, "-1"),
        (cli.positive_int, "1.5"),
        (cli.positive_int, "four"),
        (cli.positive_int, ""),
        (cli.count, "-1"),
        (cli.count, "1e3"),
        (cli.seconds, "-0.1"),
        (cli.seconds, "nan"),
        (cli.seconds, "inf"),
        (cli.seconds, "1e999"),
        (cli.seconds, "10 s"),
        (cli.positive_seconds, "0"),
        (cli.positive_seconds, "-1"),
        (cli.positive_seconds, "nan"),
        (cli.port, "-1"),
        (cli.port, "65536"),
        (cli.port, "http"),
        pytest.param(cli.port, "9" * 400, id="more digits than a float can hold"),
        pytest.param(cli.port, "9" * 5000, id="more digits than Python turns into a number"),
    ],
)
def test_an_unsound_argument_is_quoted_in_the_error(kind: Callable[[str], float], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert repr(text) in str(caught.value)


@patient
@given(st.text() | st.integers().map(str) | st.floats().map(str) | st.integers(10**300, 10**400).map(str))
def test_any_text_is_either_a_number_in_range_or_an_argument_error(text: str) -> None:
    for kind, least in ((cli.positive_int, 1), (cli.count, 0), (cli.seconds, 0), (cli.port, 0)):
        try:
            value = kind(text)
        except argparse.ArgumentTypeError:
            continue
        assert value >= least
        assert isinstance(value, int) or math.isfinite(value)


@pytest.mark.parametrize("name", ["autoscaling", "run-1.b_2", "Ünïcode", "a b"])
def test_a_name_that_can_name_a_file_is_taken(name: str) -> None:
    assert cli.file_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../up", "a\0b", "-x"])
def test_a_name_that_leads_out_of_the_folder_or_is_taken_for_an_option_is_refused(name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="cannot name a file"):
        cli.file_name(name)


# The end of a script


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_the_exit_code_is_what_main_returns(returned: int | None, code: int) -> None:
    assert exit_code_of(lambda: returned) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KaasError("it went wrong"), 1),
        (ConnectionFailed("it went wrong"), 1),
        (ResultsError("it went wrong"), 1),
        (UsageError("it went wrong"), 2),
        (ModuleError("it went wrong"), 2),
    ],
)
def test_a_known_error_is_one_line_on_stderr_and_its_exit_code(
    error: KaasError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert exit_code_of(main) == code
    assert capsys.readouterr() == ("", "load.py: it went wrong\n")


def test_ctrl_c_is_130_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert exit_code_of(main) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_of_the_programs_own_is_not_hidden() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def test_a_reader_that_has_left_is_no_error() -> None:
    code = "from kaas import cli; cli.run(lambda: print('first', *['more'] * 100000, sep='\\n'))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"first\n"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=LIMIT) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-gpus", "0"),
        ("-g", "1.5"),
        ("-m", "-1"),
        ("--port", "99999"),
        ("--port", "-1"),
        ("--idle-timeout", "nan"),
        ("--idle-timeout", "-1"),
        ("--kill-after", "0"),
        ("--drain-timeout", "inf"),
        ("--message-size", "much"),
        ("--max-queue", "0"),
        ("--when-full", "panic"),
    ],
    ids=" ".join,
)
def test_an_option_of_the_server_that_makes_no_sense_is_refused_in_one_line(arguments: tuple[str, str]) -> None:
    done = run_here(SERVER, *command("echo", *arguments)[2:])
    (line,) = done.stderr.partition("error: ")[2].splitlines()
    assert (done.returncode, done.stdout, arguments[0] in line) == (2, "", True)


@pytest.mark.parametrize(
    ("thread", "said"), [("", ""), ("threading.Timer(0.1, print, ['in a thread']).start()", "in a thread\n")]
)
def test_a_program_that_ends_at_once_does_what_was_registered_and_takes_nothing_apart(thread: str, said: str) -> None:
    code = f"""
import atexit, threading
from kaas import cli
class Loaded:
    def __del__(self):
        print("taken apart")
loaded = Loaded()
atexit.register(print, "registered")
{thread}
print("begun")
cli.run(lambda: 3, cli.at_once)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    # A thread has to be waited for, as sys.exit does, which then takes all apart.
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"begun\n{said}registered\n" + "taken apart\n" * bool(thread)
