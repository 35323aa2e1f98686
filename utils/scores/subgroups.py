"""Scores of subgroups: of lesions by volume and side, of scans by whatever groups them."""

import numpy as np
import pandas as pd

from utils.scores.intervals import Estimate, estimate

# Lesions by volume: the upper bound, excluded, in cm3. "Small" is where stage 1 misses them.
VOLUME_BINS_CM3 = {
    "under 0.1 cm3": 0.1, "0.1 to 1 cm3": 1.0, "1 to 10 cm3": 10.0, "10 to 50 cm3": 50.0, "over 50 cm3": np.inf
}  # fmt: skip
COLUMNS = [
    *["group", "value", "scans", "lesions", "found_lesions", "recall", "recall_low", "recall_high"],
    *["dice", "dice_low", "dice_high", "false_lesions"],
]


def volume_bins(volumes_cm3: pd.Series) -> pd.Series:
    """The bin of `VOLUME_BINS_CM3`, categorical, of each volume; NaN where it is unknown."""
    return pd.cut(volumes_cm3, [0, *VOLUME_BINS_CM3.values()], right=False, labels=list(VOLUME_BINS_CM3))


def recall_by_volume(lesions: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """Share of the lesions of each of `VOLUME_BINS_CM3` that are found; NaN for an empty bin.

    `lesions` has the columns ``scan``, ``volume_cm3`` and ``found`` (bool), and a row a lesion.
    """
    bins = volume_bins(lesions.volume_cm3)
    return {name: _over_scans(lesions[bins == name], "found", seed) for name in VOLUME_BINS_CM3}


def _over_scans(rows: pd.DataFrame, column: str, seed: int) -> Estimate:
    """The mean of a column over all rows; those of a scan are drawn together."""
    by_scan = rows.groupby("scan")[column]
    return estimate(by_scan.sum(), by_scan.count(), seed)


def group_scores(scans: pd.DataFrame, lesions: pd.DataFrame, groups: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row of `COLUMNS` for each group of lesions and of scans, with 95 % intervals over scans.

    Args:
        scans: with the columns ``scan``, ``dice`` and perhaps ``side``.
        lesions: of ``per_lesion_scores.csv``, perhaps with ``side``.
        groups: of scans, by their names, a column for each grouping.

    Returns:
        ``dice`` is the mean over the lesions of a group of lesions, and over the scans of a group of scans.
    """
    of_lesions: dict = {"lesion volume": volume_bins(lesions.volume_cm3), "lesion side": lesions.get("side")}
    of_scans: dict = {"side": scans.get("side"), **{name: groups[name].reindex(scans.scan) for name in groups}}
    rows = []
    for group, values in of_lesions.items():
        for value, own in _split(lesions, values):
            rows.append((group, value, *_scores(own, own[own.kind == "lesion"], seed)))
    for group, values in of_scans.items():
        for value, own in _split(scans, values):
            rows.append((group, value, *_scores(lesions[lesions.scan.isin(own.scan)], own, seed)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _split(rows: pd.DataFrame, values: pd.Series | None):
    return () if values is None else rows.groupby(values.array, observed=True)


def _scores(lesions: pd.DataFrame, scored: pd.DataFrame, seed: int) -> tuple:
    """What is behind ``group`` and ``value``, of a group's lesions and the rows that have its Dice."""
    true = lesions[lesions.kind == "lesion"]
    recall, dice = _over_scans(true, "found", seed), _over_scans(scored, "dice", seed)
    counts = scored.scan.nunique(), len(true), int(true.found.sum())
    intervals = (each for score in (recall, dice) for each in (score.mean, score.low, score.high))
    return (*counts, *intervals, len(lesions) - len(true))
