"""The main numbers of a run, each under a label that names its unit."""

from kaas.analysis import energy, series
from kaas.analysis.runs import Run


def numbers(run: Run) -> dict[str, float | str]:
    """Give the run's main numbers by their label, which names the unit; NaN for a number that it does not have.

    Energy is named only where it was logged, with the method in words.
    """
    status = run.requests["status"].value_counts()
    completion = run.requests["outer_time_ms"][series.warm(run)]
    boots = run.events[run.events["event"] == "booted"].groupby("gpu")["elapsed"].min()
    return {
        "requests": len(run.requests),
        "requests ok": int(status.get("ok", 0)),
        "requests rejected": int(status.get("rejected", 0)),
        **{f"requests {name}": int(number) for name, number in status.items() if name not in {"ok", "rejected"}},
        "cold starts": int(run.requests["cold_start"].sum()),
        "waited for a boot besides": int((run.requests["waited_for_boot"] & ~run.requests["cold_start"]).sum()),
        "duration [s]": run.duration,
        "served requests per second": float(status.get("ok", 0)) / run.duration if run.duration else float("nan"),
        "warm completion time, median [ms]": float(completion.median()),
        "warm completion time, 95th percentile [ms]": float(completion.quantile(0.95)),
        **energy.numbers(run),
        **{f"GPU {gpu} first booted [s]": float(elapsed) for gpu, elapsed in boots.items()},
    }
