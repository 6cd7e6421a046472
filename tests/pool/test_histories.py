"""The pool answers everything once and frees every place, whatever workers and clients do, in random histories."""

from collections import Counter

import pytest
from histories import run

FEW, MANY = 300, 10_000
OFTEN = ("ok", "rejected", "kernel_error", "worker_lost", "timeout", "shutting_down", "abandoned", "lost", "stopped")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    one = request.config.getoption("--history")
    number = MANY if request.config.getoption("--slow") else FEW
    return range(number) if one is None else range(one, one + 1)


@pytest.mark.timeout(1800)
def test_in_random_histories_all_is_answered_once_and_no_place_stays_busy(seeds: range) -> None:
    told = Counter[str]()
    for seed in seeds:
        try:
            told += run(seed)
        except BaseException:
            print(f"\nto see it again: ./scripts/test tests/pool/test_histories.py --history {seed}")
            raise
    if len(seeds) > 1:
        assert min(told[what] for what in OFTEN) > len(seeds) / 3, f"these histories try too little: {told}"
