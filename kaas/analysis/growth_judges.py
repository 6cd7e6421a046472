"""How the claims on what grows with the clients are judged in one run: task runners, completion time, throughput."""

import math

import numpy as np
import pandas as pd

from kaas.analysis import series, statistics
from kaas.analysis.judging import ONE_SIDED, Finding, Quantity, UnclearError
from kaas.analysis.setting import LEVELS_AT_LEAST, Setting

EXPONENT_AT_LEAST = 0.5
"""Of throughput ~ clients^e: nearer to growth in proportion than to none."""
REST_GROWS = 0.10
"""At most, of the completion time with one GPU: what is neither setup nor kernel."""
STRAGGLERS = 0.005
_TOO_FEW = 1


def task_runners(setting: Setting) -> Finding:
    """Compare the task runners in the middle of each step with the clients and with what was in flight."""
    setting.needs_log()
    setting.needs_papers_policy()
    gpus, workers = setting.needs_growth()
    booted = series.task_runners(setting.run)
    # In the middle of each step, because the published clients were counted late.
    middles = (setting.steps["begin"] + setting.steps["end"]) / 2
    counts = booted.to_numpy()[booted.index.searchsorted(middles, side="right") - 1]
    clients = setting.steps["clients"].to_numpy()
    too_many = int((counts > np.ceil(clients / workers)).sum())
    # What needs a worker is at the server: not the client that makes its input, nor the one that hangs.
    edges = np.append(setting.steps["begin"], setting.steps["end"].iloc[-1])
    needed = np.ceil(series.means_of_steps(series.in_flight(setting.run), edges) / workers).clip(max=gpus)
    too_few = int((counts < needed - _TOO_FEW).sum())
    found = (
        f"up to {counts.max()} of {gpus} task runners with up to {clients.max()} clients, of {len(counts)} steps too "
        f"many in {too_many}, too few in {too_few}"
    )
    grew = counts.max() > counts.min()
    note = "" if grew else "The number of task runners never changed."
    return Finding(found, bool(grew) and not too_many + too_few, note=note)


def bounded(setting: Setting) -> Finding:
    """Fit how the parts of the completion time grow with the clients, and count the stragglers."""
    gpus, workers = setting.needs_growth()
    setting.needs_log()
    requests = setting.run.requests
    warm = requests[series.warm(setting.run)]
    if (levels := warm["concurrency"].nunique()) < LEVELS_AT_LEAST:
        raise UnclearError(f"Warm requests were served in too few steps of the ramp: {levels}.")
    second_boot = setting.first_boots.iloc[1] if len(setting.first_boots) > 1 else math.inf
    outer, server = warm["outer_time_ms"], warm["outer_time_ms"] - warm["setup_time"].fillna(0.0)
    at_first = warm["elapsed"] < second_boot
    if not at_first.any():
        raise UnclearError("No warm request was served before the second GPU was booted.")
    one_gpu, one_gpu_server = float(outer[at_first].median()), float(server[at_first].median())
    span = int(warm["concurrency"].max() - warm["concurrency"].min())
    rest = server - series.inside_ms(warm)
    by_clients = {
        name: values.groupby(warm["concurrency"]).median()
        for name, values in (("outer", outer), ("setup", outer - server), ("server", server), ("rest", rest))
    }
    trends = {name: statistics.trend(of.index, of, confidence=ONE_SIDED) for name, of in by_clients.items()}
    unit = " ms per client"
    quantities = (
        Quantity("time at the server", unit, trends["server"], one_gpu_server / (gpus * workers), at_most=True),
        Quantity("what is neither setup nor kernel", unit, trends["rest"], REST_GROWS * one_gpu / span, at_most=True),
    )
    most = workers * one_gpu_server
    slow = float((server > most).mean())
    growth = trends["outer"].mean
    words = [f"completion time {growth:.3g}{unit}, over the ramp {growth * span / one_gpu:+.0%} of {one_gpu:.4g} ms"]
    if growth > 0:
        words[0] += (
            f"; the client's own setup alone {trends['setup'].mean:.3g}{unit} ({trends['setup'].mean / growth:.0%})"
        )
    words += [quantity.words for quantity in quantities]
    words += [f"{slow:.2%} of requests took longer at the server than {most:.4g} ms (at most {STRAGGLERS:.1%})"]
    return setting.judged_if_cores_suffice(Finding("; ".join(words), slow <= STRAGGLERS, quantities))


def throughput(setting: Setting) -> Finding:
    """Fit how throughput grows with the clients, up to as many as workers and until the last boot."""
    gpus, workers = setting.needs_growth()
    ramp = _levels(setting.steps)
    all_workers = gpus * workers
    # The first step is short of requests: the first of them all waits for a boot.
    rising = ramp[(ramp.index > ramp.index.min()) & (ramp.index <= all_workers)]
    if len(rising) < LEVELS_AT_LEAST:
        raise UnclearError(
            f"The ramp has too few steps between its first and as many clients as workers: {len(rising)}."
        )
    if idle := int((rising == 0).sum()):
        raise UnclearError(f"No request was served in {idle} of the {len(rising)} steps that tell.")
    quantities = [_exponent(f"with up to {rising.index[-1]:g} clients: throughput ~ clients^", rising)]
    words = [_bare(quantities[0])]
    if len(setting.first_boots) == gpus:
        at = float(setting.first_boots.iloc[-1])
        clients = float(series.at(series.clients(setting.run), np.array([at]))[0])
        until = ramp[(ramp.index > ramp.index.min()) & (ramp.index <= clients) & (ramp > 0)]
        if len(until) >= LEVELS_AT_LEAST:
            until_name = f"until the last GPU was booted ({clients:g} clients): ~ clients^"
            quantities.append(_exponent(until_name, until))
            words.append(_bare(quantities[1]))
    beyond = ramp[(ramp.index > all_workers) & (ramp > 0)]
    if len(beyond) >= LEVELS_AT_LEAST:
        flat = _exponent("", beyond).estimate
        how = "flat" if flat.low <= 0 <= flat.high else f"~ clients^{flat.mean:.2f}"
        words.append(f"from {beyond.index[0]:g} to {beyond.index[-1]:g} clients: {how}, {beyond.mean():.3g}/s")
    each = rising / rising.index
    first, last = each.iloc[0], each.iloc[-1]
    note = (
        f"The share of each client is {first:.3g}/s with {each.index[0]:g} of them and {last:.3g}/s with "
        f"{each.index[-1]:g} ({last / first - 1:+.0%})."
    )
    # One name for all repeats, whatever their numbers.
    named = tuple(
        one._replace(name=name)
        for one, name in zip(quantities, ("exponent", "exponent until the last boot"), strict=False)
    )
    return setting.judged_if_cores_suffice(Finding("; ".join(words), quantities=named, note=note))


def _levels(steps: pd.DataFrame) -> "pd.Series[float]":
    """Give the throughput with each number of clients, however often and long there were so many."""
    seconds = steps["end"] - steps["begin"]
    by_clients = pd.DataFrame({"served": steps["throughput"] * seconds, "seconds": seconds}).groupby(steps["clients"])
    return (by_clients["served"].sum() / by_clients["seconds"].sum()).sort_index()


def _exponent(name: str, throughput: "pd.Series[float]") -> Quantity:
    estimate = statistics.trend(np.log(throughput.index), np.log(throughput), confidence=ONE_SIDED)
    return Quantity(name, "", estimate, EXPONENT_AT_LEAST, at_most=False)


def _bare(one: Quantity) -> str:
    return f"{one.name}{one.estimate.mean:.2f} (from {one.estimate.low:.2f} to {one.estimate.high:.2f})"
