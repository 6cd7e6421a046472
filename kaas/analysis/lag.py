"""How far the load generator fell behind in an open loop: requests that arrived, and were sent late.

They waited until a client was free, since the server was slow or the clients few, or for this machine. Their completion
times count from their arrivals all the same. Pure, as series is.
"""

import numpy as np
import pandas as pd

from kaas.analysis import series
from kaas.analysis.runs import Run
from kaas.analysis.series import Floats
from kaas.row import SENT_LATE_MS

FELL_BEHIND = "fell behind at [1/s]"
_MOST = 0.5


def over_time(run: Run, bins: Floats) -> pd.DataFrame:
    """Give for each bin the requests that `arrived`, were `sent` and `served` in it, each in 1/s (index: its begin).

    `late` is the part of those that arrived which were not sent in time, NaN where none arrived.
    """
    requests, width = run.requests, np.diff(bins)
    arrived = series.counts(requests["elapsed"], bins)
    late = series.counts(requests["elapsed"][requests["lag_ms"] > SENT_LATE_MS], bins)
    was_sent = requests["outer_time_ms"] > requests["lag_ms"]
    columns = {
        "arrived": arrived / width,
        "sent": series.counts(requests["sent"][was_sent], bins) / width,
        "served": series.counts(run.ends[requests["status"] == "ok"], bins) / width,
        "late": np.divide(late, arrived, out=np.full(len(arrived), np.nan), where=arrived > 0),
    }
    return pd.DataFrame(columns, index=pd.Index(bins[:-1], name="elapsed"))


def fell_behind(run: Run) -> "tuple[float, float] | None":
    """Tell from which elapsed second on most requests were sent late, and at which rate (1/s) they arrived then."""
    frame = over_time(run, series.edges(run.duration, most=20))  # so wide that a rate is one
    behind = frame[frame["late"] >= _MOST]
    return None if behind.empty else (float(behind.index[0]), float(behind["arrived"].iloc[0]))


def numbers(run: Run) -> dict[str, float]:
    """Give the numbers of an open loop; `FELL_BEHIND` is NaN if it did not."""
    lag_ms, behind = run.requests["lag_ms"], fell_behind(run)
    return {
        "arrived [1/s]": len(lag_ms) / run.ramp_end if run.ramp_end else float("nan"),
        "lag, p50 [ms]": float(lag_ms.median()),
        "lag, p95 [ms]": float(lag_ms.quantile(0.95)),
        "lag, longest [ms]": float(lag_ms.max()),
        f"sent over {SENT_LATE_MS:g} ms late": float((lag_ms > SENT_LATE_MS).sum()),
        FELL_BEHIND: float("nan") if behind is None else behind[1],
    }
