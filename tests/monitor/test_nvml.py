"""The energy counters, by a stand-in for NVIDIA's library in C."""

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import StandIns
from support import LIMIT, eventually

from kaas import ROOT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's management library is Linux's"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is here"),
    pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed"),
]
IN_NO_DRIVER = "total_energy_consumption"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in for libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "stand_ins" / "nvml.c"
    command = ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


class Monitored:
    """Two GPUs whose driver has no energy in nvidia-smi, and what the monitor wrote and said of them."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.nvidia = StandIns(folder / "nvidia", 2)
        self.nvidia.set("unknown-fields", IN_NO_DRIVER)
        self._environment = os.environ | self.nvidia.environment | {"LD_LIBRARY_PATH": str(library)}
        self._path = folder / "monitoring.csv"
        self.said = ""

    def energies(self, energy: dict[int, str], samples: int = 10) -> dict[str, list[str]]:
        """Run the monitor for some samples; give the cells of `energy_j` by GPU."""
        (Path(self._environment["STAND_INS"]) / "energy").mkdir()
        for gpu, text in energy.items():
            self.nvidia.set("energy", gpu, text)
        command = [sys.executable, str(ROOT / "gpu-monitor.py"), str(self._path), "--source", "nvidia-smi"]
        with subprocess.Popen(
            [*command, "--interval-ms", "20"],
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                eventually(lambda: process.poll() is not None or len(self._rows()) >= 2 * samples)
                process.terminate()
                self.said = process.communicate(timeout=LIMIT)[1]
            finally:
                process.kill()
        assert process.returncode == 0, self.said
        by_gpu: dict[str, list[str]] = {"0": [], "1": []}
        for row in self._rows():
            by_gpu[row["gpu"]].append(row["energy_j"])
        return by_gpu

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        whole = self._path.read_text().rpartition("\n")[0]
        return list(csv.DictReader(whole.splitlines()))


@pytest.fixture
def monitored(tmp_path: Path, library: Path) -> Monitored:
    """Give two GPUs to be monitored."""
    return Monitored(tmp_path, library)


def test_the_energy_of_each_gpu_is_its_counters_in_joules(monitored: Monitored) -> None:
    energies = monitored.energies({0: "1234567", 1: "8000"})

    assert set(energies["0"]) == {"1234.567"}
    assert set(energies["1"]) == {"8.0"}
    assert monitored.said == ""


def test_a_gpu_is_found_by_its_bus_id_where_its_uuid_is_not_known(monitored: Monitored) -> None:
    monitored.nvidia.set("unknown-fields", f"{IN_NO_DRIVER}\nuuid")

    assert set(monitored.energies({0: "5000", 1: "8000"})["1"]) == {"8.0"}


def test_the_counter_is_read_at_every_sample(monitored: Monitored) -> None:
    energies = [float(cell) for cell in monitored.energies({})["1"]]

    assert energies == sorted(energies)
    assert len(set(energies)) > 5


def test_a_gpu_without_a_counter_has_empty_cells_and_the_others_have_theirs(monitored: Monitored) -> None:
    energies = monitored.energies({0: "-3", 1: "8000"})

    assert set(energies["0"]) == {""}
    assert set(energies["1"]) == {"8.0"}
    assert monitored.said == ""


def test_a_counter_that_fails_is_said_once_and_costs_no_other(monitored: Monitored) -> None:
    energies = monitored.energies({0: "-15", 1: "8000"})

    assert set(energies["0"]) == {""}
    assert set(energies["1"]) == {"8.0"}
    assert "no energy counter of GPU-stand-in-0 from now on: GPU is lost" in monitored.said
    assert len(monitored.said.splitlines()) == 1


def test_without_a_driver_for_the_library_the_column_is_empty(monitored: Monitored) -> None:
    monitored.nvidia.set("no-driver", "")

    assert {cell for cells in monitored.energies({}).values() for cell in cells} == {""}


def test_without_the_library_the_column_is_empty(tmp_path: Path) -> None:
    nowhere = tmp_path / "no-library"
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's library")

    assert {cell for cells in Monitored(tmp_path, nowhere).energies({}).values() for cell in cells} == {""}
