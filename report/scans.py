"""The scans of an evaluation that a report shows: the worst, the median and the best, wrong lesions first."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from data.files.volumes import read_volume
from data.scans.checks import read_mask, read_scan, space_of
from data.scans.cohort import Case
from report.page import picture
from report.viewer import lesion_kinds, view
from utils.plots import MAX_SLICES, plot_volume_prediction, slices_to_show

PERCENTILES = (0.5, 99.5)  # of the head's intensities, between which they are shown


@dataclass(frozen=True)
class ShownScan:
    """A scan to show, with its row of the tables of scans, its rows of ``per_lesion_scores.csv`` (none without a mask)
    and the file of its prediction; `rank` is ``worst``, ``median``, ..."""

    rank: str
    case: Case
    row: pd.Series
    lesions: pd.DataFrame
    prediction: Path


def ranked(scans: pd.DataFrame) -> dict[str, pd.Series]:
    """The worst, the median and the best scan by Dice among those with lesions or, without any, among all.

    Without masks those with most, with middling and with least predicted lesion. Fewer than three scans are shown once
    each.

    Args:
        scans: rows of ``volumes.csv`` and, where there are masks, the scan's ``dice``.
    """
    if "dice" in scans:
        sick = scans[scans.true_lesions > 0]
        ordered, names = (sick if len(sick) else scans).sort_values("dice"), ("worst", "median", "best")
    else:
        names = ("most lesion", "median", "least lesion")
        ordered = scans.sort_values(["predicted_cm3", "predicted_lesions"], ascending=False)
    if ordered.empty:
        return {}
    places = dict(zip(names, (0, len(ordered) // 2, len(ordered) - 1), strict=True))
    firsts = {place: name for name, place in reversed(places.items())}  # of two names for a scan the first
    return {name: ordered.iloc[place] for place, name in sorted(firsts.items())}


def show_scan(shown: ShownScan) -> list[Markup]:
    """Slices of a scan with its lesions, and a view to move in."""
    scan = _for_display(read_scan(shown.case)[0])
    prediction = read_volume(shown.prediction).array[0] > 0
    target = None if shown.case.mask is None else read_mask(shown.case)
    title = f"{shown.rank[0].upper()}{shown.rank[1:]}: {shown.case.name}, {_scores(shown.row)}"
    either = prediction if target is None else prediction | target
    slices = wrong_first(shown.lesions, slices_to_show(either, scan))
    kinds, space = lesion_kinds(prediction, target), space_of(shown.case)
    return [
        picture(plot_volume_prediction(scan, target, prediction, [], title, slices), title),
        view(scan, kinds, np.eye(4) if space is None else space.affine, _centre(kinds, slices)),
    ]


def wrong_first(lesions: pd.DataFrame, others: list[int]) -> list[int]:
    """Up to `MAX_SLICES` slices in order: through missed lesions, through false ones, through found ones, and others.

    Args:
        lesions: rows of ``per_lesion_scores.csv``; of each kind the largest come first.
        others: slices to fill up with.
    """
    kind = np.select([lesions.kind == "false_lesion", lesions.found.fillna(False).astype(bool)], [1, 2], 0)
    ordered = lesions.assign(rank=kind).sort_values(["rank", "voxels"], ascending=[True, False])
    return sorted(list(dict.fromkeys([*ordered["slice"].astype(int), *others]))[:MAX_SLICES])


def _for_display(scan: np.ndarray) -> np.ndarray:
    """(D, H, W) float32 in [0, 1]."""
    low, high = np.percentile(scan[scan != 0], PERCENTILES)
    return np.clip((scan - low) / max(high - low, 1e-12), 0, 1)


def _scores(row: pd.Series) -> str:
    if pd.isna(row.get("dice", np.nan)):
        return f"{row.predicted_lesions} predicted lesions"
    return f"Dice {row.dice:.3f}, {row.predicted_lesions} predicted and {row.true_lesions} true lesions"


def _centre(kinds: np.ndarray, slices: list[int]) -> tuple[int, int, int]:
    """The (D, H, W) voxel to begin at: in the middle of what is marked in the slice that has most of it."""
    z = max(slices, key=lambda z: np.count_nonzero(kinds[z]))
    marked = np.argwhere(kinds[z])
    h, w = marked[len(marked) // 2] if len(marked) else np.array(kinds[z].shape) // 2
    return z, int(h), int(w)
