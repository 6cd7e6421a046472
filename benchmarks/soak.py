#!/usr/bin/env python3
"""Does it keep working, and leave nothing behind? Mixed load with random faults, for as long as wanted. Linux only.

Two servers, of a kernel that misbehaves when it is asked to and of the matrix kernel, serve clients that work and
misbehave (soak_clients.py) and runs of load.py. Meanwhile workers are killed or stopped, one or all of a GPU, or hang
while they boot; clients and load generators are killed or end; and nobody reads the servers' event lines for a while.
Every few seconds the load pauses until the idle task runners have stopped. Then the accounts of servers and clients
must agree, no process and no segment may be left but the servers, and what they take is measured: it may not grow. At
the end the event lines must tell what the servers have counted. Ctrl-C ends it with the report so far. Fails (exit
code 1) if anything leaks or is wrong.
"""

import json
import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import common
from common import ROOT, Options, Report, Target

sys.path[:0] = [str(ROOT / "tests")]

import psutil  # noqa: E402
import serving  # noqa: E402
from soak_clients import ASKED, LEFT, WORK  # noqa: E402
from soak_faults import Clients, Faults, received, status_of, unanswered  # noqa: E402
from soak_load import segments_of  # noqa: E402
from soak_servers import PROCESSES, SERVERS, Server, servers_in  # noqa: E402

from kaas import cli, segments, wire  # noqa: E402
from kaas.errors import KaasError, UsageError  # noqa: E402
from kaas.pool.account import ANSWERS, OUTCOMES, REFUSALS  # noqa: E402

CLIENTS = 8
WORK_SECONDS = 10.0
"""Length of a phase of work, between two calm ones."""
WARM_UP = 0.2
"""Part of the calm phases, the first, in which memory may still grow."""
MOST_GROWTH = 4.0
"""MB that a process's fitted line may rise over the rest, to be called flat."""
SETTLING_SECONDS = 5.0
"""How long a process may take to close what its clients have closed."""
MB = 1e6


class Sample(NamedTuple):
    """What one process takes in a calm phase; memory in MB."""

    seconds: float
    rss: float
    pss: float
    descriptors: int
    threads: int


class Soak:
    """The load, the faults, and the checks between them, from the start to the end.

    Args:
        servers: by kernel.
        folder: for what is written meanwhile.
        seed: of all that is drawn.
        work_seconds: length of a phase of work.
    """

    def __init__(self, servers: dict[str, Server], folder: Path, seed: int, work_seconds: float) -> None:
        self._random = Random(seed)
        self._work_seconds = work_seconds
        self._run = os.environ["KAAS_RUN"] = segments.draw_run()
        resource_tracker.ensure_running()  # one for all clients, so that a killed one's segments wait for us
        self._said = folder / "problems"
        self._said.touch()
        self.servers = servers
        self.samples: dict[str, list[Sample]] = {}
        self.most: Counter[str] = Counter()
        self.problems: list[str] = []
        self.told: dict[str, Counter[str]] = {}
        self.swept = 0
        self.stopping = False
        for number in (signal.SIGINT, signal.SIGTERM):  # first: where a process forks, what is raised can be lost
            signal.signal(number, lambda number, _: self.stop(number))
        self._begun = time.monotonic()
        self._phase = 0
        # Asked for once: what a server has said, where it is found, becomes long.
        self.addresses = {name: server.address for name, server in self.servers.items()}
        self.clients = Clients(CLIENTS, self.addresses, self._said, self._random)
        self.faults = Faults(self.servers, self.addresses, self.clients, folder, self._random)

    def work(self, seconds: float) -> None:
        """Go on for so long, in phases of work and of calm, or until it is told to stop; then let the servers end."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and not self.stopping:
                self._work(min(end, time.monotonic() + self._work_seconds))
                self._be_calm()
            codes = self.clients.end()
            self._check(not any(codes), f"clients end with exit codes {codes}")
            self._end_servers()
        except (KaasError, AssertionError) as error:
            self.problems.append(str(error))
        self.problems += [*self.faults.problems, *self._said.read_text().splitlines()]

    def _work(self, end: float) -> None:
        self.clients.order(self._phase)
        while time.monotonic() < end and not self.stopping:
            time.sleep(self._random.uniform(0.05, 0.4))
            self.faults.tick()
            for name, server in self.servers.items():
                process = psutil.Process(server.process.pid)
                now = {"descriptors": process.num_fds(), "processes": len(process.children(recursive=True))}
                now["bytes of event lines not read"] = server.unread()
                for what, number in now.items():
                    self.most[f"{name}: {what}"] = max(self.most[f"{name}: {what}"], number)

    def _be_calm(self) -> None:
        """Wait until nothing is to be done and all task runners have stopped, and check and measure what is there."""
        self.faults.settle()
        self.clients.order(self._phase + 1)
        self._phase += 2
        left = segments_of(self._run)
        self._check(len(left) <= 2 * self.faults.done["client killed"] - self.swept, f"segments are left: {left}")
        self.swept += segments.remove_orphans(self._run)
        for name, server in self.servers.items():
            status = _quiet_status(name, server, self.addresses[name])
            self._check_account(name, status)
            self._measure(f"{name}: server", psutil.Process(server.process.pid))
            self._measure(f"{name}: fork server", server.forkserver())
        seconds, done = time.monotonic() - self._begun, self.faults.done.total()
        asked = sum(self.clients.account()[f"{name} {ASKED}"] for name in SERVERS)
        problems = len(self.problems) + len(self.faults.problems)
        common.say(f"{seconds:.0f} s: {asked} invocations, {done} faults, {problems} problems")

    def _check_account(self, name: str, status: Mapping[str, Any]) -> None:
        """Compare a server's account with itself, and with those of its clients, at a moment when nothing happens."""
        counters, account = Counter[str](status["counters"]), self.clients.account()
        got = received(name, account, self.faults.of_load)
        told = f"{name}: counters {dict(counters)}, received {dict(got)}, left {account[f'{name} {LEFT}']}"
        self._check(counters["accepted"] == sum(counters[each] for each in OUTCOMES), f"accepted is no sum: {told}")
        self._check(counters["replies"] == sum(counters[each] for each in (*ANSWERS, *REFUSALS)), f"replies: {told}")
        self._check(all(got[each] <= counters[each] for each in wire.STATUSES), f"received what was not sent: {told}")
        self._check(counters["accepted"] <= got[ASKED], f"accepted what was not asked: {told}")
        self._check(unanswered(account, name) == 0, f"not everything was answered once: {told}")
        self._check(all(gpu["in_flight"] == 0 for gpu in status["by_gpu"]), f"slots are taken: {status['by_gpu']}")

    def _measure(self, name: str, process: psutil.Process) -> None:
        # The last query's connection is closed here, but the server may not have heard of it yet.
        before = self.samples.setdefault(name, [])
        limit, least = time.monotonic() + SETTLING_SECONDS, min((each.descriptors for each in before), default=0)
        while before and process.num_fds() > least and time.monotonic() < limit:
            time.sleep(0.01)
        memory, seconds = process.memory_full_info(), time.monotonic() - self._begun
        before.append(Sample(seconds, memory.rss / MB, memory.pss / MB, process.num_fds(), process.num_threads()))

    def _end_servers(self) -> None:
        for name, server in self.servers.items():
            status = status_of(self.addresses[name])
            code = server.stop()
            self._check(code == 0, f"{name}: the server ends with exit code {code}")
            _wait_until_nothing_is_left(name, server)
            said = server.stderr()
            self._check(
                f"accepted {status['counters']['accepted']}: " in said, f"{name}: its last account is another one"
            )
            self._check("Traceback" not in said, f"{name}: {said[said.find('Traceback') :][:2000]}")

            self._check_event_lines(name, server.told(), status)

    def _check_event_lines(self, name: str, told: Counter[str], status: Mapping[str, Any]) -> None:
        """Compare what came through with what the server counted; of lines but refusals, some may be left out."""
        self.told[name] = told
        left_out, all_told = told["lines left out"], f"{name}: event lines {dict(told)}, but {status}"
        lost = sum(gpu["lost"] for gpu in status["by_gpu"])
        self._check(told["rejected"] == status["counters"]["rejected"], f"refusals: {all_told}")
        self._check(0 <= lost - told["lost"] <= left_out, f"lost workers: {all_told}")
        self._check(abs(told["booted"] - told["stopped"]) <= left_out, f"task runners: {all_told}")

    def _check(self, sound: bool, problem: str) -> None:
        if not sound:
            self.problems.append(problem)

    def stop(self, number: int) -> None:
        """Work no more, but end in order and report; a second signal of the kind ends all at once."""
        self.stopping = True
        signal.signal(number, signal.default_int_handler)

    def close(self) -> None:
        """End what still runs besides the servers."""
        self.faults.kill()
        self.clients.end(0.0)
        segments.remove_orphans(self._run)


def _wait_until_nothing_is_left(name: str, server: Server) -> None:
    serving.wait_until(lambda: not server.marked.left(), f"{name}: all processes of the server have ended")


def _quiet_status(name: str, server: Server, address: str) -> dict[str, Any]:
    """Wait until a server has nothing to do and no workers; give its status."""
    serving.wait_until(lambda: not status_of(address)["task_runners"], f"{name}: all task runners have stopped")
    serving.wait_until(
        lambda: len(server.marked.left()) == PROCESSES,
        f"{name}: only server, fork server and reader are left of {server.marked.left()}",
    )
    status = status_of(address)
    if status["in_flight"] or status["queued"]:
        raise KaasError(f"{name}: something is in flight: {status}")
    return status


def report(soak: Soak) -> Report:
    """Put together what was found."""
    assert __doc__ is not None
    made = Report("Soak", __doc__.partition("\n\n")[2])
    made.add("problems: accounts, answers, leaks", "", [float(len(soak.problems))], Target(0))
    for name, samples in soak.samples.items():
        settled = samples[int(len(samples) * WARM_UP) :]
        first, last = settled[0], settled[-1]
        made.add(f"{name}: descriptors more at the end", "", [float(last.descriptors - first.descriptors)], Target(0))
        made.add(f"{name}: threads more at the end", "", [float(last.threads - first.threads)], Target(0))
        slope = slope_per_hour(settled)
        growth = slope * (last.seconds - first.seconds) / 3600
        made.add(f"{name}: memory's fitted growth after warm-up", "MB RSS", [growth], Target(MOST_GROWTH))
        made.add(f"{name}: memory's slope after warm-up", "MB/h RSS", [slope])
    made.add_table(
        "In calm phases",
        ("process", "at", "s", "RSS [MB]", "PSS [MB]", "descriptors", "threads"),
        [
            (name, when, *samples[at])
            for name, samples in soak.samples.items()
            for when, at in (("begin", 0), ("after warm-up", int(len(samples) * WARM_UP)), ("end", -1))
        ],
    )
    account = soak.clients.account()
    got = {name: received(name, account, soak.faults.of_load) for name in soak.servers}
    columns = (ASKED, *wire.STATUSES)
    rows = [(name, *(got[name][each] for each in columns), account[f"{name} {LEFT}"]) for name in soak.servers]
    made.add_table("Invocations, as the clients saw them", ("server", *columns, "left"), rows)
    told = [(name, what, number) for name, told in soak.told.items() for what, number in sorted(told.items())]
    made.add_table("What the servers' event lines told of", ("server", "what", "times"), told)
    made.add_table("Most while they worked", ("what", "number"), sorted(soak.most.items()))
    made.add_table("What clients did", ("what", "times"), [(name, account[name]) for name in WORK])
    faults = [*soak.faults.done.most_common(), ("segments of killed clients removed", soak.swept)]
    made.add_table("Faults", ("what", "times"), faults)
    made.notes += [f"PROBLEM: {problem}" for problem in soak.problems]
    return made


def slope_per_hour(samples: Sequence[Sample]) -> float:
    """Fit a line through the memory by least squares; give its rise in MB per hour, 0 for a single sample."""
    if len(samples) == 1:
        return 0.0
    times, sizes = [sample.seconds for sample in samples], [sample.rss for sample in samples]
    return round(statistics.linear_regression(times, sizes).slope * 3600, 3)


def main() -> int:
    """Run the soak that the command line describes, and report."""
    parser = cli.parser(__doc__)
    parser.add_argument("minutes", type=cli.positive_seconds, metavar="MINUTES", help="how long to work; 0.1 will do")
    parser.add_argument("--seed", type=int, help="of a run to be repeated (default: drawn, and told)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, too")
    options = parser.parse_args(namespace=Options(rounds=1, quick=False))
    if not serving.can_tell_shared_memory():
        raise KaasError("the soak needs Linux, whose /proc and /dev/shm tell what is left")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"{options.json}: there is no such folder")
    for name in [name for name in os.environ if name.startswith("KAAS_")]:
        del os.environ[name]  # a server that the user has elsewhere is none of ours
    seed = secrets.randbits(32) if options.seed is None else options.seed
    common.say(f"seed {seed}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kaas-soak-") as folder, servers_in(Path(folder)) as servers:
        soak = Soak(servers, Path(folder), seed, min(WORK_SECONDS, options.minutes * 60 / 2))
        try:
            soak.work(options.minutes * 60)
        finally:
            soak.close()
    found = report(soak)
    found.notes.append(f"seed {seed}")
    found.show()
    if options.json is not None:
        text = json.dumps(found.as_json(options, time.monotonic() - begun), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result["met"] is not False for result in found.results) else 1


if __name__ == "__main__":
    cli.run(main)
