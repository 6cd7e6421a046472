"""The files of a run: their names, and the request rows; writer beside reader.

A run lies in `results-<experiment>/`, one set of files for each task (one task a repeat):

    <task>.csv                  one row for each request (kaas.row)
    <task>.md                   what the columns mean, the parameters, the machine
    <task>-serverlogs.csv       the server's events (kaas.events)
    <task>-gpu-monitoring.csv   utilization and power (kaas.monitor)
    <task>-server.log           all that the server printed

Every time stamp is in seconds since the epoch, UTC.
"""

import contextlib
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kaas import locks
from kaas.errors import ResultsError, UsageError
from kaas.outcome import Outcome as Outcome  # noqa: PLC0414 - it is had from here, too
from kaas.row import Row, columns_of_run, decode_row, encode_row


class RunFiles:
    """The names of one task's files in its results folder."""

    def __init__(self, folder: Path, task: str) -> None:
        self.folder = folder
        self.task = task
        self.requests = folder / f"{task}.csv"
        self.description = folder / f"{task}.md"
        self.serverlogs = folder / f"{task}-serverlogs.csv"
        self.monitoring = folder / f"{task}-gpu-monitoring.csv"

    @classmethod
    def of(cls, experiment: str, task: str, parent: Path) -> "RunFiles":
        """Name the files of `task` in `parent/results-<experiment>/`."""
        return cls(parent / f"results-{experiment}", task)


class RowWriter:
    """Appends rows to `<task>.csv`, from as many processes as there are clients.

    Each row is one `write` to a file opened for appending, so rows of several processes never mix, a row is with the
    operating system the moment its request is finished, and killing anything leaves no torn line. It takes no lock,
    which not every file system has. Where there is no room for the whole of a row, its part becomes empty lines.

    Raises:
        ResultsError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise ResultsError(f"{path}: {error.strerror}") from None

    def append(self, row: Row) -> None:
        """Append one row.

        Raises:
            ResultsError: it cannot be written.
        """
        self.write(encode_row(row))

    def write(self, lines: bytes) -> None:
        """Append rows that are encoded already, with their line ends.

        Raises:
            ResultsError: they cannot be written.
        """
        try:
            written = os.write(self._file, lines)
            if written < len(lines):
                self._blank(os.lseek(self._file, 0, os.SEEK_CUR) - written, written)
                raise ResultsError(f"no room for the rows of requests in {self._path}")
        except OSError as error:
            raise ResultsError(f"the rows of requests cannot be written to {self._path}: {error.strerror}") from None

    def _blank(self, begin: int, size: int) -> None:
        """Make empty lines of what was written; others may have appended to it since, so it cannot be cut off."""
        file = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(file, b"\n" * size, begin)
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def create_requests(path: Path, *, open_loop: bool = False) -> None:
    """Create `<task>.csv` with its header, and its folder.

    Raises:
        ResultsError: the file is there already (an earlier run is never overwritten), or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(",".join(columns_of_run(open_loop=open_loop)) + "\n")
    except FileExistsError:
        raise _earlier_run(path) from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None


def check_no_earlier_run(path: Path) -> None:
    """Raise `ResultsError` if there is a `<task>.csv` already; `create_requests` would, but later."""
    if path.exists():
        raise _earlier_run(path)


def _earlier_run(path: Path) -> ResultsError:
    return ResultsError(f"{path} holds an earlier run: move it away, or choose another --task-name")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the only run that writes to a results folder, as the scripts are.

    Raises:
        UsageError: another run does.
        ResultsError: that cannot be told.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            other = stack.enter_context(locks.claimed(path))
        except OSError as error:
            raise ResultsError(f"{path} cannot be written: {error.strerror}") from None
        if other:
            raise UsageError(f"another run is writing to {folder} ({other}): choose another --experiment-name")
        yield


def move_aside(folder: Path) -> Path | None:
    """Move an earlier run's folder aside, as the scripts do: to `<folder>.<date>-<time>` (UTC); tell where it is now.

    Raises:
        ResultsError: it cannot be moved.
    """
    if not folder.exists():
        return None
    aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    try:
        return folder.rename(aside)
    except OSError as error:
        raise ResultsError(f"{folder} holds an earlier run, which cannot be moved aside: {error.strerror}") from None


class RowReader:
    """Reads rows as they are appended: each call of `new_rows` gives those that came since the last.

    Lines that are no row are counted in `malformed`; `problem` says what the first of them lacks.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._names: list[str] = []
        self._rest = b""
        self.malformed = 0
        self.problem = ""

    def new_rows(self) -> Iterator[Row]:
        """Give the rows that are complete by now; a last line without its end waits for the rest of it."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            if not line.strip():
                continue
            try:
                (fields,) = csv.reader([line.decode(errors="replace")])
                if not self._names:
                    self._names = fields
                    continue
                row = decode_row(dict(zip(self._names, fields, strict=False)))
            except (ValueError, KeyError, csv.Error) as error:
                self.malformed += 1
                self.problem = self.problem or f"{type(error).__name__}: {error}"
            else:
                yield row

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Read all complete rows of a `<task>.csv`, ours or a published one.

    Raises:
        ResultsError: the file cannot be read, or a row is none.
    """
    try:
        reader = RowReader(path)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    with contextlib.closing(reader):
        rows = list(reader.new_rows())
    if reader.malformed:
        raise ResultsError(f"{path} is not a file of requests: {reader.problem}")
    return rows
