#!/usr/bin/env python3
"""Client of the matrix kernels: sends an N x N matrix through shared memory, or inline, and takes the product back.

As a script (./cuda-matmul-client.py 500) it makes one request and prints its times. As a client module it makes one
request at each `run_client`. The server is at $KAAS_ADDRESS (127.0.0.1:8080); $KAAS_TIMEOUT is the seconds after which
a request is given up (600); $SEGMENTS says whether shared memory is `fresh` for each request (the default) or `kept`;
$KAAS_TRANSPORT whether matrices travel in shared memory (`shm`), in the messages (`inline`), or as they can (`auto`).
The matrix file lies in $KAAS_SCRATCH, which the clients of a run share, and nobody else.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from kaas import cli  # first: it says what is missing

# isort: split
import numpy as np

from kaas import inline, matrices, pairs, segments, transport
from kaas.client import Connection
from kaas.errors import ConnectionFailed, KaasError, Refused, UsageError
from kaas.leftovers import Scratch
from kaas.matrices import Matrix
from kaas.results import Outcome
from kaas.wire import Reply


class MatmulClient:
    """One client: its matrix, its connection, and whether a product of it has been checked."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._timeout = _timeout()
        self._checked = False
        self._connection = Connection()
        resource_tracker.ensure_running()  # else the first request would start it, in its time
        self._own = None
        self._pairs: pairs.Fresh | pairs.Kept | pairs.Inline | None = None
        if not os.environ.get("KAAS_SCRATCH"):
            self._own = Scratch()
            os.environ["KAAS_RUN"] = self._own.run
        try:
            folder = self._own.folder if self._own else Path(os.environ["KAAS_SCRATCH"])
            path = matrices.matrix_file(n, folder)
            self._matrix: Matrix = np.load(path, mmap_mode="r", allow_pickle=False)
            with contextlib.suppress(ConnectionFailed):  # the first request will tell
                self._pairs = self._ways()
        except BaseException:
            self.close()
            raise

    def run(self) -> Outcome:
        """Make one request. Everything is in its time but the check of the first product.

        The setup is all that becomes of its shared memory here: one segment filled and, unless they are kept, both
        created and freed. Inline it is the copy of the matrix into the message.
        """
        if self._pairs is None:
            self._pairs = self._ways()
        begun = time.perf_counter()
        with self._pairs.filled() as pair:
            sent = time.perf_counter()
            reply = self._connection.invoke(pair.payload(), self._timeout)
            replied = time.perf_counter()
            wrong = False
            if reply.status == "ok" and not self._checked:
                wrong = not matrices.is_square_of(pair.product(reply.payload), self._matrix)
            self._checked = self._checked or reply.status == "ok"
            checked = time.perf_counter()
        setup = sent - begun + time.perf_counter() - checked
        if reply.status != "ok":
            self._pairs.forget()
        return _outcome(reply, wrong, (setup + replied - sent) * 1000, setup * 1000)

    def close(self) -> None:
        """Close the connection, free what is kept, and remove the matrix file unless it belongs to a whole run."""
        self._connection.close()
        if self._pairs is not None:
            self._pairs.forget()
        if self._own is not None:
            self._own.close()
            del os.environ["KAAS_RUN"]
            self._own = None

    def _ways(self) -> pairs.Fresh | pairs.Kept | pairs.Inline:
        """Choose how the matrix travels; raises UsageError if the server takes no message of its size."""
        chosen = transport.mode()
        if chosen != "shm":
            status: dict[str, Any] = {}
            # A connection of its own: the first request makes the other, in its time. It will be refused, too.
            with contextlib.suppress(Refused), Connection() as connection:
                status = connection.status()
            chosen, size = transport.chosen(status), inline.size(self.n)
            most = status.get("settings", {}).get("Message size [bytes]", size)
            if chosen == "inline" and size > most:
                raise UsageError(
                    f"N={self.n} takes messages of {size} bytes, and the server takes {most}: start it with "
                    f"--message-size {size}, or take a smaller N"
                )
        return pairs.of(self._matrix, chosen)


def _outcome(reply: Reply, wrong: bool, outer_ms: float, setup_ms: float) -> Outcome:
    served = reply.status == "ok"
    return Outcome(
        outer_ms,
        inline.inner_ms(reply.payload) if served and not wrong else 0.0,
        setup_ms,
        reply.cold_start,
        status="wrong_result" if wrong else reply.status,
        waited_for_boot=reply.waited_for_boot,
        gpu=reply.gpu,
        worker=reply.worker,
        queued_ms=reply.queued_ns / 1e6,
        kernel_ms=reply.kernel_ns / 1e6,
        error="the product is wrong (Freivalds' check)" if wrong else reply.error,
    )


def _timeout() -> float:
    text = os.environ.get("KAAS_TIMEOUT") or "600"
    try:
        return cli.positive_seconds(text)
    except Exception as error:
        raise UsageError(f"KAAS_TIMEOUT: {error}") from None


_client: MatmulClient | None = None


def check(arg: str) -> None:
    """Check what all clients will be handed, before anything begins."""
    matrices.matrix_size(arg)
    segments.are_kept()
    transport.mode()


def prepare(arg: str, copy: int) -> None:
    """Make ready to send matrices of `arg` rows, before the first request is timed."""
    global _client  # noqa: PLW0603 - a client module is one client
    if _client is None or _client.n != matrices.matrix_size(arg):
        cleanup()
        _client = MatmulClient(matrices.matrix_size(arg))


def run_client(arg: str) -> Outcome:
    """Make one request; return its times in milliseconds and what became of it."""
    prepare(arg, 0)
    assert _client is not None
    return _client.run()


def cleanup() -> None:
    """Give back what `prepare` took."""
    global _client  # noqa: PLW0603
    if _client is not None:
        _client.close()
        _client = None


def main(request: Callable[[str], Outcome] = run_client) -> None:
    """Make one request and print its times."""
    size = cli.matrix_size()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it took is given back
    try:
        outcome = request(size)
    finally:
        cleanup()
    if outcome.status != "ok":
        raise KaasError(f"the request was not served: {outcome.status}: {outcome.error}")
    print(f"outer time (ms): {outcome.outer_ms:.3f}")
    print(f"setup time (ms): {outcome.setup_ms:.3f}")
    print(f"inner time (ms): {outcome.inner_ms:.3f}")
    print(f"cold start: {outcome.cold_start}")


if __name__ == "__main__":
    cli.run(main)
