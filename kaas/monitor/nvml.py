"""The energy counters of NVIDIA GPUs, by NVML: what nvidia-smi has no field for in any driver so far.

A counter tells the joules since the driver was loaded, on Volta and later, and misses nothing between two samples,
while the power that nvidia-smi prints is the mean of a second on most GPUs since Ampere (NVIDIA's NVML API reference,
`nvmlDeviceGetTotalEnergyConsumption`, `nvmlDeviceGetPowerUsage`). The library is reached through `nvidia-ml-py`, which
is installed with the sets for GPUs. Where it, the driver's library or the counter is missing, nothing is counted.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from kaas.samples import Sample


class EnergyCounters:
    """The counters of the GPUs that samples name.

    Args:
        say: takes a line about a counter that fails.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._devices: dict[tuple[str, str], Any] = {}  # by UUID and bus id; None for one without a counter
        self._nvml = _nvml()

    def add_to(self, samples: Iterable[Sample]) -> list[Sample]:
        """Fill in the energy of each sample that has none, as it is now: samples are stamped when they arrive."""
        if self._nvml is None:
            return list(samples)
        joules: dict[tuple[str, str], float | None] = {}
        filled = []
        for sample in samples:
            gpu = sample.uuid, sample.bus_id
            if sample.energy_j is None:
                if gpu not in joules:
                    joules[gpu] = self._joules(*gpu)
                sample = sample._replace(energy_j=joules[gpu])  # noqa: PLW2901
            filled.append(sample)
        return filled

    def close(self) -> None:
        """Let go of the library."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _joules(self, uuid: str, bus_id: str) -> float | None:
        gpu = uuid, bus_id
        try:
            if gpu not in self._devices:
                self._devices[gpu] = self._device(uuid, bus_id)
            device = self._devices[gpu]
            return None if device is None else self._nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000
        except self._nvml.NVMLError as error:
            # Asked no more: a GPU that is lost does not come back, and one without a counter gets none.
            self._devices[gpu] = None
            if not isinstance(error, self._nvml.NVMLError_NotSupported):
                self._say(f"no energy counter of {uuid or bus_id} from now on: {error}")
            return None

    def _device(self, uuid: str, bus_id: str) -> Any:
        if uuid:
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            except self._nvml.NVMLError:
                if not bus_id:
                    raise
        return self._nvml.nvmlDeviceGetHandleByPciBusId(bus_id)


def _nvml() -> Any:
    """Give the library, ready; None if there is none."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
