"""Fits what GPUs and places do: kernels, transfers, and for how long a request holds its place."""

import numpy as np

from kaas.errors import ResultsError
from kaas.simulation import observed
from kaas.simulation.fits import ASSUMED, Fit, Fits, estimate, line, robust
from kaas.simulation.observed import Flags, Floats, Observed
from kaas.simulation.recorded import Arrival, decide

_WINDOW = 10.0
"""Seconds over which what GPUs do is counted that are all at work."""
_SETTLED = 2.5
"""Seconds after a boot until its GPU is one of them."""
_FULL, _FULL_AT_LEAST = 2.9, 2.2
"""Requests in flight for each GPU, on average and never fewer, for which all of them are at work: three fill one."""
_FEW = 10
_HARDLY_ANY = 2
"""Requests in flight, itself included, of which one need not wait for the other, as a rule."""
_LOW = 10.0
"""Percentile of the time in the kernel module that is of requests which hardly wait for others."""
_UPLOAD_SHARE = 0.55
_TRANSFER_UTILIZATION, _UTILIZATION_WINDOW = 0.3, 0.17
_NEAR = 5.0
"""Seconds around a request in which others' setups tell how long its own took."""
_HELD = np.linspace(0.0, 1.0, 21)
_NOT_OF_CORES = (
    "upload",
    "download",
    "transfer_spread",
    "transfer_per_request",
    "kernels_shared",
    "transfer_utilization",
    "rest",
    "rest_per_client",
    "rest_spread",
)


def fit_gpus(runs: list[Observed], pool: Observed) -> Fits:
    """Fit kernels and transfers; those of virtual GPUs have none.

    Raises:
        ResultsError: virtual GPUs never had a kernel alone.
    """
    if runs[0].virtual:
        return _fit_cores(runs, pool)
    kernel, more = _kernel(runs), _per_request(pool)
    alone = pool.inner[pool.warm & (pool.clients == 1)]
    if not len(alone):
        alone = pool.inner[pool.warm & (pool.in_flight == 1)]
    transfers = max(float(np.median(alone)) - float(np.mean(kernel.value)) - 2 * float(np.mean(more.value)), 0.0)
    error = float(np.hypot(robust(alone) / np.sqrt(len(alone)), np.mean(kernel.plus_minus)))
    free = np.concatenate(
        [run.inner[run.warm & (run.in_flight <= _HARDLY_ANY) & (run.begin < _second(run))] for run in runs]
    )
    free = free[free < np.median(alone) + float(np.mean(kernel.value)) / 4]
    spread = robust(free)
    unclear = "assumed: a run tells only the spread of both together"
    return {
        "kernel": kernel,
        "kernel_spread": Fit(spread / np.sqrt(2), ASSUMED, unclear),
        "upload": Fit(
            _UPLOAD_SHARE * transfers,
            error,
            "time in the kernel module of one client, less kernel; the share is assumed",
        ),
        "download": Fit((1 - _UPLOAD_SHARE) * transfers, error, "the same"),
        "transfer_spread": Fit(spread / 2, ASSUMED, unclear),
        "transfer_per_request": more,
        "kernels_shared": Fit(0.0, ASSUMED, "assumed: published kernels never end closer than a kernel's time"),
        **dict.fromkeys(("kernel_crowd", "kernel_seconds"), Fit((), ASSUMED, "assumed: the GPUs are not virtual")),
        "transfer_utilization": Fit(_TRANSFER_UTILIZATION, ASSUMED, "assumed: as published while there is one client"),
        "utilization_window": Fit(_UTILIZATION_WINDOW, ASSUMED, "assumed: as published while there is one client"),
    }


def _fit_cores(runs: list[Observed], pool: Observed) -> Fits:
    """Fit the kernels of virtual GPUs: how long each takes of so many at once. All but the setup counts as kernel.

    Client, server and worker need the same cores for what else they do, and it is as crowded there.
    """
    crowd = np.concatenate(
        [observed.mean_over(run.arrival, run.end, *observed.number_over_time(run.arrival, run.end)) for run in runs]
    )
    near, seconds = np.rint(crowd), pool.outer - pool.setup
    known = [one for one in range(1, int(near.max()) + 1) if (pool.warm & (near == one)).sum() >= _FEW]
    if known[:1] != [1]:
        raise ResultsError(f"{runs[0].name}: hardly a kernel was ever alone: begin the ramp with 1 client")

    def means(chosen: Flags) -> Floats:
        parts = [seconds[chosen & pool.warm & (near == one)] for one in known]
        return np.array([part.mean() if len(part) else np.nan for part in parts])

    found, errors = estimate(pool, means)
    alone = float(found[0])
    spread = min(float(seconds[pool.warm & (near == 1)].std()), alone / 2)  # or many were below 0
    none, source = Fit(0.0, ASSUMED, "assumed: the GPUs are virtual"), "mean of all but the setup, with so many at once"
    return {
        "kernel": Fit(alone, float(errors[0]), source),
        "kernel_spread": Fit(spread, ASSUMED, "its standard deviation, and at most half of it"),
        "kernel_crowd": Fit(tuple(map(float, known)), ASSUMED, "requests at the server while one was, on average"),
        "kernel_seconds": Fit(tuple(map(float, found)), tuple(map(float, errors)), source),
        **dict.fromkeys(_NOT_OF_CORES, none),
        "utilization_window": Fit(_UTILIZATION_WINDOW, ASSUMED, "assumed: the GPUs are virtual"),
    }


def fit_held(runs: list[Observed], rest_gone: Floats, gpus: int, workers_per_gpu: int) -> Fit:
    """Find for which part of the rest a place is held: those for which the most requests are cold starts that were.

    Args:
        runs: of which requests and cold starts are known.
        rest_gone: what each request of all of them takes besides setup and kernel module when it need not wait, in s.
        gpus: of the server.
        workers_per_gpu: of each.
    """
    scores = np.zeros(len(_HELD), dtype=int)
    for run, usual in zip(runs, np.split(rest_gone, np.cumsum([len(run) for run in runs])[:-1]), strict=True):
        served, silent = run.part(run.ok), _never_released(run)
        rest = served.outer - served.setup - served.inner
        over = np.where(served.cold, usual[run.ok], rest)  # what a cold start takes besides is that it waits
        for number, held in enumerate(_HELD):
            released = served.arrival + served.inner + rest - over + held * over
            arrivals = list(map(Arrival, served.arrival.tolist(), released.tolist())) + silent
            order = sorted(range(len(arrivals)), key=lambda one: arrivals[one].at)
            decided = decide([arrivals[one] for one in order], gpus, workers_per_gpu)
            cold = {one for one, decision in zip(order, decided, strict=True) if decision.cold_start}
            scores[number] += len(cold.intersection(np.nonzero(served.cold)[0].tolist()))
    best = _HELD[scores == scores.max()]
    right = f"{scores.max()} of {sum(int((run.cold & run.ok).sum()) for run in runs)}"
    if len(best) == len(_HELD):
        return Fit(0.0, ASSUMED, "assumed: any part gives the same cold starts")
    return Fit(float(np.median(best)), float(np.ptp(best) / 2 + _HELD[1] / 2), f"{right} cold starts follow from it")


def _never_released(run: Observed) -> list[Arrival]:
    """Give the requests that never had a reply, each after a setup as long as others' were then."""
    near = [np.abs(run.begin - at) < _NEAR for _, at in run.silent()]
    setups = [float(np.median(run.setup[chosen])) if chosen.any() else 0.0 for chosen in near]
    return [Arrival(at + setup, None) for (_, at), setup in zip(run.silent(), setups, strict=True)]


def _second(run: Observed) -> float:
    return float(run.boots[1]) if len(run.boots) > 1 else float("inf")


def _kernel(runs: list[Observed]) -> Fit:
    """Count what booted GPUs serve while all of them must be at work; else take the time between two kernels' ends."""
    seconds = served = 0.0
    for run in runs:
        left = (run.arrival + run.inner)[run.ok]
        at, number = observed.number_over_time(run.arrival[run.ok], left)
        for begin in np.arange(0.0, run.ramp_end - _WINDOW, _WINDOW):
            booted = int((run.boots + _SETTLED < begin).sum())
            if not booted or ((run.boots > begin - _SETTLED) & (run.boots < begin + _WINDOW)).any():
                continue
            ends = np.array([begin]), np.array([begin + _WINDOW])
            first, last = np.searchsorted(at, [begin, begin + _WINDOW])
            least = number[max(first - 1, 0) : last].min(initial=np.inf)
            if observed.mean_over(*ends, at, number)[0] >= _FULL * booted and least >= _FULL_AT_LEAST * booted:
                seconds += booted * _WINDOW
                served += int(((left > begin) & (left <= begin + _WINDOW)).sum())
    if served >= _FEW:
        # Kernels run one after the other: only the windows' ends are left to chance.
        error = seconds / served / np.sqrt(served) * 0.1
        return Fit(seconds / served, error, "served by booted GPUs while all must have been at work")
    gaps = np.concatenate([_gaps(run) for run in runs])
    if len(gaps) < _FEW:
        few = np.concatenate([run.inner[run.warm] for run in runs])
        return Fit(float(np.percentile(few, _LOW)) / 2, ASSUMED, "assumed: half of the time in the kernel module")
    return Fit(
        float(np.median(gaps)), robust(gaps) / np.sqrt(len(gaps)), "from one kernel's end to the next's on GPU 0"
    )


def _gaps(run: Observed) -> Floats:
    """Give the times between ends of kernels on the first GPU while there is no other, where the next one waited."""
    chosen = run.ok & (run.end < _second(run))
    ends = (run.arrival + run.inner)[chosen]
    order = np.argsort(ends)
    ends, arrival = ends[order], run.arrival[chosen][order]
    shortest = float(np.percentile(run.inner[chosen], _LOW)) if len(ends) else 0.0
    waited = arrival[1:] < ends[:-1] - shortest * 0.6
    return np.asarray(np.diff(ends)[waited]) if len(ends) else np.empty(0)


def _per_request(pool: Observed) -> Fit:
    """Find how what hardly waits for other kernels takes longer with more requests in flight."""

    def slope(chosen: Flags) -> Floats:
        near, low = [], []
        for number in range(0, int(pool.in_flight.max()) + 1, 3):
            here = chosen & pool.warm & (pool.in_flight >= number) & (pool.in_flight < number + 3)
            if here.sum() >= 5 * _FEW:
                near.append(float(pool.in_flight[here].mean()))
                low.append(float(np.percentile(pool.inner[here], _LOW)))
        # A GPU whose places are all taken has none that need not wait.
        kept = np.array(low) < (min(low) * 1.2 if low else 0.0)
        found = line(np.array(near)[kept], np.array(low)[kept])[1] if kept.sum() > 1 else 0.0
        return np.array([max(found, 0.0) / 2])

    value, error = estimate(pool, slope)
    return Fit(float(value[0]), float(error[0]), "growth of the 10th percentile of the time in the kernel module")
