"""Score tables as people read them on a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from utils.files import atomic_path
from utils.scores.intervals import Estimate, pooled


def print_scores(scores: Mapping[str, Estimate] | None, place: Path | str) -> None:
    """Print one model's scores with their intervals, and where the tables, predictions and pictures are."""
    width = max(map(len, scores or {}), default=0)
    for name, score in (scores or {}).items():
        mean = "" if pd.isna(score.mean) else f"{score.mean:.3f}"
        interval = "" if pd.isna(score.low) else f"[{score.low:.3f}, {score.high:.3f}]"
        print(f"{name:>{width}}  {mean} {interval}".rstrip())
    print(f"Results are in {place}")


def summarise_folds(rows: Sequence[dict], seed: int) -> pd.DataFrame:
    """Every score over folds and over their scans.

    Args:
        rows: ``stage``, ``score`` and ``estimate`` of a fold.

    Returns:
        Columns ``stage``, ``score``; ``mean`` and ``std`` of the folds' scores; ``folds`` that have the score; ``low``
        and ``high``, the interval of the score over the test scans of all folds together.
    """
    summary = []
    for (stage, score), estimates in pd.DataFrame(rows).groupby(["stage", "score"], sort=False).estimate:
        folds, together = pd.Series([fold.mean for fold in estimates], dtype=float), pooled(estimates, seed)
        row = {"stage": stage, "score": score, "mean": folds.mean(), "std": folds.std(), "folds": folds.count()}
        summary.append({**row, "low": together.low, "high": together.high})
    return pd.DataFrame(summary)


def print_summary(summary: pd.DataFrame, path: Path | str) -> None:
    """Print scores over folds and save them as CSV."""
    with atomic_path(path) as temporary:
        summary.to_csv(temporary, index=False)
    shown = summary.rename(columns={"mean": "mean over folds", "std": "standard deviation"})
    print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"Saved as {path}")
