import time
from pathlib import Path

import pandas as pd
import pytest

from kaas.analysis import nvidia_logs, reading
from kaas.errors import ResultsError

NOON = 1_695_211_200.0  # 2023-09-20 12:00:00, if it were UTC
HOUR = 3600.0
NAN = float("nan")


def parse(text: str) -> tuple[pd.DataFrame, int]:
    return nvidia_logs.parse(text.encode())


def rows(frame: pd.DataFrame, *columns: str) -> list[list[object]]:
    return frame[list(columns)].to_numpy().tolist()


def test_the_published_form_has_three_columns_and_no_header() -> None:
    frame, dropped = parse(
        "2023/09/20 12:00:00.465,00000000:3A:00.0,0\n"
        "2023/09/20 12:00:00.465,00000000:15:00.0,7\n"
        "2023/09/20 12:00:00.566,00000000:15:00.0,100\n"
    )

    assert dropped == 0
    assert rows(frame, "timestamp", "gpu", "bus_id", "utilization_pct") == [
        [NOON + 0.465, 1, "00000000:3A:00.0", 0],
        [NOON + 0.465, 0, "00000000:15:00.0", 7],
        [NOON + 0.566, 0, "00000000:15:00.0", 100],
    ]


HEADER = (
    "timestamp, index, name, pci.bus_id, uuid, utilization.gpu [%], power.draw [W], total_energy_consumption [mJ], "
    "memory.used [MiB], clocks.current.sm [MHz], temperature.gpu"
)
WITH_UNITS = (
    "2023/09/20 12:00:00.000, 0, Tesla V100-SXM2-32GB, 00000000:B2:00.0, GPU-11-aa, 45 %, 61.20 W, 2500 mJ, 1024 MiB, "
    "1380 MHz, 41"
)
WITHOUT_UNITS = (
    "2023/09/20 12:00:00.000, 0, Tesla V100-SXM2-32GB, 00000000:B2:00.0, GPU-11-aa, 45, 61.20, 2500, 1024, 1380, 41"
)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (HEADER, WITH_UNITS),
        (HEADER, WITHOUT_UNITS),
        (HEADER.replace(" [%]", "").replace("current.", "").replace("pci.bus_id", "gpu_bus_id"), WITH_UNITS),
        (HEADER.replace(", ", ","), WITHOUT_UNITS.replace(", ", ",")),
        ("Wed Sep 20: a line of the shell\n\n" + HEADER, WITH_UNITS),
    ],
)
def test_columns_are_told_by_the_header_with_or_without_units_and_blanks(header: str, line: str) -> None:
    frame, dropped = parse(f"{header}\n{line}\n")

    assert dropped == 0
    assert frame.to_dict("records") == [
        {
            "timestamp": NOON,
            "gpu": 0,
            "bus_id": "00000000:B2:00.0",
            "uuid": "GPU-11-aa",
            "utilization_pct": 45.0,
            "power_w": 61.2,
            "energy_j": 2.5,
            "memory_mib": 1024.0,
            "sm_clock_mhz": 1380.0,
            "temperature_c": 41.0,
        }
    ]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("45 %, 61.20 W, 1024 MiB, 16384 MiB, 1380 MHz", (45, 61.2, 1024, 1380)),
        ("45, 61.20", (45, 61.2, NAN, NAN)),
        ("61.20 W, 45 %", (45, 61.2, NAN, NAN)),
        ("[N/A], 61.20", (NAN, 61.2, NAN, NAN)),
        ("1024 MiB, 45", (45, NAN, 1024, NAN)),
    ],
)
def test_without_header_columns_are_told_by_what_is_in_them(cells: str, expected: tuple[float, ...]) -> None:
    frame, dropped = parse(f"2023/09/20 12:00:00.000, 00000000:B2:00.0, {cells}\n" * 3)

    assert (len(frame), dropped) == (3, 0)
    found = frame.reindex(columns=["utilization_pct", "power_w", "memory_mib", "sm_clock_mhz"])
    assert found.iloc[0].tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]", "[Unknown Error]", "N/A", "[GPU requires reset]"])
def test_what_nvidia_smi_does_not_know_is_nan_and_no_malformed_line(cell: str) -> None:
    frame, dropped = parse(
        "timestamp, pci.bus_id, utilization.gpu [%], power.draw [W]\n"
        f"2023/09/20 12:00:00.000, 00000000:15:00.0, {cell}, {cell}\n"
        f"2023/09/20 12:00:01.000, 00000000:15:00.0, 5 %, {cell}\n"
    )

    assert dropped == 0
    assert frame["utilization_pct"].tolist() == pytest.approx([NAN, 5], nan_ok=True)
    assert frame["power_w"].isna().all()


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("pci.bus_id", ["00000000:0A:00.0", "00000000:15:00.0", "00000001:00:00.0"]),
        ("uuid", ["GPU-0b", "GPU-a1", "GPU-c7"]),
        ("index", ["2", "4", "10"]),
    ],
)
def test_gpus_are_numbered_from_0_by_bus_id_or_by_what_names_them(field: str, names: list[str]) -> None:
    lines = [f"2023/09/20 12:00:0{at}.5, {name}, {at}" for at, name in enumerate(reversed(names))]

    frame, _ = parse("\n".join([f"timestamp, {field}, utilization.gpu", *lines, ""]))

    assert rows(frame, "gpu", "utilization_pct") == [[2, 0], [1, 1], [0, 2]]


def test_gpus_without_bus_ids_are_numbered_by_their_index_whatever_their_uuids_are() -> None:
    uuids = ["GPU-c7", "GPU-d0", "GPU-0b", "GPU-a1"]
    lines = [f"2023/09/20 12:00:00.5, {gpu}, {uuid}, {10 + 10 * gpu} %" for gpu, uuid in enumerate(uuids)]

    frame, _ = parse("\n".join(["timestamp, index, uuid, utilization.gpu [%]", *lines, ""]))

    assert rows(frame, "gpu", "utilization_pct") == [[0, 10], [1, 20], [2, 30], [3, 40]]


@pytest.mark.parametrize("ours", [True, False], ids=["the monitor's file", "nvidia-smi's"])
def test_values_that_no_gpu_can_have_are_unknown_and_noted(tmp_path: Path, ours: bool) -> None:
    sound, failed = "40.0,100.5", "4294967295,2147483.65"
    path = tmp_path / "task-1-gpu-monitoring.csv"
    stamps = ["1700000000.0", "1700000000.1"] if ours else ["2023/09/20 12:00:00.0", "2023/09/20 12:00:00.1"]
    header = "timestamp,gpu,utilization_pct,power_w" if ours else "timestamp,index,utilization.gpu,power.draw"
    path.write_text(f"{header}\n{stamps[0]},0,{sound}\n{stamps[1]},0,{failed}\n{stamps[1]},1,100.0,0.0\n")
    notes: list[str] = []

    frame, _ = reading.read_monitoring(path, notes)

    assert frame["utilization_pct"].tolist() == pytest.approx([40, NAN, 100], nan_ok=True)
    assert frame["power_w"].tolist() == pytest.approx([100.5, NAN, 0], nan_ok=True)
    assert len(notes) == 1
    assert "1 of utilization_pct, 1 of power_w" in notes[0]


def test_malformed_lines_are_counted_and_cost_nothing_else() -> None:
    header = "timestamp, pci.bus_id, utilization.gpu [%]"
    good = "2023/09/20 12:00:00.000, 00000000:15:00.0, 5 %"
    bad = [
        header,  # two files, one after the other
        good[:10],
        good[:-5],
        good + ", 6 %",
        good.replace("12:00", "25:00"),
        good.replace("15:00.0", "15:0"),
        good.replace("5 %", "5..0"),
        "\0\ufffd\x80",
        good + good,
        '"' + good,
    ]

    frame, dropped = parse("\n".join([header, good, *bad, "", good, ""]))

    assert dropped == len(bad)
    assert frame["utilization_pct"].tolist() == [5, 5]
    assert frame["gpu"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("noon, 0, 5\n", "neither in the form"),
        ("\n" * 50 + "2023/09/20 12:00:00.000, 00000000:15:00.0, 5\n", "neither in the form"),
        ("timestamp, utilization.gpu [%]\n2023/09/20 12:00:00.000, 5 %\n", "no time or no GPU"),
        ("2023/09/20 12:00:00.000, 5 %\n", "no time or no GPU"),
    ],
)
def test_what_is_no_such_log_is_told(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_a_monitoring_file_of_nvidia_smi_becomes_the_frame_that_ours_is(tmp_path: Path) -> None:
    path = tmp_path / "task-1-gpu-monitoring.csv"
    path.write_text(f"{HEADER}\r\n{WITH_UNITS}\r\n{WITH_UNITS[:30]}\r\n{WITH_UNITS}")
    notes: list[str] = []

    frame, is_local = reading.read_monitoring(path, notes)

    assert is_local
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        name: str(kind) for name, kind in reading.empty(reading.MONITORING_TYPES).dtypes.items()
    }
    assert frame["power_w"].tolist() == [61.2]
    assert notes == [
        f"{path.name} ends in mid-line: that line was dropped.",
        f"{path.name} has 1 malformed line that was dropped.",
    ]


def samples(
    begin: float, end: float, busy: tuple[float, float] = (NAN, NAN), levels: tuple[float, float] = (0.0, 80.0)
) -> pd.DataFrame:
    """Give a sample a second, at work from `busy[0]` to `busy[1]`; unknown how busy, if that is not a number.

    The levels are the utilization while a GPU idles, and while it is at work.
    """
    stamps = [begin + second for second in range(int(end - begin) + 1)]
    unknown = busy[0] != busy[0]
    values = [NAN if unknown else levels[busy[0] <= stamp <= busy[1]] for stamp in stamps]
    return pd.DataFrame({"timestamp": stamps, "utilization_pct": values})


@pytest.mark.parametrize("offset_h", [-12.0, -5.0, -3.5, 0.0, 0.25, 5.75, 14.0])
@pytest.mark.parametrize("minutes", [0.5, 8, 14, 16, 60, 300])
def test_the_offset_is_that_at_which_samples_and_requests_fit(offset_h: float, minutes: float) -> None:
    shift, end = offset_h * HOUR, NOON + 60 * minutes

    assert nvidia_logs.zone_offset_h(samples(NOON + shift - 3, end + shift + 5), NOON, end) == offset_h


@pytest.mark.parametrize(
    ("monitoring", "why"),
    [
        (samples(NOON - HOUR, NOON + 2 * HOUR, (NOON + 10, NOON + HOUR)), "a monitor left running"),
        (samples(NOON - 2, NOON + HOUR + 2, (NOON + 1500, NOON + 1600)), "GPUs that idle for most of the run"),
        (samples(NOON - 2, NOON + 1.5 * HOUR, (NOON + 30, NOON + 0.9 * HOUR)), "both, in part"),
        (samples(NOON + 600, NOON + HOUR), "a monitor started late"),
        (samples(NOON - HOUR, NOON + 2 * HOUR, (NOON, NOON + HOUR), (3.0, 20.0)), "GPUs that have little to do"),
        # It fits worse by 850 + 10 s; a quarter of an hour earlier, by 50 + 910 s.
        (samples(NOON - 850, NOON + HOUR + 10), "a little better than the next"),
    ],
)
def test_of_several_offsets_that_overlap_the_best_is_taken(monitoring: pd.DataFrame, why: str) -> None:
    local = monitoring.assign(timestamp=monitoring["timestamp"] - 5 * HOUR)

    assert nvidia_logs.zone_offset_h(local, NOON, NOON + HOUR) == -5.0, why


@pytest.mark.parametrize(
    ("monitoring", "reason"),
    [
        (samples(NOON - HOUR, NOON + 2 * HOUR), "-1 h and -0.75 h from UTC fit the requests alike"),
        # It fits worse by 890 + 10 s; a quarter of an hour earlier, by 10 + 910 s.
        (samples(NOON - 890, NOON + HOUR + 10), "+0 h and -0.25 h from UTC fit the requests alike"),
        (samples(NOON + 1, NOON + 0.4 * HOUR), "do they cover half of the requests' time"),
        (samples(NOON + 48 * HOUR, NOON + 49 * HOUR), "do they cover half of the requests' time"),
        (samples(NOON + 10, NOON + HOUR - 1000), "fit the requests alike"),
    ],
)
def test_an_overlap_too_poor_to_tell_the_offset_is_an_error_of_one_line(monitoring: pd.DataFrame, reason: str) -> None:
    with pytest.raises(ResultsError, match="the zone of its time stamps cannot be told: ") as caught:
        nvidia_logs.zone_offset_h(monitoring, NOON, NOON + HOUR)

    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles", "Asia/Kathmandu"])
def test_time_stamps_do_not_depend_on_the_zone_of_this_machine(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        frame, _ = parse("2023/09/20 12:00:00.250,00000000:15:00.0,0\n")
    time.tzset()

    assert frame["timestamp"].tolist() == [NOON + 0.25]
