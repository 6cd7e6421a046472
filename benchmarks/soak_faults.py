"""The faults of the soak: what it does to workers, clients and load generators while they work."""

import contextlib
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import psutil
import serving
import soak_clients
from soak_clients import ASKED, LEFT, Cells
from soak_load import CLIENTS_OF_LOAD, Load
from soak_servers import SERVERS, Server

from kaas import wire
from kaas.client import Connection
from kaas.pool.account import ANSWERS

_MOST_LOAD_SECONDS = 4.0
_MOST_STOPPED_SECONDS = 2.0
_MOST_HUNG_SECONDS = 3.0


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
        for server in SERVERS:
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
        self._load: Load | None = None
        self._stopped: list[tuple[float, psutil.Process]] = []
        self._hung_until = 0.0
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
        return self._random.choice(self._server().worker_processes())

    def _server(self) -> Server:
        return self._servers[self._random.choice(list(self._servers))]

    def _worker_killed(self) -> None:
        self._worker().kill()

    def _worker_stopped_for_a_while(self) -> None:
        self._stop_for_a_while(self._worker())

    def _all_workers_of_a_GPU_killed(self) -> None:  # noqa: N802 - this is what the report calls it
        workers = status_of(self._addresses[self._random.choice(list(self._servers))])["workers"]
        gpu = self._random.choice(workers)["gpu"]
        for worker in workers:
            if worker["gpu"] == gpu and worker["pid"]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(worker["pid"]).kill()

    def _event_lines_not_read_for_a_while(self) -> None:
        self._stop_for_a_while(psutil.Process(self._server().reader.pid))

    def _boots_hang_for_a_while(self) -> None:
        now = time.monotonic()
        if now < self._hung_until + _MOST_HUNG_SECONDS:  # a place whose boots fail too often in a row is left out
            raise IndexError
        worker = self._random.choice(self._servers["faulty"].worker_processes())
        self._hung_until = now + self._random.uniform(_MOST_HUNG_SECONDS / 2, _MOST_HUNG_SECONDS)
        self._servers["faulty"].hang.touch()
        worker.kill()  # so that one boots

    def _client_killed(self) -> None:
        self._clients.kill_one()

    def _load_generator_started(self) -> None:
        if self._load is not None:
            raise IndexError
        number = self.done["load generator started"]
        seconds = self._random.uniform(0.5, _MOST_LOAD_SECONDS)
        self._load = Load(self._addresses["matrix"], self._folder, number, seconds)

    def _client_of_the_load_generator_killed(self) -> None:
        self._random.choice(self._load.clients() if self._load is not None else []).kill()

    def _stop_for_a_while(self, process: psutil.Process) -> None:
        process.suspend()
        self._stopped.append((time.monotonic() + self._random.uniform(0.05, _MOST_STOPPED_SECONDS), process))

    def _resume(self, now: float) -> None:
        if now >= self._hung_until:
            self._servers["faulty"].hang.unlink(missing_ok=True)
        for entry in [entry for entry in self._stopped if entry[0] <= now]:
            self._stopped.remove(entry)
            with contextlib.suppress(psutil.NoSuchProcess):
                entry[1].resume()

    def _end_load(self, load: Load) -> None:
        ended_by_itself = load.process.poll() is not None
        if not ended_by_itself:
            number = self._random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            load.process.send_signal(number)
            self.done[f"load generator ended by {number.name}"] += 1
        self._load = None
        self.problems += load.check(ended_by_itself)
        self.done += load.fates()
        rows = Counter(row.status for row in load.rows())
        self.problems += ["load.py got a wrong product"] * rows["wrong_result"]
        # A client that was killed together with the load generator has had one request that has no row.
        self.of_load += rows + Counter({ASKED: rows.total() + CLIENTS_OF_LOAD})

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
    Faults._event_lines_not_read_for_a_while: 6,
    Faults._boots_hang_for_a_while: 3,
    Faults._client_killed: 4,
    Faults._load_generator_started: 3,
    Faults._client_of_the_load_generator_killed: 2,
}


def status_of(address: str) -> dict[str, Any]:
    """Ask a server how it stands."""
    with Connection(address) as kaas:
        return kaas.status()


def received(server: str, account: Counter[str], of_load: Counter[str]) -> Counter[str]:
    """Put together what a server was asked and what it answered, by its clients and those of load.py."""
    names = (ASKED, *wire.STATUSES)
    return Counter({name: account[f"{server} {name}"] + (of_load[name] if server == "matrix" else 0) for name in names})
