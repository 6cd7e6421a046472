"""Log lines that repeat are spared."""

import logging

import pytest

from kaas.sparing import Sparing


def test_a_line_that_repeats_is_logged_once_in_its_interval_with_the_number_of_those_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = iter((10.0, 10.5, 10.9, 11.0, 12.5))
    sparing = Sparing(logging.getLogger("test"), lambda: next(times), interval=1.0)
    for _ in range(5):
        sparing.warning("worker %d failed", 3)
    assert caplog.messages == ["worker 3 failed", "worker 3 failed (and 2 more like it before)", "worker 3 failed"]
