"""The faults of the soak: what it does to workers, clients and load generators while they work."""

import contextlib
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import common
import psutil
import serving
import soak_clients
from soak_clients import ASKED, LEFT, Cells
from support import Marked, Server

from kaas import results, wire
from kaas.client import Connection
from kaas.errors import KaasError
from kaas.pool.account import ANSWERS

_RUN = re.compile(r'"KAAS_RUN": "([0-9a-f]{8})"')
_CLIENTS_OF_LOAD = 3
_MOST_LOAD_SECONDS = 4.0
_MOST_STOPPED_SECONDS = 2.0


class Clients:
    """The client processes, as many as are wanted at any time, and the account of all that there ever were."""

    def __init__(self, number: int, addresses: dict[str, str], problems: Path, random: Random) -> None:
        self._addresses = addresses
        self._problems = problems
        self._random = random
        self._order = Cells(["order"])
        self._running: list[tuple[BaseProcess, Cells]] = []
        self._gone = Counter[str]()
        for _ in range(number):
            self._start()

    def kill_one(self) -> None:
        """Kill one in the middle of what it does; another takes its place."""
        process, account = self._running.pop(self._random.randrange(len(self._running)))
        process.kill()
        process.join()
        counts = account.count()
        for server in soak_clients.SERVERS:
            counts[f"{server} {LEFT}"] += unanswered(counts, server)
        self._gone += counts
        self._start()

    def order(self, phase: int) -> None:
        """Have them work in even phases, be calm in odd ones, and wait until all are calm; or have them end."""
        self._order["order"] = phase
        if phase % 2:
            serving.wait_until(
                lambda: all(account["phase"] == phase for _, account in self._running), "every client has its answer"
            )

    def end(self, limit: float = 60.0) -> list[int | None]:
        """Have them end, or kill those that do not within the limit; give the exit codes."""
        self.order(soak_clients.END)
        for process, _ in self._running:
            process.join(limit)
            process.kill()
            process.join()
        return [process.exitcode for process, _ in self._running]

    def account(self) -> Counter[str]:
        """Add up all accounts: by server what was asked, answered and left; by name, what was done."""
        return sum((account.count() for _, account in self._running), self._gone.copy())

    def _start(self) -> None:
        account = soak_clients.new_account()
        seed = self._random.getrandbits(32)
        process = multiprocessing.get_context("fork").Process(
            target=soak_clients.be_client,
            args=(self._addresses, account, self._order, self._problems, seed),
            daemon=True,
        )
        process.start()
        self._running.append((process, account))


def unanswered(counts: Counter[str], server: str) -> int:
    """Tell how many invocations of an account neither have an answer nor were left by their client."""
    answered = sum(counts[f"{server} {status}"] for status in ANSWERS)
    return counts[f"{server} {ASKED}"] - counts[f"{server} {LEFT}"] - answered


class _Load:
    """One run of load.py against the server of the matrix kernel."""

    def __init__(self, address: str, folder: Path, number: int, seconds: float) -> None:
        self._scratch = folder / f"scratch-{number}"
        self._scratch.mkdir()
        self.marked = Marked({"TMPDIR": str(self._scratch)})
        self._end = time.monotonic() + seconds
        self._rows = folder / "results-soak" / f"run-{number}.csv"
        self._said = folder / "load-said"
        self._run = ""
        line = [sys.executable, str(common.ROOT / "load.py"), "--client", str(common.ROOT / "cuda-matmul-client.py")]
        line += ["--input", "64", "--experiment-name", "soak", "--task-name", f"run-{number}", "--server", address]
        line += ["--min-parallel", "1", "--max-parallel", str(_CLIENTS_OF_LOAD), "--interval", "1"]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [*line, "--finish-timeout", "10"],
                cwd=folder,
                env=self.marked.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,  # a Ctrl-C is the soak's to handle
            )

    def due(self) -> bool:
        """Tell whether its time is over; on the way, note how its shared memory is called."""
        if not self._run:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children():
                    if found := _RUN.search(" ".join(child.cmdline())):
                        self._run = found[1]
        return time.monotonic() >= self._end or self.process.poll() is not None

    def clients(self) -> list[psutil.Process]:
        """Give its client processes."""
        with contextlib.suppress(psutil.Error):
            return serving.forked(psutil.Process(self.process.pid))
        return []

    def check(self) -> list[str]:
        """Wait until nothing is left of it; say what is wrong, if anything is."""
        self.process.wait(60)
        problems = []
        try:
            serving.wait_until(lambda: not self.marked.left(), "all processes of load.py have ended")
        except KaasError as error:
            problems.append(f"{error}: {self.marked.left()}")
            self.marked.kill()
        left = [*self._scratch.iterdir(), *(segments_of(self._run) if self._run else ())]
        problems += [f"load.py leaves {path}" for path in left]
        said = self._said.read_text(errors="replace")
        # A Ctrl-C that comes while it is still importing is Python's to report.
        failed = "Traceback" in said and not said.rstrip().endswith("KeyboardInterrupt")
        return [*problems, f"load.py says: {said}"] if failed else problems

    def received(self) -> Counter[str]:
        """Count its rows by status; there are none if it was killed before it began."""
        if not self._rows.exists():
            return Counter()
        return Counter(row.status for row in results.read_rows(self._rows))


class Faults:
    """Draws faults and commits them.

    Args:
        servers: by kernel.
        addresses: of these.
        clients: that work.
        folder: for the runs of load.py.
        random: to draw from.
    """

    def __init__(
        self, servers: dict[str, Server], addresses: dict[str, str], clients: Clients, folder: Path, random: Random
    ) -> None:
        self._servers = servers
        self._addresses = addresses
        self._clients = clients
        self._folder = folder
        self._random = random
        self._load: _Load | None = None
        self._stopped: list[tuple[float, psutil.Process]] = []
        self.done: Counter[str] = Counter()
        self.of_load: Counter[str] = Counter()
        """Rows of all runs of load.py by status, and `asked`: how many requests there were at most."""
        self.problems: list[str] = []

    def tick(self) -> None:
        """Commit one fault, and see to what the former ones have left under way."""
        self._resume(time.monotonic())
        if self._load is not None and self._load.due():
            self._end_load(self._load)
        kinds, weights = zip(*_FAULTS.items(), strict=True)
        kind = self._random.choices(kinds, weights)[0]
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # there was none to commit it to
            kind(self)
            self.done[kind.__name__.removeprefix("_").replace("_", " ")] += 1

    def settle(self) -> None:
        """Let all that is stopped go on, and the run of load.py end."""
        self._resume(float("inf"))
        if self._load is not None:
            serving.wait_until(self._load.due, "load.py has had its time")
            self._end_load(self._load)

    def _worker(self) -> psutil.Process:
        """Draw one, ready or booting, of either server."""
        server = self._servers[self._random.choice(list(self._servers))]
        return self._random.choice(server.worker_processes())

    def _worker_killed(self) -> None:
        self._worker().kill()

    def _worker_stopped_for_a_while(self) -> None:
        worker = self._worker()
        worker.suspend()
        self._stopped.append((time.monotonic() + self._random.uniform(0.05, _MOST_STOPPED_SECONDS), worker))

    def _all_workers_of_a_GPU_killed(self) -> None:  # noqa: N802 - this is what the report calls it
        workers = status_of(self._addresses[self._random.choice(list(self._servers))])["workers"]
        gpu = self._random.choice(workers)["gpu"]
        for worker in workers:
            if worker["gpu"] == gpu and worker["pid"]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(worker["pid"]).kill()

    def _client_killed(self) -> None:
        self._clients.kill_one()

    def _load_generator_started(self) -> None:
        if self._load is not None:
            raise IndexError
        number = self.done["load generator started"]
        seconds = self._random.uniform(0.5, _MOST_LOAD_SECONDS)
        self._load = _Load(self._addresses["matrix"], self._folder, number, seconds)

    def _client_of_the_load_generator_killed(self) -> None:
        self._random.choice(self._load.clients() if self._load is not None else []).kill()

    def _resume(self, now: float) -> None:
        for entry in [entry for entry in self._stopped if entry[0] <= now]:
            self._stopped.remove(entry)
            with contextlib.suppress(psutil.NoSuchProcess):
                entry[1].resume()

    def _end_load(self, load: _Load) -> None:
        if load.process.poll() is None:
            number = self._random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            load.process.send_signal(number)
            self.done[f"load generator ended by {number.name}"] += 1
        self._load = None
        self.problems += load.check()
        rows = load.received()
        self.problems += ["load.py got a wrong product"] * rows["wrong_result"]
        # A client that was killed together with the load generator has had one request that has no row.
        self.of_load += rows + Counter({ASKED: rows.total() + _CLIENTS_OF_LOAD})

    def kill(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        self._resume(float("inf"))
        if self._load is not None:
            self._load.process.kill()
            self._load.process.wait()
            self._load.marked.kill()


_FAULTS: dict[Callable[[Faults], None], int] = {
    Faults._worker_killed: 8,
    Faults._worker_stopped_for_a_while: 5,
    Faults._all_workers_of_a_GPU_killed: 2,
    Faults._client_killed: 4,
    Faults._load_generator_started: 3,
    Faults._client_of_the_load_generator_killed: 2,
}


def status_of(address: str) -> dict[str, Any]:
    """Ask a server how it stands."""
    with Connection(address) as kaas:
        return kaas.status()


def segments_of(run: str) -> list[Path]:
    """List the segments of shared memory that a run has left."""
    return list(Path("/dev/shm").glob(f"kaas_{run}*"))


def received(server: str, account: Counter[str], of_load: Counter[str]) -> Counter[str]:
    """Put together what a server was asked and what it answered, by its clients and those of load.py."""
    names = (ASKED, *wire.STATUSES)
    return Counter({name: account[f"{server} {name}"] + (of_load[name] if server == "matrix" else 0) for name in names})
