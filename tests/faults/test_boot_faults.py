"""A kernel whose import fails here and there: what cannot serve is left out, and the rest serves."""

from pathlib import Path

from support import eventually
from watch import StartWatch, Watch, faulty_after

pytest_plugins = "watching"

LICENCES = """
# There are two licences, as it were: each worker takes one and keeps it to its end.
import fcntl as _fcntl, os as _os
for _number in range(3):
    _licence = open(_os.path.join(_os.environ["LICENCES"], str(_number)), "w")
    try:
        _fcntl.flock(_licence, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        break
    except OSError:
        pass
if _number == 2:
    raise RuntimeError("no licence is left")
"""


def left_out(one: Watch) -> list[int]:
    """Give the workers that an event says were left out, in order."""
    events = (event for event in one.server.events() if event.event == "lost" and "left out" in event.detail)
    return sorted(event.worker for event in events if event.worker is not None)


def trial_is_over(one: Watch) -> None:
    eventually(lambda: not one.server.worker_processes(), what="the trial's process has ended")


def test_an_import_that_fails_on_the_third_worker_only(watch: StartWatch, tmp_path: Path) -> None:
    one = watch(faulty_after(tmp_path / "licensed.py", LICENCES), "-m", "3", LICENCES=str(tmp_path))
    trial_is_over(one)
    assert one.invoke().status == "ok"
    eventually(lambda: left_out(one), what="one worker is left out")
    assert len(left_out(one)) == 1
    assert one.workers() == 2
    assert one.server.names_of_events().count("lost") == 5
    assert "no licence is left" in one.server.stderr()
