"""What a user may expect of a run: read, and put to its figures."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kaas import ROOT, expectations
from kaas.errors import ResultsError, UsageError
from kaas.expectations import FIGURES, Width, read_limits, read_widths


def summary(**figures: float | None) -> dict[str, Any]:
    return {"repeats": [{"task": "x-1", "figures": figures}]}


def complaints(text: str, **figures: float | None) -> list[str]:
    return expectations.complaints(summary(**figures), read_limits(text))


def test_limits_that_are_kept_are_no_complaint() -> None:
    text = "failed=0, refused<=10,p95 <= 0.2s, cold_starts==8, throughput>3.5/s, duration<2min, ok!=0, energy<1kJ"
    figures = {
        "failed": 0,
        "refused": 10,
        "p95": 200.0,
        "cold_starts": 8,
        "throughput": 4.0,
        "duration": 119.0,
        "ok": 1,
    }
    assert complaints(text, **figures, energy=999.0) == []
    assert complaints(" ") == []


def test_each_limit_that_is_not_kept_is_told_with_what_was_found_and_where() -> None:
    assert complaints("failed=0, p95<=200ms, p99<1s", failed=2, p95=201.25, p99=None) == [
        "failed=0 does not hold: failed is 2 in x-1",
        "p95<=200ms does not hold: p95 is 201.25 ms in x-1",
        "p99<1s does not hold: p99 is not known in x-1",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("p96<3", "there is no figure 'p96': name one of requests, ok, refused"),
        ("failed", "'failed' is no limit: write as in failed=0"),
        ("failed=0,", "'' is no limit"),
        ("failed=>0", "'failed=>0' is no limit"),
        ("failed!0", "'failed!0' is no limit"),
        ("p95<=5J", "p95 is not in J: give it in ms, s, min"),
        ("failed<=5%", "'failed<=5%' is no limit"),
        ("failed<=5ms", "failed is not in ms: give it without a unit"),
    ],
)
def test_a_limit_that_is_none_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_limits(text)
    assert complaint in str(error.value)
    assert str(error.value).startswith("EXPECT: ")


def test_how_wide_intervals_may_be_is_read() -> None:
    assert read_widths("throughput 5%, p95 2.5 %") == [Width("throughput", 0.05), Width("p95", 0.025)]
    assert read_widths("") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("throughput", "'throughput' is no width: write as in throughput 5%"),
        ("throughput 0%", "'throughput 0%' is no width"),
        ("speed 5%", "there is no figure 'speed': name one of"),
        ("findings 5%", "findings has no mean over the repeats"),
    ],
)
def test_a_width_that_is_none_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match="REPEAT_UNTIL: ") as error:
        read_widths(text)
    assert complaint in str(error.value)


def test_the_command_line_ends_with_4_where_a_limit_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary(failed=1)))

    def main(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["expectations.py", *arguments])
        return expectations.main()

    assert main("hold", str(path), "failed<=1") == 0
    assert main("hold", str(path), "failed=0") == 4
    assert capsys.readouterr().out == "EXPECT: failed=0 does not hold: failed is 1 in x-1\n"
    assert main("check", "failed=0", "p95 3%") == 0
    path.unlink()
    with pytest.raises(ResultsError, match="EXPECT cannot be looked up"):
        main("hold", str(path), "failed=0")


def test_each_figure_is_described_with_its_unit() -> None:
    described: dict[str, str] = {}
    for line in (ROOT / "docs" / "summary.md").read_text().partition("The figures.")[2].splitlines():
        for name in re.findall("`([a-z0-9_]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            described[name] = line.split("|")[2].strip()
    assert described == {name: figure.unit for name, figure in FIGURES.items()}
