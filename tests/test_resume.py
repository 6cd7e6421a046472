"""Which repeats are there already, and what becomes of the others."""

from pathlib import Path

import pytest

from kaas import resume, shape_setting
from kaas.errors import UsageError
from kaas.pool.settings import Settings

SETTINGS = {name: "3" for name in resume.SETTINGS if not resume.SETTINGS[name].default} | {"CLIENT": "mine"}
NOTED = "".join(f"{resume.SETTINGS[name].noted}: {value}\n" for name, value in SETTINGS.items())
OF_THE_SERVER = "Server when full: reject\nServer idle timeout [s]: 60.0\nServer call timeout [s]: 0.0\n"
ENDED = "## End\nEnded: at the end of the ramp\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with two complete repeats and two that are not, and a report."""
    made = tmp_path / "results-x"
    made.mkdir()
    for number, text, endings in (
        (1, ENDED, (".csv", "-serverlogs.csv")),
        (2, "## End\nEnded: SIGINT\n", (".csv", "-serverlogs.csv")),
        (10, ENDED, (".csv", "-serverlogs.csv")),
        (3, ENDED, (".csv", "-server-events.log")),
    ):
        (made / f"x-fn-9-{number}.md").write_text(NOTED + OF_THE_SERVER + text)
        for ending in endings:
            (made / f"x-fn-9-{number}{ending}").write_text(str(number))
    (made / "table-repeats.csv").touch()
    return made


def test_complete_repeats_stay_as_they_are_and_what_there_is_of_others_is_put_aside(
    folder: Path, tmp_path: Path
) -> None:
    kept = resume.complete(folder, "x-fn-9", SETTINGS)
    assert kept == [1, 10]

    assert resume.put_aside(folder, tmp_path / "aside", "x-fn-9", kept) == [2, 3]

    of_complete = {f"x-fn-9-{number}{ending}" for number in kept for ending in (".md", ".csv", "-serverlogs.csv")}
    assert {path.name for path in folder.iterdir()} == of_complete | {"table-repeats.csv"}
    of_others = {"x-fn-9-2.md", "x-fn-9-2.csv", "x-fn-9-2-serverlogs.csv"}
    of_others |= {"x-fn-9-3.md", "x-fn-9-3.csv", "x-fn-9-3-server-events.log"}
    assert {path.name for path in (tmp_path / "aside").iterdir()} == of_others
    assert resume.put_aside(folder, tmp_path / "none", "x-fn-9", kept) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"INTERVAL": "5"}, "RESUME: INTERVAL is 5, but the repeats in .* had 3"),
        ({"CLIENT": "another"}, "CLIENT is another, but the repeats in .* had mine"),
        ({"WHEN_FULL": "queue"}, "WHEN_FULL is queue, but the repeats in .* had reject"),
        ({"ENGINE": "ray"}, "ENGINE is ray, but the repeats in .* had local"),
        ({"CALIBRATION": "/my/own.toml"}, "CALIBRATION is own, but the repeats in .* had none"),
        ({"IDLE_TIMEOUT": "0"}, "IDLE_TIMEOUT is 0, but the repeats in .* had 60.0"),
        ({"SHAPE": "updown"}, "SHAPE is updown, but the repeats in .* had steps"),
    ],
)
def test_repeats_of_other_settings_are_not_gone_on_with(folder: Path, changed: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resume.complete(folder, "x-fn-9", SETTINGS | changed)


def test_the_same_number_in_another_form_is_the_same_setting(folder: Path) -> None:
    assert resume.complete(folder, "x-fn-9", SETTINGS | {"INTERVAL": "3.0", "IDLE_TIMEOUT": "60"}) == [1, 10]


def test_runs_of_another_task_are_not_gone_on_with(folder: Path) -> None:
    with pytest.raises(UsageError, match="x-fn-9-1, which is no repeat of x-fn-99: set another EXPERIMENT"):
        resume.complete(folder, "x-fn-99", SETTINGS)


def test_what_is_not_set_is_what_the_server_takes_then() -> None:
    defaults = {name: setting.default for name, setting in resume.SETTINGS.items() if setting.default}
    assert defaults == {
        "SHAPE": shape_setting.DEFAULT,
        "SEGMENTS": "fresh",
        "KAAS_TRANSPORT": "auto",
        "POLICY": Settings.policy,
        "WHEN_FULL": Settings.when_full,
        "IDLE_TIMEOUT": f"{Settings.idle_timeout:g}",
        "CALL_TIMEOUT": f"{Settings.call_timeout:g}",
        "ENGINE": "local",
        "TIME_SCALE": "1",
        "CALIBRATION": "none",
    }
