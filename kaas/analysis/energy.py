"""The energy of a run's GPUs, from what the monitor logged of their power and of their energy counters.

Counted is what was drawn from the begin of the first request to the end of the last reply, by idle GPUs too. A GPU's
own counter is preferred: it misses nothing between two samples. Without one, power is integrated over time.
"""

import pandas as pd

from kaas.analysis.runs import Run
from kaas.analysis.samples import gaps_from

COUNTER = "counter"
INTEGRAL = "power integral"
UNKNOWN = "-"

LABELS = {
    "joules": "energy [J]",
    "method": "method",
    "mean_w": "mean power [W]",
    "peak_w": "peak power [W]",
    "seconds": "covered [s]",
    "notes": "not counted",
}
HOW_TO_READ_NUMBERS = (
    "Energy is what all GPUs together drew from the first request to the last reply, the idle ones too; per served "
    "request, it is this number divided by the requests that were ok."
)
HOW_TO_READ_TABLE = (
    "Read each line as one GPU: its energy is its mean power over the seconds covered, which are the duration of the "
    "run if nothing is missing; the peak is its highest sample."
)


def logged(run: Run) -> bool:
    """Say if any power or energy is known of the run; on a laptop there is none."""
    return bool(run.sampled[["power_w", "energy_j"]].notna().any(axis=None))


def energy(run: Run) -> pd.DataFrame:
    """Give the energy of each GPU that was sampled during the run (index: GPU numbers).

    Columns: `joules`; `method`, which is COUNTER if the counter went up, else INTEGRAL (trapezoids under the power),
    else UNKNOWN; `mean_w`, the joules over the seconds covered; `peak_w`, the highest power of a sample; `seconds`
    covered; and `notes`, in words: the gaps in the samples, which are not integrated over, or the restarts of the
    counter. NaN is what is not known.
    """
    samples = run.sampled
    steps = _steps(samples)
    covered = steps[~steps["left_out"]].groupby("gpu")
    frame = pd.DataFrame(index=pd.Index(sorted(samples["gpu"].unique()), name="gpu"))
    frame["joules"] = covered["joules"].sum()
    frame["method"] = steps.groupby("gpu")["method"].first().reindex(frame.index).fillna(UNKNOWN)
    frame["mean_w"] = frame["joules"] / covered["seconds"].sum()
    frame["peak_w"] = samples.groupby("gpu")["power_w"].max()
    frame["seconds"] = covered["seconds"].sum()
    left_out = steps[steps["left_out"]].groupby(["gpu", "method"])["seconds"].agg(["size", "sum"]).reset_index()
    notes = {gpu: _note(method, number, seconds) for gpu, method, number, seconds in left_out.itertuples(index=False)}
    frame["notes"] = [notes.get(gpu, "") for gpu in frame.index]
    return frame


def cumulative(run: Run) -> "pd.Series[float]":
    """Give the joules that all GPUs have drawn so far, over elapsed seconds, from 0 at their first sample."""
    steps = _steps(run.sampled)
    return steps["joules"].where(~steps["left_out"], 0.0).groupby(steps["elapsed"]).sum().cumsum().rename("joules")


def per_request(run: Run) -> float:
    """Give the joules of all GPUs for each request that was served; NaN if there is no energy or no such request."""
    return _per_request(run, energy(run))


def methods(run: Run) -> str:
    """Name the method; where the GPUs differ, name each with the number of GPUs, as in `counter (7), unknown (1)`."""
    return _methods(energy(run))


def numbers(run: Run) -> dict[str, float | str]:
    """Give the rows of a summary by their label, which names the unit; none for a run without power and energy."""
    if not logged(run):
        return {}
    by_gpu = energy(run)
    return {
        "energy [J]": _total(by_gpu),
        "energy per served request [J]": _per_request(run, by_gpu),
        "energy method": _methods(by_gpu),
    }


def _per_request(run: Run, by_gpu: pd.DataFrame) -> float:
    served = int((run.requests["status"] == "ok").sum())
    return _total(by_gpu) / served if served else float("nan")


def _methods(by_gpu: pd.DataFrame) -> str:
    counts = by_gpu["method"].value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    words = {COUNTER: COUNTER, INTEGRAL: INTEGRAL, UNKNOWN: "unknown"}
    return ", ".join(f"{word} ({counts[method]})" for method, word in words.items() if method in counts)


def _total(by_gpu: pd.DataFrame) -> float:
    return float(by_gpu["joules"].sum(min_count=1))


def _steps(samples: pd.DataFrame) -> pd.DataFrame:
    """Give the seconds and joules from each sample to the next of its GPU, by the one method that fits this GPU.

    A row stands at the later sample; a GPU's first one has 0 of both. Those marked `left_out` are not to be counted.
    """
    counted = _differences(samples, "energy_j").assign(method=COUNTER)
    counted["joules"] = counted["step"]
    counted["left_out"] = counted["step"] < 0  # the counter began anew at 0, with the driver
    went_up = counted[counted["step"] > 0]["gpu"].unique()

    power = _differences(samples, "power_w").assign(method=INTEGRAL)
    power["joules"] = (power["power_w"] - power["step"] / 2) * power["seconds"]
    power["left_out"] = power["seconds"] > power["gpu"].map(gaps_from(power))
    integrable = power[power["seconds"] > 0]["gpu"].unique()

    by_counter = counted["gpu"].isin(went_up)
    by_power = power["gpu"].isin(integrable) & ~power["gpu"].isin(went_up)
    steps = pd.concat([counted[by_counter], power[by_power]], ignore_index=True)
    return steps[["gpu", "elapsed", "method", "seconds", "joules", "left_out"]]


def _differences(samples: pd.DataFrame, column: str) -> pd.DataFrame:
    known = samples.dropna(subset=[column])
    by_gpu = known.groupby("gpu")
    differences = {"seconds": by_gpu["elapsed"].diff().fillna(0.0), "step": by_gpu[column].diff().fillna(0.0)}
    return known[["gpu", "elapsed", column]].assign(**differences)


def _note(method: str, number: int, seconds: float) -> str:
    what = "counter restart" if method == COUNTER else "gap"
    return f"{number} {what if number == 1 else what + 's'}, {seconds:.1f} s"
