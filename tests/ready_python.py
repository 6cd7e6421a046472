"""A Python that has its libraries already, for the many programs of which most of the time is the import of Numba."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from kaas import ROOT, SINGLE_THREADED

# As the server's fork server does.
_FORKS = """
import atexit, json, os, runpy, sys, traceback
exec(sys.argv[1])

def run(program, *arguments):
    if program == "-c":
        sys.argv[1:] = arguments[1:]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(program))
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")

for line in sys.stdin:
    program, said, folder, environment, path = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        os.chdir(folder)
        os.environ.update(environment)
        sys.path[:0] = path
        code = 0
        try:
            run(*program)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)  # to take apart what Numba has loaded takes several times as long as all before
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


class ReadyPython:
    """Runs programs one after the other, each in a process of its own that is forked from one with the libraries.

    Args:
        prepare: statements that import them.
        environment: on top of ours.
    """

    def __init__(self, prepare: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKS, prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=os.environ | SINGLE_THREADED | (environment or {}),
        )

    def run(
        self, *arguments: str | Path, cwd: Path = ROOT, path: tuple[Path, ...] = (ROOT,), **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end.

        Args:
            arguments: as Python's own: a script's path, or -c and code, and what follows.
            cwd: its working directory.
            path: folders in which it finds modules before it looks anywhere else.
            environment: on top of what this Python has.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as said:
            order = (line, said, str(cwd), environment, [str(folder) for folder in path])
            print(json.dumps(order), file=self._process.stdin)
            code = int(self._process.stdout.readline())
            out, err = (Path(said, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(line, code, out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
