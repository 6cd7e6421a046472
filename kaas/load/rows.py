"""The rows of a run that goes on: counted as they come, and written for requests that have no client to do so."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from kaas.clock import Clock
from kaas.load import clients
from kaas.load.board import Request
from kaas.load.tally import Tally
from kaas.results import Outcome, RowReader, RowWriter
from kaas.row import Row, from_arrival, make_row


class Rows:
    """The file of a run's requests, which is there already.

    Args:
        path: of the file.
        clock: the run's.
        begun: when the load began, in seconds of `time.monotonic`.
        tally: counts the rows.
    """

    def __init__(self, path: Path, clock: Clock, begun: float, tally: Tally) -> None:
        self._path, self._clock, self._tally = path, clock, tally
        self._begun = clock.at(begun)
        self._reader = RowReader(path)
        self._last: dict[int, float] = {}  # of each client, when the request of its latest row began

    @property
    def malformed(self) -> int:
        """How many lines are no rows."""
        return self._reader.malformed

    def read(self) -> None:
        """Count those that have come."""
        for row in self._reader.new_rows():
            self._tally.add(row, row.timestamp + row.outer_time_ms / 1000 - self._begun)
            self._last[row.copy] = row.timestamp

    def add_killed(self, copy: int, request: Request, how: str) -> None:
        """Write the row of a request whose client was killed, unless to write it was the last thing that it did.

        Raises:
            ResultsError: it cannot be written.
        """
        self.read()
        if self._last.get(copy) != request.timestamp:
            self._write([clients.failure(copy, request, f"the client {how}")])

    def add_unsent(self, due: Iterable[float], until: float, most: int) -> None:
        """Write a row for each request that was due and that no client sent.

        Args:
            due: when each was, in seconds of `time.monotonic`.
            until: when no more were sent, in the same.
            most: the number of clients.

        Raises:
            ResultsError: they cannot be written.
        """
        outcome = Outcome(0.0, 0.0, 0.0, False, "failed", error="no client was free to send it before the end")
        rows = [(make_row(self._clock.at(one), 0, most, outcome), until - one) for one in due]
        self._write([from_arrival(row, lag) for row, lag in rows])

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _write(self, rows: Iterable[Row]) -> None:
        with contextlib.closing(RowWriter(self._path)) as writer:
            for row in rows:
                writer.append(row)
