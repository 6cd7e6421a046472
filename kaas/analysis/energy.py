"""The energy of a run's GPUs, from what the monitor logged of their power and of their energy counters.

Counted is what was drawn from the begin of the first request to the end of the last reply, by idle GPUs too. A GPU's
own counter is preferred: it misses nothing between two samples. Without one, power is integrated over time. Where both
are there, both are told: they differ in a short run, as the power of most GPUs is the mean of a second.
"""

import pandas as pd

from kaas.analysis.reading import POSSIBLE
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
    "by_counter": f"by {COUNTER} [J]",
    "by_power": f"by {INTEGRAL} [J]",
}
LABELS_OF_RUN = {"by_counter": f"energy by {COUNTER} [J]", "by_power": f"energy by {INTEGRAL} [J]"}
_COUNTER_LATE_S = 1.0
"""By how much the steps of a counter may be late: more than it can have drawn meanwhile, it has not counted."""

HOW_TO_READ_NUMBERS = (
    "Energy is what all GPUs together drew from the first request to the last reply, the idle ones too. 'Per served "
    "request' is that energy divided by the requests that were ok."
)
HOW_TO_READ_TABLE = (
    "Read each line as one GPU: its energy is its mean power over the seconds covered, which are the duration of the "
    "run if nothing is missing; the peak is its highest sample. Beside it stands what either method finds."
)


def logged(run: Run) -> bool:
    """Say if any power or energy is known of the run; on a laptop there is none."""
    return bool(run.sampled[["power_w", "energy_j"]].notna().any(axis=None))


def energy(run: Run) -> pd.DataFrame:
    """Give the energy of each GPU that was sampled during the run (index: GPU numbers).

    Columns: `joules`; `method`, which is COUNTER if the counter went up, else INTEGRAL (trapezoids under the power),
    else UNKNOWN; `mean_w`, the joules over the seconds covered; `peak_w`, the highest power of a sample; `seconds`
    covered; `notes`, in words: the gaps in the samples, which are not integrated over, or the jumps of the counter, as
    when the driver is loaded anew; and the joules by either method: `by_counter`, `by_power`. NaN is what is not known.
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
    frame["by_counter"], frame["by_power"] = map(_joules, (_by_counter(samples), _by_power(samples)))
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
        **{LABELS_OF_RUN[column]: float(by_gpu[column].sum(min_count=1)) for column in LABELS_OF_RUN},
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
    counted, power = _by_counter(samples), _by_power(samples)
    power = power[~power["gpu"].isin(counted["gpu"])]
    return pd.concat([counted, power], ignore_index=True)[["gpu", "elapsed", "method", "seconds", "joules", "left_out"]]


def _by_counter(samples: pd.DataFrame) -> pd.DataFrame:
    """Give the steps of the GPUs whose counter went up."""
    steps = _differences(samples, "energy_j").assign(method=COUNTER)
    steps["joules"] = steps["step"]
    # It begins anew at 0, with the driver; or a reading failed.
    most = POSSIBLE["power_w"][1] * (steps["seconds"] + _COUNTER_LATE_S)
    steps["left_out"] = ~steps["step"].between(0.0, most)
    return steps[steps["gpu"].isin(steps[(steps["step"] > 0) & ~steps["left_out"]]["gpu"])]


def _by_power(samples: pd.DataFrame) -> pd.DataFrame:
    """Give the steps of the GPUs whose power is known for some time."""
    steps = _differences(samples, "power_w").assign(method=INTEGRAL)
    steps["joules"] = (steps["power_w"] - steps["step"] / 2) * steps["seconds"]
    steps["left_out"] = steps["seconds"] > steps["gpu"].map(gaps_from(steps))
    return steps[steps["gpu"].isin(steps[steps["seconds"] > 0]["gpu"])]


def _joules(steps: pd.DataFrame) -> "pd.Series[float]":
    return steps[~steps["left_out"]].groupby("gpu")["joules"].sum()


def _differences(samples: pd.DataFrame, column: str) -> pd.DataFrame:
    known = samples.dropna(subset=[column])
    by_gpu = known.groupby("gpu")
    differences = {"seconds": by_gpu["elapsed"].diff().fillna(0.0), "step": by_gpu[column].diff().fillna(0.0)}
    return known[["gpu", "elapsed", column]].assign(**differences)


def _note(method: str, number: int, seconds: float) -> str:
    what = "counter jump" if method == COUNTER else "gap"
    return f"{number} {what if number == 1 else what + 's'}, {seconds:.1f} s"
