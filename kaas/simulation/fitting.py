"""Fits a model to the requests of a run: each parameter by what it alone explains, none by when GPUs were booted.

Only `rest_held` has to do with boots: it is found by which requests were cold starts. What a run does not tell is
assumed, and said to be. Uncertainties are standard errors of a jackknife over stretches of time, since what follows
each other is alike.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kaas.errors import ResultsError
from kaas.simulation import calibration, observed
from kaas.simulation.fits import ASSUMED, Fit, Fits, estimate, fits, line, median, robust
from kaas.simulation.fitting_gpus import fit_gpus, fit_held
from kaas.simulation.model import Model
from kaas.simulation.observed import Flags, Floats, Observed

_ENOUGH = 8
_AT_LEAST = 200
"""Warm requests that tell anything at all."""
_COMPANIES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28)
"""Clients in setup, for which its time is measured."""
_TOGETHER = 0.5
"""Setups that begin within so many seconds have most of what the host does in common."""
_NOISE_TIME, _NOISE_FROM, _NOISE_FULL = 0.5, 8.0, 16.0
_LEAVES_AFTER = 60.0


def calibrate(folder: Path, repeat: int | None, gpus: int, workers_per_gpu: int, output: Path) -> str:
    """Fit all parameters to the runs of a results folder, write them as a calibration, and say what was not told.

    Args:
        folder: of a run of ours or a published one.
        repeat: use this run only, counted from 1 in the order of their names.
        gpus: of the server.
        workers_per_gpu: of each.
        output: the calibration's file.

    Raises:
        ResultsError: there is no such run, it tells too little, or the file is there already.
    """
    runs = observed.read(folder)
    if repeat is not None:
        if repeat > len(runs):
            raise ResultsError(f"there is no run {repeat} in {folder}: it has {len(runs)}")
        runs = runs[repeat - 1 : repeat]
    found = fit(runs, gpus, workers_per_gpu)
    values: dict[str, Any] = {name: one.value for name, one in found.items()}
    Model(**values)  # whatever comes of odd data, it can be loaded
    calibration.write(found, f"fitted to {', '.join(run.name for run in runs)}", output)
    unclear = [name for name, one in found.items() if one.source.startswith("assumed")]
    return f"{len(found)} parameters in {output}; assumed, since the run does not tell them: {', '.join(unclear)}"


def fit(runs: list[Observed], gpus: int, workers_per_gpu: int) -> Fits:
    """Fit all parameters to the repeats of a run.

    Args:
        runs: at least one.
        gpus: of the server.
        workers_per_gpu: of each.

    Raises:
        ResultsError: they tell too little.
    """
    pool = observed.pooled(runs)
    if int(pool.warm.sum()) < _AT_LEAST:
        raise ResultsError(f"{runs[0].name}: {int(pool.warm.sum())} warm requests are too few to fit a model to")
    found = _setups(runs, pool) | _rests(pool)
    found |= _boots(runs, found) | _begins(runs) | fit_gpus(runs, pool)
    rest, more = (np.mean(found[name].value) for name in ("rest", "rest_per_client"))
    found["rest_held"] = fit_held(runs, rest + more * pool.others, gpus, workers_per_gpu)
    silent = sum(len(run.silent()) for run in runs)
    why = f"{silent} clients fell silent, see docs/published-run.md" if silent else "no client fell silent"
    found["leaves_after"] = Fit(_LEAVES_AFTER if silent else 0.0, ASSUMED, f"assumed: {why}")
    return found


# Setup: what a client does before it asks


def _setups(runs: list[Observed], pool: Observed) -> Fits:
    near = np.rint(pool.company)
    companies = [one for one in _COMPANIES if (near == one).sum() >= _ENOUGH]
    if not companies or companies[0] != 1:
        raise ResultsError("no client was ever alone with its setup: begin the ramp with 1 client")

    def medians(chosen: Flags) -> Floats:
        return np.array([median(pool.setup[chosen & (near == one)]) for one in companies])

    seconds, errors = estimate(pool, medians)
    table = tuple(float(one) for one in np.maximum.accumulate(seconds))
    at = tuple(map(float, companies))
    return {
        "setup_alone": Fit(table[0], float(errors[0]), "median setup of those alone with it"),
        "setup_clients": Fit(at, ASSUMED, "in setup while one was, on average"),
        "setup_seconds": Fit(table, tuple(map(float, errors)), "median setup of those with so much company"),
        "host_noise_time": Fit(_NOISE_TIME, ASSUMED, "assumed: a run hardly tells it"),
        "host_noise_from": Fit(_NOISE_FROM, ASSUMED, "assumed: a run hardly tells it"),
        "host_noise_full": Fit(_NOISE_FULL, ASSUMED, "assumed: a run hardly tells it"),
    } | _spreads(runs, pool, Model(setup_alone=table[0], setup_clients=at, setup_seconds=table))


def _spreads(runs: list[Observed], pool: Observed, model: Model) -> Fits:
    """Divide what a setup's company at every moment does not explain into its own and what it shares with others."""
    work = np.concatenate([_work(run, model) for run in runs])
    begin = np.concatenate([run.begin + number * 1e6 for number, run in enumerate(runs)])
    follows = np.searchsorted(begin, begin + _TOGETHER / 2)
    pairs = np.nonzero(follows < len(begin))[0]
    pairs = pairs[np.minimum(pool.company[pairs], pool.company[follows[pairs]]) >= _NOISE_FULL]
    pairs = pairs[begin[follows[pairs]] - begin[pairs] < _TOGETHER]

    def spreads(chosen: Flags) -> tuple[float, ...]:
        few = [(one, robust(work[chosen & (np.rint(pool.company) == one)])) for one in range(1, int(_NOISE_FROM) + 1)]
        intercept, slope, _ = line(*np.array([pair for pair in few if pair[1]] or [(1, 0.0)]).T)
        many = work[chosen & (pool.company >= _NOISE_FULL)]
        here = pairs[chosen[pairs]]
        common = max(float(np.mean(work[here] * work[follows[here]])), 0.0) if len(here) >= _ENOUGH else 0.0
        length = float(np.median(pool.setup[here])) if len(here) else 1.0
        own = np.sqrt(max(robust(many) ** 2 - common * _kept(length, 0.0) / _kept(length, _TOGETHER / 2), 0.0))
        most = own if len(many) else intercept + slope * float(pool.company.max())
        return intercept, slope, most, np.sqrt(common / _kept(length, _TOGETHER / 2))

    return fits(
        pool,
        spreads,
        {
            "setup_spread": "what company does not explain of setups, with company up to 8",
            "setup_spread_per_client": "its growth with company, up to 8",
            "setup_spread_most": "the same with company of 16 and more, less what those at the same time share",
            "host_noise": "what setups share that begin within half a second, with company of 16 and more",
        },
    )


def _work(run: Observed, model: Model) -> Floats:
    """Give the logarithm of the work of each setup: how far a setup of one alone would have come at each moment."""
    at, number = observed.number_over_time(run.begin, run.arrival)
    speed = np.array([model.setup_alone / model.setup(max(1, int(one))) for one in number])
    done = observed.mean_over(run.begin, run.arrival, at, speed) * run.setup / model.setup_alone
    return np.asarray(np.log(np.maximum(done, 1e-9)))


def _kept(length: float, apart: float) -> float:
    """Give the part of the noise's variance that two means over `length` seconds share that begin so far apart."""
    at = np.linspace(0.0, length, 50)
    return float(np.exp(-np.abs(at[:, None] - at - apart) / _NOISE_TIME).mean())


# What else a request takes, and boots


def _rests(pool: Observed) -> Fits:
    rest = pool.outer - pool.setup - pool.inner

    def of(chosen: Flags) -> tuple[float, ...]:
        chosen = chosen & pool.warm
        return line(pool.others[chosen].astype(float), rest[chosen])

    return fits(
        pool,
        of,
        {
            "rest": "what is neither setup nor kernel module, with no other in setup",
            "rest_per_client": "its growth with the clients in setup",
            "rest_spread": "the spread around that",
        },
    )


def _boots(runs: list[Observed], found: Fits) -> Fits:
    rest, more = (float(np.mean(found[name].value)) for name in ("rest", "rest_per_client"))
    first, other, clients = [], [], []
    for run in runs:
        cold = np.nonzero(run.cold & run.ok)[0]
        waited = (run.outer - run.setup - run.inner - rest - more * run.others)[cold]
        first += waited[:1].tolist()
        other += waited[1:].tolist()
        clients += run.clients[cold[1:]].tolist()
    if not first:
        return dict.fromkeys(
            ("boot_first", "boot", "boot_per_client", "boot_spread"), Fit(0.0, ASSUMED, "no cold start")
        )
    intercept, slope, spread = line(np.array(clients, dtype=float), np.array(other)) if other else (first[0], 0.0, 0.0)
    error = spread / np.sqrt(max(len(other), 1))
    return {
        "boot_first": Fit(max(float(np.mean(first)), 0.0), max(spread, float(np.std(first))), "what cold starts wait"),
        "boot": Fit(max(intercept, 0.0), 2 * error, "what cold starts wait, but the first"),
        "boot_per_client": Fit(
            max(slope, 0.0), error / max(float(np.ptp(clients)) if clients else 1.0, 1.0) * 3, "its growth"
        ),
        "boot_spread": Fit(spread, spread / np.sqrt(max(2 * len(other), 1)), "the spread around that"),
    }


def _begins(runs: list[Observed]) -> Fits:
    first, last, told = [], [], []
    for run in runs:
        if np.isnan(run.interval):
            continue
        numbers = np.unique(run.copy)
        begins = np.array([run.begin[run.copy == one].min() for one in numbers])
        share = (numbers / max(int(numbers.max()), 1)) ** 2
        late = begins - numbers * run.interval
        # A client that fell silent before its first reply has no row of its first request.
        usual = np.abs(late - np.median(late)) < run.interval / 2
        intercept, slope, _ = line(share[usual & (numbers > 0)], late[usual & (numbers > 0)])
        first.append(max(-intercept, 0.0))
        last.append(max(slope, 0.0))
        told.append(max(run.ramp_end - run.interval * (int(numbers.max()) + 1) + first[-1], 0.0))

    def mean(values: list[float], source: str) -> Fit:
        return Fit(float(np.mean(values)), float(np.std(values)), source) if values else Fit(0.0, ASSUMED, "not told")

    return {
        "first_begins": mean(first, "by how much the clients are early, counted from the first one's request"),
        "last_begins": mean(last, "first requests of clients less their steps, over the square of their numbers"),
        "end_is_told": mean(told, "the last request's begin less the ramp's end"),
    }
