#!/usr/bin/env python3
"""Does a live server stand any bytes? Sends very many frames, sound and damaged, and reports what became of them.

The streams are those of tests/faults/bad_frames.py, and so is what each must be answered. Fails if an answer is wrong,
a worker is lost, something stays in flight, the server's account does not close, or its memory or descriptors grow.
"""

import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

__import__("kaas")  # before the libraries: it says what is missing

import psutil  # noqa: E402
from bad_frames import MESSAGE_SIZE, exchange, make_stream  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support import LIMIT, Server, command, eventually  # noqa: E402

from kaas import cli  # noqa: E402
from kaas.client import split_address  # noqa: E402
from kaas.errors import KaasError  # noqa: E402

WORKERS = 4
MOST_GROWTH = 8.0
"""MiB that the server's memory may grow from the first tenth of the frames to the end."""
MOST_DESCRIPTORS = 4
"""That the server may have open in the end beyond those after the first tenth."""


class Fuzz:
    """Sends streams to one server and counts."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._process = psutil.Process(server.process.pid)
        self._address = split_address(server.address)
        self._random = random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.asked = 0
        self.streams = 0

    def send(self, frames: int) -> None:
        """Send streams until there have been so many frames in all.

        Raises:
            AssertionError: one was not answered as it must be; the text shows it.
        """
        while self.kinds.total() < frames:
            stream = make_stream(self._random)
            asked, received = exchange(self._address, stream.data, LIMIT)
            self.kinds.update(stream.kinds)
            self.answers += received
            self.asked += asked
            self.streams += 1

    def measure(self) -> tuple[float, int]:
        """Give the server's resident memory in MiB and its open descriptors, once it is idle."""
        eventually(lambda: self._server.status()["in_flight"] == 0 and not self._server.workers("busy"))
        return self._process.memory_info().rss / 2**20, self._process.num_fds()


def fuzz(server: Server, frames: int, seed: int) -> dict[str, Any]:
    """Send so many frames to a server and report."""
    sender, begun = Fuzz(server, seed), time.monotonic()
    sender.send(frames // 10)
    memory, descriptors = sender.measure()
    sender.send(frames)
    seconds = time.monotonic() - begun
    memory_after, descriptors_after = sender.measure()
    status = server.status()
    return {
        "seed": seed,
        "frames": sender.kinds.total(),
        "connections": sender.streams,
        "frames by kind": dict(sender.kinds.most_common()),
        "invocations": sender.asked,
        "answers by status": dict(sender.answers.most_common()),
        "server's counters": {name: count for name, count in status["counters"].items() if count},
        "workers lost": server.names_of_events().count("lost"),
        "workers idle": sum(worker["state"] == "idle" for worker in status["workers"]),
        "in flight": status["in_flight"],
        "memory after a tenth [MiB]": round(memory, 1),
        "memory at the end [MiB]": round(memory_after, 1),
        "descriptors after a tenth": descriptors,
        "descriptors at the end": descriptors_after,
        "seconds": round(seconds, 1),
    }


def problems(report: dict[str, Any]) -> list[str]:
    """Say what is wrong, if anything is."""
    counters, answers = Counter[str](report["server's counters"]), Counter[str](report["answers by status"])
    outcomes = counters["ok"] + counters["kernel_error"] + counters["timeout"] + counters["abandoned"]
    checks = {
        "workers were lost": report["workers lost"] == 0,
        "a worker does not serve": report["workers idle"] == WORKERS,
        "something is in flight": report["in flight"] == 0,
        "memory grows": report["memory at the end [MiB]"] - report["memory after a tenth [MiB]"] <= MOST_GROWTH,
        "descriptors grow": report["descriptors at the end"] <= report["descriptors after a tenth"] + MOST_DESCRIPTORS,
        "not every invocation was accepted": counters["accepted"] == report["invocations"],
        "the account does not close": counters["accepted"] == outcomes,
        "refusals do not agree": counters["bad_request"] == answers["bad_request"],
        "not every reply was received": answers.total() == counters["replies"],
    }
    return [text for text, sound in checks.items() if not sound]


def main() -> int:
    """Start a server, fuzz it, and print a table, or JSON."""
    parser = cli.parser(__doc__)
    parser.add_argument("--frames", type=cli.positive_int, default=100_000, help="default %(default)s")
    parser.add_argument("--seed", type=int, help="of a run to be repeated (default: drawn, and told)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    line = ("faulty", "-m", str(WORKERS), "--when-full", "queue", "--message-size", str(MESSAGE_SIZE))
    with tempfile.TemporaryDirectory(prefix="kaas-fuzz-") as folder:
        server = Server(Path(folder), command(*line, "--log-level", "info"), {})
        try:
            server.wait_until_listening()
            report = fuzz(server, arguments.frames, seed)
            server.end()
        except (AssertionError, OSError) as error:
            raise KaasError(f"seed {seed}: {error}") from None
        finally:
            server.process.kill()
            server.process.wait()
            server.marked.kill()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        table = Table("what", "figure", title="Fuzz")
        for name, value in report.items():
            text = (
                ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else str(value)
            )
            table.add_row(name, text)
        Console().print(table)
    found = problems(report)
    for problem in found:
        print(f"LEAK: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    cli.run(main)
