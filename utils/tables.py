"""Score tables as people read them on a terminal."""

import pandas as pd

from utils.files import atomic_path


def print_scores(scores: dict[str, float] | None, place) -> None:
    """Print one model's scores, and where the tables, predictions and pictures are."""
    for name, value in (scores or {}).items():
        print(f"{name:>24}  {'' if pd.isna(value) else f'{value:.3f}'}")
    print(f"Results are in {place}")


def summarise_folds(rows: list[dict[str, float]]) -> pd.DataFrame:
    """Mean and standard deviation over folds of every score: columns stage, score, mean, std, folds."""
    table = pd.DataFrame(rows)
    summary = table.groupby(["stage", "score"], sort=False).value.agg(["mean", "std", "count"]).reset_index()
    return summary.rename(columns={"count": "folds"})


def print_summary(summary: pd.DataFrame, path) -> None:
    """Print mean and standard deviation over folds and save them as CSV."""
    with atomic_path(path) as temporary:
        summary.to_csv(temporary, index=False)
    shown = summary.rename(columns={"mean": "mean over folds", "std": "standard deviation"})
    print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    print(f"Saved as {path}")
