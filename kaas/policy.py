"""Where does an invocation go, when does a GPU boot, who may wait? The experiment's subject; `pool.py` acts on it.

Pure: no clock, lock, socket or process. A policy is asked, and changes nothing.
"""

from typing import Protocol


class Fleet(Protocol):
    """What a policy looks at (placement.Placement)."""

    @property
    def booted(self) -> list[int]:
        """The booted GPUs, in order; one of them boots as long as none of its workers is ready."""

    def least_loaded(self) -> int | None:
        """Find the booted GPU with the fewest in flight that has an idle worker, the lowest of equals."""

    def most_loaded(self) -> int | None:
        """Find the booted GPU with the most in flight that has an idle worker, the lowest of equals."""

    @property
    def taken(self) -> int:
        """How many invocations all booted GPUs have."""

    @property
    def places(self) -> int:
        """How many workers all booted GPUs have that are not left out."""

    def next_to_boot(self) -> int | None:
        """Find the lowest GPU that is not booted and not left out."""

    def in_flight(self, gpu: int) -> int:
        """Tell how many invocations a booted GPU has."""

    def workers(self, gpu: int) -> list[int]:
        """List the workers of a GPU that are not left out, in order."""

    def ready(self, gpu: int) -> int:
        """Tell how many workers of a GPU are ready, idle or not."""

    def ready_and_idle(self, gpu: int) -> int:
        """Tell how many workers of a GPU could begin an invocation at once."""


class Policy(Protocol):
    """What decides."""

    def choose(self, fleet: Fleet) -> int | None:
        """Choose the booted GPU with an idle worker that an invocation goes to; None if it finds no place."""

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        """Choose the GPU to boot now, if any; `waiting` invocations have no place.

        Asked when an invocation finds no place, which then is the cold start and goes to the GPU that is booted for
        it; and after every change: one has been placed, a worker has become ready or was lost or left out, a GPU was
        stopped, has come or has gone. Only not after a reply, which leaves more room than there was.
        """

    def may_wait(self, fleet: Fleet, waiting: int) -> bool:
        """Tell whether an invocation without a place may wait behind `waiting` others, or else is rejected."""


class Paper:
    """The paper's: the next GPU is booted when all booted ones are full, and who finds no place then is rejected."""

    def choose(self, fleet: Fleet) -> int | None:
        """Choose the GPU with the fewest in flight, the lowest of equals."""
        return fleet.least_loaded()

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        """Choose the lowest GPU that is not booted, if somebody has no place."""
        return fleet.next_to_boot() if waiting else None

    def may_wait(self, fleet: Fleet, waiting: int) -> bool:
        """Nobody may."""
        return False


class Packing(Paper):
    """Like the paper's, but an invocation goes where most are already: GPUs that are not needed become idle."""

    def choose(self, fleet: Fleet) -> int | None:
        """Choose the GPU with the most in flight that has an idle worker, the lowest of equals."""
        return fleet.most_loaded()


class Ahead(Paper):
    """Like the paper's, but the next GPU is booted before all are full: as soon as a part of all places is taken.

    So do Ray Serve's target of ongoing requests and Knative's, which scale on a share of what replicas can take.

    Args:
        share: of the places of all booted GPUs, above 0 and at most 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        """Choose the lowest GPU that is not booted, if somebody has no place or so many are taken."""
        needed = waiting or (fleet.places and fleet.taken >= self._share * fleet.places)
        return fleet.next_to_boot() if needed else None


class Queue:
    """Like another policy, but `most` invocations may wait, first come first served."""

    def __init__(self, most: int, policy: Policy | None = None) -> None:
        self._most = most
        self._policy = policy or Paper()

    def choose(self, fleet: Fleet) -> int | None:
        """Choose as the other does."""
        return self._policy.choose(fleet)

    def boot(self, fleet: Fleet, waiting: int) -> int | None:
        """Boot as the other does."""
        return self._policy.boot(fleet, waiting)

    def may_wait(self, fleet: Fleet, waiting: int) -> bool:
        """Tell whether there is room."""
        return waiting < self._most


AHEAD_AT = 0.75
"""The share of all places from which on `ahead` boots the next GPU."""
NAMES = ("paper", "packing", "ahead")
"""Of the policies, as the command lines know them; each of them with a queue or without."""


def named(name: str, most_waiting: int = 0) -> Policy:
    """Make a policy of one of `NAMES`, by which so many invocations may wait."""
    policy = {"paper": Paper(), "packing": Packing(), "ahead": Ahead(AHEAD_AT)}[name]
    return Queue(most_waiting, policy) if most_waiting else policy
