"""What a server is told on its command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaas import wire


@dataclass(frozen=True)
class Settings:
    """All times are in seconds; `idle_timeout`, `queue_timeout` and `call_timeout` are 0 for never.

    `metrics_port` is None for no metrics, 0 for any free port; `insecure` lets a server without a token listen beyond
    this machine; `supervised` is the number of the process in charge, 0 if there is none.

    `gpu_ids` are what CUDA_VISIBLE_DEVICES calls the GPUs, in order, "" standing for none of them; without names
    they are called by their numbers.

    With the engine `ray`, `gpus` is 0 for all that Ray has; `ray_nodes` are the simulated ones of a Ray of our own,
    which is had unless `ray_address` names one; `link_host` is our address for the nodes, "" for that which Ray knows,
    and `link_port` where they connect, 0 for any free port. `mps` has the agents hold their nodes' GPUs under
    MPS, and says how to become root for that ("" for not at all); None holds nothing.
    """

    kernel: Path
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    gpus: int = 1
    gpu_ids: tuple[str, ...] = ()
    workers_per_gpu: int = 4
    message_size: int = wire.DEFAULT_LIMIT
    policy: str = "paper"
    when_full: Literal["reject", "queue"] = "reject"
    max_queue: int = 1024
    queue_timeout: float = 0.0
    idle_timeout: float = 60.0
    boot_timeout: float = 90.0
    call_timeout: float = 0.0
    drain_timeout: float = 30.0
    kill_after: float = 10.0
    supervised: int = 0
    metrics_port: int | None = None
    insecure: bool = False
    engine: Literal["local", "ray"] = "local"
    ray_address: str = ""
    ray_nodes: int = 1
    link_host: str = ""
    link_port: int = 0
    mps: str | None = None
