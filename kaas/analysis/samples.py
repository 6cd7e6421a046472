"""The monitor's samples on the time axis of a run: means over a window of time, and what is a gap.

Pure, and the same for utilization and power. The GPUs may be sampled at one moment or one after the other, and any
cell may be empty.
"""

import pandas as pd

# A sample may be late: only a wait that is far from usual, and long enough to see, says that nothing was known.
_GAP_INTERVALS = 5
_GAP_AT_LEAST_S = 2.0


def gaps_from(known: pd.DataFrame) -> "pd.Series[float]":
    """Give for each GPU the seconds from one sample to the next above which what lies between is not known.

    Args:
        known: the samples that have the value in question, with the columns `elapsed` and `gpu`, in order of time.
    """
    intervals = known.groupby("gpu")["elapsed"].diff().groupby(known["gpu"]).median()
    return (intervals * _GAP_INTERVALS).fillna(0.0).clip(lower=_GAP_AT_LEAST_S)


def rolling_means(monitoring: pd.DataFrame, column: str, window_s: float) -> pd.DataFrame:
    """Give each GPU's values in `column` as the mean of its samples in the last `window_s`, over elapsed seconds.

    The window is one of time, not of samples, because a busy machine samples late. Where it holds no sample, the mean
    stays until the last sample is older than a gap (see `gaps_from`), and is NaN from then on; a gap that all GPUs
    share has one row of NaN, which breaks a line drawn through the values. A GPU of which nothing is known has no
    column.
    """
    known = monitoring.dropna(subset=[column])
    samples = known.groupby(["elapsed", "gpu"])[column].mean().unstack()
    if samples.empty:
        return samples.rename_axis("gpu", axis="columns")
    longest = gaps_from(known).clip(lower=window_s)
    elapsed = samples.index.to_series()
    ends = elapsed[elapsed.shift(-1) - elapsed > longest.max()] + longest.max()
    samples = samples.reindex(samples.index.union(pd.Index(ends)))
    elapsed = samples.index.to_series()
    samples.index = pd.to_timedelta(elapsed, unit="s")
    means = samples.rolling(pd.Timedelta(seconds=window_s)).mean()
    means.index = samples.index = elapsed.index
    sampled_at = samples.notna().mul(elapsed, axis="index").where(samples.notna()).ffill()
    is_recent = sampled_at.rsub(elapsed, axis="index").lt(longest, axis="columns")
    return means.ffill().where(is_recent).rename_axis("gpu", axis="columns")
