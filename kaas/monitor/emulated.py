"""Utilization of emulated GPUs, as the emulator tells it; they have no power, memory or temperature."""

from collections.abc import Callable

from kaas.emulator import Emulator
from kaas.samples import Sample


class EmulatedMonitor:
    """Samples the GPUs of the emulator that KAAS_EMULATOR names.

    Args:
        clock: tells the time, in seconds since the epoch.

    Raises:
        UsageError, ConnectionFailed: there is none.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._emulator = Emulator()

    def take(self) -> list[Sample]:
        """Take a sample of every GPU.

        Raises:
            ConnectionFailed: the emulator has ended.
        """
        shown, now = self._emulator.samples(), self._clock()
        return [Sample(now, gpu, f"emulated:{gpu}", utilization_pct=percent) for gpu, percent in enumerate(shown)]

    def close(self) -> None:
        """Ask no more."""
        self._emulator.close()
