"""Means over scans with bootstrap intervals: how far a score would move with other scans of the same kind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 1000  # resamples at a time: memory must not grow with the cohort


@dataclass(frozen=True)
class Estimate:
    """A score over scans: the sum of `part` over the sum of `whole`.

    The wholes are 1 for a mean over scans, voxels or lesions for a pooled share, slices for a mean over slices.
    """

    mean: float  # NaN without any scan
    low: float  # of the 95 % interval; NaN with fewer than two scans, or of a score that is no such ratio
    high: float
    scans: int  # that have the score
    part: np.ndarray  # (scans,) float; empty for a score that is no such ratio, like `whole`
    whole: np.ndarray


def estimate(part: ArrayLike, whole: ArrayLike, seed: int) -> Estimate:
    """A score and its interval by the percentile bootstrap over scans (Efron and Tibshirani, 1993).

    Scans are drawn, not slices or lesions: those of one scan are alike.

    Args:
        part, whole: (N,) numbers, one a scan. A scan whose whole is 0 has nothing to score and is left out.
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    part, whole = part[whole > 0], whole[whole > 0]
    mean = float(_ratio(part, whole)) if len(whole) else np.nan
    return Estimate(mean, *_interval(part, whole, seed), len(whole), part, whole)


def _interval(part: np.ndarray, whole: np.ndarray, seed: int) -> tuple[float, float]:
    if len(whole) < 2:
        return np.nan, np.nan
    from scipy.stats import bootstrap  # here, since it takes half a second, and trainings have no use for it

    interval = bootstrap(
        (part, whole),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _ratio(part: np.ndarray, whole: np.ndarray, axis: int = -1) -> np.ndarray:
    return part.sum(axis) / whole.sum(axis)


def ratios(parts: pd.DataFrame, wholes: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """The estimate of each column; both tables have a row a scan and the same columns."""
    return {str(score): estimate(parts[score], wholes[score], seed) for score in parts}


def means(scores: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """The mean of each column over the rows, one a scan, that have it."""
    return ratios(scores, scores.notna(), seed)


def without_interval(score: float, scans: int) -> Estimate:
    """A score of so many scans that is no mean over them."""
    return Estimate(score, np.nan, np.nan, scans, np.zeros(0), np.zeros(0))


def pooled(estimates: Iterable[Estimate], seed: int) -> Estimate:
    """The score over the scans of several estimates together."""
    parts, wholes = zip(*((e.part, e.whole) for e in estimates), strict=True)
    return estimate(np.concatenate(parts), np.concatenate(wholes), seed)


def interval_rows(estimates: Mapping[str, Estimate], size: str = "") -> pd.DataFrame:
    """Rows for a file of intervals: ``size`` of the slices, ``score``, ``mean``, ``low``, ``high`` and ``scans``."""
    rows = [(size, score, e.mean, e.low, e.high, e.scans) for score, e in estimates.items()]
    return pd.DataFrame(rows, columns=["size", "score", "mean", "low", "high", "scans"])
