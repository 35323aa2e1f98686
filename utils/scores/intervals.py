"""Means over scans with bootstrap intervals: how far a score would move with other scans; and how both are printed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.files import write_csv

RESAMPLES = 9999
BATCH = 1000  # resamples at a time: memory must not grow with the cohort


@dataclass(frozen=True)
class Estimate:
    """A score over scans: the sum of `part` over that of `whole`, which is 1, or voxels, lesions or slices, of each."""

    mean: float  # NaN without any scan
    low: float  # of the 95 % interval; NaN with fewer than two scans, or of a score that is no such ratio
    high: float
    scans: int  # that have the score
    part: np.ndarray  # (scans,) float; empty for a score that is no such ratio, like `whole`
    whole: np.ndarray


def estimate(part: ArrayLike, whole: ArrayLike, seed: int) -> Estimate:
    """A score and its interval by the percentile bootstrap over scans (Efron and Tibshirani, 1993).

    `part` and `whole` are (N,), one a scan, none where the whole is 0. Scans are drawn: the lesions of one are alike.
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    part, whole = part[whole > 0], whole[whole > 0]
    mean = float(_ratio(part, whole)) if len(whole) else np.nan
    if len(whole) < 2:
        return Estimate(mean, np.nan, np.nan, len(whole), part, whole)
    from scipy.stats import bootstrap  # here, since it takes half a second, and trainings have no use for it

    interval = bootstrap(
        (part, whole),
        _ratio,
        paired=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(whole), part, whole)


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


def print_scores(scores: Mapping[str, Estimate] | None, place: Path | str) -> None:
    """Print one model's scores with their intervals, and where the tables, predictions and pictures are.

    Where not all scans have a score it says how many do.
    """
    scores = scores or {}
    width, scans = max(map(len, scores), default=0), max((score.scans for score in scores.values()), default=0)
    for name, score in scores.items():
        mean = "" if pd.isna(score.mean) else f"{score.mean:.3f}"
        interval = "" if pd.isna(score.low) else f"[{score.low:.3f}, {score.high:.3f}]"
        number = "" if score.scans == scans else f"({score.scans} of {scans} scans)"
        print(f"{name:>{width}}  {' '.join(filter(None, (mean, interval, number)))}".rstrip())
    print(f"Results are in {place}")


def summarise_folds(rows: Sequence[dict], seed: int) -> pd.DataFrame:
    """Every score over folds and over their scans, given ``stage``, ``score`` and ``estimate`` of each fold.

    Returns:
        Columns ``stage``, ``score``; ``mean`` and ``std`` of the folds' scores; ``folds`` that have the score; ``low``
        and ``high``, the interval of the score over the test scans of all folds together; ``scans`` that have it.
    """
    summary = []
    for (stage, score), estimates in pd.DataFrame(rows).groupby(["stage", "score"], sort=False).estimate:
        folds, together = pd.Series([fold.mean for fold in estimates], dtype=float), pooled(estimates, seed)
        row = {"stage": stage, "score": score, "mean": folds.mean(), "std": folds.std(), "folds": folds.count()}
        scans = sum(fold.scans for fold in estimates)
        summary.append({**row, "low": together.low, "high": together.high, "scans": scans})
    return pd.DataFrame(summary)


def print_summary(summary: pd.DataFrame, path: Path | str) -> None:
    """Print scores over folds and save them as CSV."""
    write_csv(path, summary)
    shown = summary.rename(columns={"mean": "mean over folds", "std": "standard deviation"})
    print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"Saved as {path}")
