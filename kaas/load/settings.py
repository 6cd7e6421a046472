"""What a run of the load generator is told."""

from dataclasses import dataclass
from pathlib import Path

from kaas.cluster.cluster import Joining
from kaas.ramp import Shape
from kaas.results import RunFiles


@dataclass(frozen=True)
class Settings:
    """What a run is told; times in seconds. `server` is None if the client module needs no KaaS server.

    More than `max_failed` failed requests make the run a failed one, and so does a step whose clients come more than
    `max_late` seconds late (see Pacer). One in which a whole step of them failed goes on
    only if told to keep going. `supervised` is the number of the process in charge, 0 if there is none. The clients are
    on the nodes of a Ray if `joining` names one, else here.
    """

    client: Path
    input: str
    files: RunFiles
    parameters: dict[str, object]
    shape: Shape
    server: str | None
    backoff: float = 0.1
    ready_timeout: float = 60.0
    finish_timeout: float = 60.0
    max_failed: int = 0
    max_late: float | None = None
    keep_going: bool = False
    supervised: int = 0
    joining: Joining | None = None
