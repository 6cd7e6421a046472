"""Which repeats experiment.sh runs, and the exit code that follows, with stand-ins for all that a repeat does."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from kaas import ROOT

SCRIPT = f"""
set -euo pipefail
ROOT=$PWD KAAS_PYTHON=$PWD/python FN=fn CLIENT=client
source {shlex.quote(str(ROOT / "scripts" / "experiment.sh"))}
set_up() {{ :; }}
draw_clock() {{ :; }}
check_settings() {{ EXPECT=${{EXPECT:-}} REPEAT_UNTIL=${{REPEAT_UNTIL:-}}; }}
preflight() {{ :; }}
make_folder() {{ folder=results-x complete=" $COMPLETE "; }}
run_repeat() {{ echo "repeat $1"; worst=$CODE; }}
tell_earlier_runs() {{ :; }}
run_experiment
"""
# In the place of Python: it is enough after so many repeats, and the limits are kept or not.
PYTHON = """#!/bin/bash
case $2 in
    kaas.analysis.narrow) echo "looked"; [[ -e enough ]] || { touch enough; exit 3; } ;;
    kaas.expectations) echo "$3 $4 $5"; exit "$HELD" ;;
esac
"""


def repeats(folder: Path, **settings: object) -> tuple[int, list[str]]:
    """Run the experiment, and give its exit code and what it did."""
    given = {"OUTER_REPEATS": 3, "COMPLETE": "", "CODE": 0, "HELD": 0} | settings
    (folder / "scripts").mkdir()
    for name, text in (("python", PYTHON), ("scripts/report", "#!/bin/bash\necho report\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", SCRIPT],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in given.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line for line in done.stdout.splitlines() if line != "Drawing the figures"]


@pytest.mark.parametrize(
    ("settings", "code", "done"),
    [
        ({}, 0, ["repeat 1", "repeat 2", "repeat 3", "report"]),
        ({"COMPLETE": "1 3"}, 0, ["repeat 2", "report"]),
        ({"COMPLETE": "1 2 3"}, 0, ["report"]),
        ({"CODE": 3}, 3, ["repeat 1", "repeat 2", "repeat 3", "report"]),
    ],
)
def test_the_repeats_that_are_missing_are_run(
    tmp_path: Path, settings: dict[str, object], code: int, done: list[str]
) -> None:
    assert repeats(tmp_path, **settings) == (code, done)


def test_repeats_go_on_until_they_are_enough_of_which_three_are_the_least(tmp_path: Path) -> None:
    code, done = repeats(tmp_path, REPEAT_UNTIL="p50 5%", OUTER_REPEATS=9)
    assert (code, done) == (0, [*(f"repeat {n}" for n in (1, 2, 3)), "looked", "repeat 4", "looked", "report"])


@pytest.mark.parametrize(("ended", "code"), [(0, 4), (3, 3)])
def test_repeats_that_are_not_enough_in_the_end_are_not_what_was_asked_for(
    tmp_path: Path, ended: int, code: int
) -> None:
    found, done = repeats(tmp_path, REPEAT_UNTIL="p50 5%", CODE=ended)
    assert done[-3:] == ["looked", "OUTER_REPEATS allows no more than these 3 repeats", "report"]
    assert found == code


@pytest.mark.parametrize(("held", "ended", "code"), [(0, 0, 0), (4, 0, 4), (4, 3, 4), (0, 3, 3)])
def test_a_limit_that_is_not_kept_makes_the_exit_code_4(tmp_path: Path, held: int, ended: int, code: int) -> None:
    found, done = repeats(tmp_path, EXPECT="failed=0", HELD=held, CODE=ended, OUTER_REPEATS=1)
    assert done == ["repeat 1", "report", "hold results-x/summary.json failed=0"]
    assert found == code


def test_files_and_results_are_named_from_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "mine.py").touch()
    script = f"""
        ROOT={shlex.quote(str(tmp_path))} FN=mine CLIENT=client
        source {shlex.quote(str(ROOT / "scripts" / "experiment.sh"))}
        go_to_root; go_to_root; echo "$PWD $parent $FN $CLIENT"
    """
    given = os.environ | {"RESULTS": "re sults"}
    said = subprocess.check_output(["bash", "-euc", script], cwd=tmp_path / "user", env=given, text=True)
    assert said == f"{tmp_path} {tmp_path}/user/re sults {tmp_path}/user/mine.py client\n"
