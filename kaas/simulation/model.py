"""What the model assumes: each assumption one parameter with its name, its unit and what it means.

Clients think: between two requests each sets up its input, on a host that saturates. A GPU has kernels one after the
other, first come first served, or shares itself among them; transfers hinder each other only by the host. A place is
held a little longer than the kernel module measures. Where the numbers come from stands in the calibrations
(kaas.simulation.calibration); what fits them, in kaas.simulation.fitting.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from kaas.errors import UsageError


def _parameter(unit: str, meaning: str, default: Any = 0.0) -> Any:
    return field(default=default, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True)
class Model:
    """All parameters; `unit` and `meaning` of each stand in its field's metadata. 0 leaves out what it is about.

    Raises:
        UsageError: a value cannot be.
    """

    setup_alone: float = _parameter("s", "a client's setup with no other at it")
    setup_clients: tuple[float, ...] = _parameter("1", "clients in setup at once", ())
    setup_seconds: tuple[float, ...] = _parameter(
        "s", "the setup of each of so many; beyond the last, in proportion", ()
    )
    setup_spread: float = _parameter("1", "standard deviation of the logarithm of a setup's work")
    setup_spread_per_client: float = _parameter("1", "the same, more for each client in setup")
    setup_spread_most: float = _parameter("1", "the same, at most", 1.0)
    host_noise: float = _parameter("1", "standard deviation of the logarithm of the host's speed of setting up")
    host_noise_time: float = _parameter("s", "in which that speed forgets what it was", 1.0)
    host_noise_from: float = _parameter("1", "clients in setup below which there is no such noise", 0.0)
    host_noise_full: float = _parameter("1", "clients in setup from which on there is all of it", 1.0)
    upload: float = _parameter("s", "from the kernel module's begin until its kernel is queued")
    kernel: float = _parameter("s", "one kernel, alone on its GPU", 1.0)
    kernel_spread: float = _parameter("s", "its standard deviation")
    download: float = _parameter("s", "from the kernel's end until that of what the kernel module measures")
    transfer_spread: float = _parameter("s", "standard deviation of upload and of download")
    transfer_per_request: float = _parameter("s", "what each request in flight on the host adds to upload and download")
    kernels_shared: float = _parameter("1", "0: kernels of a GPU run one after the other; 1: at once, each at a part")
    kernel_crowd: tuple[float, ...] = _parameter(
        "1", "kernels of all GPUs at once, which are virtual then and share cores; none: each GPU is its own", ()
    )
    kernel_seconds: tuple[float, ...] = _parameter(
        "s", "what each of so many takes, if they come and go together; beyond the last, in proportion", ()
    )
    rest: float = _parameter("s", "what a request takes besides setup and kernel module")
    rest_per_client: float = _parameter("s", "the same, more for each client in setup")
    rest_spread: float = _parameter("s", "its standard deviation")
    rest_held: float = _parameter("1", "the part of the rest in which the request still holds its place")
    boot_first: float = _parameter("s", "from the first boot of all until its workers are ready")
    boot: float = _parameter("s", "the same, of any other")
    boot_per_client: float = _parameter("s", "the same, more for each client that runs on the host; not of the first")
    boot_spread: float = _parameter("s", "its standard deviation; the workers of a GPU are ready at once")
    leaves_after: float = _parameter(
        "s", "without a request, a worker leaves unnoticed, and its place is lost; 0: never"
    )
    first_begins: float = _parameter("s", "from the ramp's begin to the first client's first request")
    last_begins: float = _parameter(
        "s", "by how much the last client is late; others less, as the square of their number"
    )
    end_is_told: float = _parameter("s", "from the ramp's end until no client begins a request any more")
    transfer_utilization: float = _parameter("1", "part of a GPU that its monitor shows to be used by a transfer")
    utilization_window: float = _parameter("s", "over which the monitor shows the mean", 0.1)

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(0.0 <= number < float("inf") for number in numbers):
                raise UsageError(f"{name} = {value!r} cannot be: give numbers of at least 0")
        for name in ("kernel", "host_noise_time", "utilization_window"):
            if not getattr(self, name):
                raise UsageError(f"{name} must be above 0")
        for at, seconds in (("setup_clients", "setup_seconds"), ("kernel_crowd", "kernel_seconds")):
            numbers = getattr(self, at)
            if len(numbers) != len(getattr(self, seconds)) or list(numbers) != sorted(set(numbers)):
                raise UsageError(f"{at} must rise, and {seconds} have a value for each of them")
        if self.setup_clients[:1] != (1.0,) or min(self.setup_seconds) <= 0.0 or not self.setup_alone:
            raise UsageError("setup_clients must begin with 1, and setup_seconds and setup_alone be above 0")
        if self.kernel_crowd and (self.kernel_crowd[0] != 1.0 or min(self.kernel_seconds) <= 0.0):
            raise UsageError("kernel_crowd must begin with 1, and kernel_seconds be above 0")
        if self.host_noise_full <= self.host_noise_from:
            raise UsageError("host_noise_full must be above host_noise_from")

    def values(self) -> dict[str, Any]:
        """Give the value of each parameter."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def setup(self, clients: int) -> float:
        """Tell how long a setup takes each of so many at it, in seconds: a straight line between those measured."""
        return _look_up(self._setups, clients)

    def kernel_among(self, number: int) -> float:
        """Tell the same of kernels on cores that all GPUs share."""
        return _look_up(self._kernels, number)

    @cached_property
    def _setups(self) -> list[float]:
        return _table(self.setup_clients, self.setup_seconds)

    @cached_property
    def _kernels(self) -> list[float]:
        return _table(self.kernel_crowd, self.kernel_seconds)


def _table(at: tuple[float, ...], seconds: tuple[float, ...]) -> list[float]:
    """Give the seconds of each of 0, 1, 2 and so on, which lie on straight lines between those that are known."""
    table = [seconds[0]]  # of nobody
    for number in range(1, int(at[-1]) + 1):
        right = min(bisect_right(at, number), len(at) - 1)
        left = max(right - 1, 0)
        part = (number - at[left]) / (at[right] - at[left]) if right > left else 0.0
        table.append(seconds[left] + min(part, 1.0) * (seconds[right] - seconds[left]))
    return table


def _look_up(table: list[float], number: int) -> float:
    return table[number] if number < len(table) else table[-1] * number / (len(table) - 1)


UNITS: dict[str, str] = {one.name: one.metadata["unit"] for one in fields(Model)}
"""Of each parameter."""
MEANINGS: dict[str, str] = {one.name: one.metadata["meaning"] for one in fields(Model)}
"""Of each parameter, in words."""
