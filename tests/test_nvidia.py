"""Which GPUs there are, whatever nvidia-smi says besides, and which of them CUDA_VISIBLE_DEVICES gives."""

from pathlib import Path

import pytest
from project import StandIns

from kaas import nvidia
from kaas.nvidia import Gpu


def gpu(number: int, uuid: str, mig: bool = False) -> Gpu:
    return Gpu(number, uuid, "Stand-in", "570.00", (7, 0), 2**34, 2**34, "DEFAULT", mig)


FOUR = [gpu(0, "GPU-11aa"), gpu(1, "GPU-11bb"), gpu(2, "GPU-22aa"), gpu(3, "GPU-33aa")]
WITH_MIG = [gpu(0, "GPU-11aa", mig=True), gpu(1, "GPU-11bb")]


@pytest.mark.parametrize(
    ("setting", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("  ", []),
        ("0", [0]),
        ("2,1", [2, 1]),
        (" 3 , 0 ", [3, 0]),
        ("03", [3]),
        ("GPU-22aa", [2]),
        ("GPU-2", [2]),
        ("GPU-11b,GPU-3", [1, 3]),
        ("3,GPU-11bb", [3, 1]),
    ],
)
def test_the_gpus_given_are_those_that_cuda_would_see_in_its_order(setting: str | None, numbers: list[int]) -> None:
    assert nvidia.given(setting, FOUR) == ([FOUR[number].uuid for number in numbers], "")


@pytest.mark.parametrize(
    ("setting", "numbers", "culprit"),
    [
        ("0,7,1", [0], "7 is no GPU"),
        ("-1", [], "-1 is no GPU"),
        ("1,-1,0", [1], "-1 is no GPU"),
        ("NoDevFiles", [], "NoDevFiles is no GPU"),
        ("2,,1", [2], "an empty entry is no GPU"),
        ("GPU-22,GPU-44,GPU-33", [2], "GPU-44 is no GPU"),
        ("GPU-11", [], "GPU-11 is no GPU"),  # fits two
        ("aa22", [], "aa22 is no GPU"),
        ("MIG-0f", [], "MIG-0f is no GPU"),  # on no GPU MIG is on
    ],
)
def test_the_list_ends_at_the_first_entry_that_fits_no_gpu_and_that_is_said(
    setting: str, numbers: list[int], culprit: str
) -> None:
    names, note = nvidia.given(setting, FOUR)

    assert names == [FOUR[number].uuid for number in numbers]
    assert culprit in note
    assert f"CUDA_VISIBLE_DEVICES={setting}" in note


def test_a_gpu_that_is_named_twice_makes_cuda_find_none() -> None:
    names, note = nvidia.given("1,GPU-11bb", FOUR)

    assert names == []
    assert "names GPU-11bb twice" in note


def test_a_part_of_a_gpu_keeps_its_name() -> None:
    assert nvidia.given("MIG-0f,MIG-1f", WITH_MIG) == (["MIG-0f", "MIG-1f"], "")


# With the stand-in


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    found = StandIns(tmp_path / "nvidia", gpus=2)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def test_one_question_tells_all_of_all_gpus(stand_ins: StandIns) -> None:
    stand_ins.set("modes", 1, "Exclusive_Process")
    stand_ins.set("mig", 1)

    found, _ = nvidia.found()

    assert found == [
        Gpu(0, "GPU-stand-in-0", "Stand-in V100", "570.00", (7, 0), 16384 * 2**20, 16000 * 2**20, "DEFAULT", False),
        Gpu(
            1,
            "GPU-stand-in-1",
            "Stand-in V100",
            "570.00",
            (7, 0),
            16384 * 2**20,
            16000 * 2**20,
            "EXCLUSIVE_PROCESS",
            True,
        ),
    ]
    assert len(stand_ins.calls()) == 1


def test_a_warning_and_an_exit_code_do_not_hide_the_gpus(stand_ins: StandIns) -> None:
    stand_ins.set("warns", "WARNING: infoROM is corrupted at gpu 0000:16:00.0")

    found, answer = nvidia.found()

    assert [gpu.uuid for gpu in found] == ["GPU-stand-in-0", "GPU-stand-in-1"]
    assert answer.code == 14


def test_what_an_old_driver_cannot_be_asked_is_not_known_of_its_gpus(stand_ins: StandIns) -> None:
    stand_ins.set("unknown-fields", "compute_cap\nmig.mode.current")

    assert {(gpu.capability, gpu.mig) for gpu in nvidia.found()[0]} == {(None, False)}


@pytest.mark.parametrize(
    ("setting", "count", "names", "said"),
    [
        (None, 2, (), ""),
        ("1", 1, ("GPU-stand-in-1",), ""),
        ("1,0", 1, ("GPU-stand-in-1",), ""),
        ("1", 2, ("GPU-stand-in-1", ""), "gives 1 of 2 GPUs"),
        ("1,5,0", 2, ("GPU-stand-in-1", ""), "5 is no GPU here"),
        ("", 2, ("", ""), "gives 0 of 2 GPUs"),
    ],
)
def test_a_server_uses_the_gpus_that_it_was_given_and_no_other(
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    *,
    setting: str | None,
    count: int,
    names: tuple[str, ...],
    said: str,
) -> None:
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    found, note = nvidia.for_workers(count)

    assert found == names
    assert said in note
    assert bool(said) == bool(note)


def test_without_nvidia_smi_a_server_hands_on_the_names_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5f")

    assert nvidia.for_workers(2) == (("4", "GPU-5f"), "")
