"""What is simulated, besides the model of GPUs and clients."""

from collections.abc import Callable
from dataclasses import dataclass

from kaas.policy import Paper, Policy
from kaas.ramp import Ramp, Shape

PAPER = Ramp(1, 48, 1, 10.0)
"""One client more every ten seconds, from 1 to 48."""


@dataclass(frozen=True)
class Setting:
    """What is simulated, besides the model; the defaults are the paper's.

    Seconds; `idle_timeout` as of the server, which the original did not have; `backoff` as of the load generator.
    `gpus_per_host` GPUs and their share of the clients are on one machine.
    """

    gpus: int = 8
    workers_per_gpu: int = 4
    shape: Shape = PAPER
    policy: Callable[[], Policy] = Paper
    idle_timeout: float = 0.0
    backoff: float = 0.0
    gpus_per_host: int = 8
    observed: bool = True
    """Whether to keep when each GPU was busy."""
