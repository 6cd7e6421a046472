"""What more than one claim asks of a run: its steps and boots, what the rule of placement makes of it, what it had."""

import re
from functools import cached_property, lru_cache

from kaas.analysis import booted, replay, statistics
from kaas.analysis.judging import HOLDS, Finding, OtherLoadError, UnclearError
from kaas.analysis.replay import Replay
from kaas.analysis.runs import Run

LEVELS_AT_LEAST = 3
"""Steps of the ramp that show growth."""
_MOST_SILENT = 0.25
_SILENT_FOR_S = 5.0
_CORES = re.compile(r"(?P<number>\d+(\.\d+)?) threads' worth")


class Setting:
    """What more than one check asks of a run; None is what is not known."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps = statistics.steps(run)
        self.first_boots = booted.first(run)
        logged = run.events[run.events["event"] == "booted"]
        self.gpus = _whole(run.parameters.get("Server number of GPUs")) or run.monitoring["gpu"].nunique() or None
        self.workers_per_gpu = _whole(run.parameters.get("Server workers per GPU")) or (
            int(logged["num_workers"].max()) if len(logged) else None
        )

    @cached_property
    def replay(self) -> Replay:
        """What the rule of placement makes of the run's own arrivals and ends."""
        if not self.gpus or not self.workers_per_gpu:
            raise UnclearError("The number of GPUs or of their workers is not known.")
        return replay.replay(self.run, self.gpus, self.workers_per_gpu)

    @property
    def is_virtual(self) -> bool:
        """Whether the GPUs are groups of processes on the machine's cores."""
        return bool(self.run.monitoring["bus_id"].str.startswith("virtual:").any())

    @property
    def is_papers_policy(self) -> bool:
        """Whether invocations were placed by the paper's rule, with a queue or without."""
        return self.run.parameters.get("Server policy", "paper") == "paper"

    def judged_if_cores_suffice(self, finding: Finding) -> Finding:
        """Say why more virtual GPUs do no more work; where their cores are few, the claim is not testable."""
        if finding.verdict == HOLDS or not self.is_virtual:
            return finding
        why, testable = "The GPUs are virtual and share the same cores, of which one more GPU adds none.", True
        most = int(self.run.requests["concurrency"].max())
        busy = min((self.gpus or 0) * (self.workers_per_gpu or 0), most)
        noted = _CORES.match(self.run.parameters.get("CPU usable", ""))
        if noted is not None and busy > float(noted["number"]):
            why, testable = f"The GPUs are virtual: up to {busy} busy workers shared {noted['number']} cores.", False
        return finding._replace(note=f"{finding.note} {why}".strip(), testable=testable)

    def can_be_judged(self) -> None:
        """Raise UnclearError where the run tells nothing of any claim."""
        if not self.run.is_steps:
            shape = self.run.shape
            raise OtherLoadError(
                f"The claims are on clients that grow step by step, and the shape of this load was {shape}."
            )
        if not self.run.timed:
            raise UnclearError("The time stamps of this run cannot be trusted.")
        if not (self.run.requests["status"] == "ok").any():
            raise UnclearError("No request was served.")

    def needs_papers_policy(self) -> None:
        """Raise UnclearError where another rule than the paper's placed invocations and booted GPUs."""
        if not self.is_papers_policy:
            policy = self.run.parameters["Server policy"]
            raise UnclearError(f"The claim is on the paper's policy, and this server's was {policy}.")

    def needs_log(self) -> None:
        """Raise UnclearError where no boot was logged."""
        if self.first_boots.empty:
            raise UnclearError("No boot was logged by the server.")

    def needs_clients(self) -> None:
        """Raise UnclearError where so many clients fell silent that their number does not tell what they asked for."""
        clients = int(self.run.requests["copy"].nunique())
        silent = replay.silent(self.run, _SILENT_FOR_S)
        clients += int((~silent["copy"].isin(self.run.requests["copy"])).sum())
        if len(silent) > _MOST_SILENT * clients:
            raise UnclearError(
                f"Of {clients} clients {len(silent)} fell silent: their number does not tell what was asked."
            )

    def needs_growth(self) -> tuple[int, int]:
        """Give the GPUs and the workers of each, for a ramp that goes beyond one of several GPUs."""
        gpus = self.gpus or len(self.first_boots)
        workers = self.workers_per_gpu
        if not gpus or not workers:
            raise UnclearError("The number of GPUs or of their workers is not known.")
        if gpus == 1:
            raise UnclearError("There was one GPU only.")
        most = int(self.run.requests["concurrency"].max())
        if most <= workers:
            raise UnclearError(f"One task runner has a worker for each client: there were {most} at most.")
        levels = self.steps["clients"].nunique()
        if levels < LEVELS_AT_LEAST:
            raise UnclearError(f"The ramp has too few steps to see growth: {levels}.")
        self.needs_clients()
        return gpus, workers


@lru_cache(32)
def setting_of(run: Run) -> Setting:
    """Give what more than one check asks of a run, found out once."""
    return Setting(run)


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
