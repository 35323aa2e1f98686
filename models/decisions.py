"""From lesion probabilities to lesions: a threshold and the smallest component, chosen on validation scans."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from data.prepared import PreparedScan
from utils.lesions import TWENTY_SIX_CONNECTED, Components, find_components, voxel_cm3
from utils.overlap import bounding_box, overlap_scores

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SMALLEST_CM3 = (0.0, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Decision:
    """What is lesion, given its probability.

    threshold: of a voxel's probability of any lesion, in [0, 1].
    smallest_cm3: volume below which a 26-connected component is none.
    """

    threshold: float = 0.5
    smallest_cm3: float = 0.0

    def classes(self, probabilities: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """The class of each voxel, (D, H, W) uint8, of class probabilities (K, D, H, W); class 0 is background."""
        lesion = 1 - probabilities[0] > self.threshold
        if self.smallest_cm3:
            box = bounding_box(lesion)
            labels, count = ndimage.label(lesion[box], TWENTY_SIX_CONNECTED)
            large = np.bincount(labels.ravel(), minlength=count + 1) * voxel_cm3(spacing_mm) >= self.smallest_cm3
            lesion[box] &= large[labels]
        return np.where(lesion, 1 + probabilities[1:].argmax(0), 0).astype(np.uint8)


def decision_table(
    segment: Callable[[PreparedScan], np.ndarray],
    scans: Iterable[PreparedScan],
    thresholds: Sequence[float] = THRESHOLDS,
    smallest_cm3: Sequence[float] = SMALLEST_CM3,
) -> pd.DataFrame:
    """What every `Decision` that may be chosen gives on scans with masks, a row each.

    Lesions are counted over all scans together: a scan without any has an F1 of 0 or 1 of its own, and the mean over a
    few scans would hang on it.

    Args:
        segment: from a scan to its class probabilities (K, D, H, W).
        thresholds, smallest_cm3: of the decisions.

    Returns:
        Columns ``threshold``, ``smallest_cm3``; ``dice``, the mean over scans with lesions, NaN without any;
        ``lesion_f1`` of the 26-connected lesions, and the numbers of ``found``, ``missed`` and ``false`` ones.
    """
    rows = []
    for scan in scans:
        lesion = 1 - segment(scan)[0]
        for threshold in thresholds:
            components = find_components(lesion > threshold, scan.mask)
            for smallest in smallest_cm3:
                kept = components.predicted_voxels * voxel_cm3(scan.space.spacing_mm) >= smallest
                rows.append({"threshold": threshold, "smallest_cm3": smallest, **_counts(components, kept)})
    by_decision = pd.DataFrame(rows).groupby(["threshold", "smallest_cm3"], as_index=False)
    table = by_decision.agg({"dice": "mean", "found": "sum", "missed": "sum", "false": "sum"})
    table.insert(3, "lesion_f1", overlap_scores(table.found, table.false, table.missed, 0)["f1"])
    return table


def _counts(components: Components, kept: np.ndarray) -> dict[str, float]:
    """The Dice of the voxels, NaN without lesion, and the counts of lesions where only the `kept` components count."""
    common, true = components.common[:, kept], components.true_voxels.sum()
    inside, predicted, found = common.sum(), components.predicted_voxels[kept].sum(), int(common.any(1).sum())
    dice = overlap_scores(inside, predicted - inside, true - inside, 0)["dice"] if true else np.nan
    return {"dice": dice, "found": found, "missed": len(common) - found, "false": int((~common.any(0)).sum())}


def choose_decision(table: pd.DataFrame) -> Decision:
    """The decision with the largest sum of Dice and lesion F1; of equal ones that nearest to a plain argmax.

    So is the one for scans without any lesion: they cannot tell what would be missed.
    """
    gain = (table.dice + table.lesion_f1).fillna(0)
    order = table.assign(gain=gain.round(6), off=(table.threshold - 0.5).abs())
    best = order.sort_values(["gain", "off", "smallest_cm3"], ascending=[False, True, True]).iloc[0]
    return Decision(float(best.threshold), float(best.smallest_cm3))


def decision_summary(table: pd.DataFrame, decision: Decision) -> str:
    """In one line what a decision of the table gives on its scans."""
    at = table[(table.threshold == decision.threshold) & (table.smallest_cm3 == decision.smallest_cm3)].iloc[0]
    return (
        f"Lesion is what has a probability above {decision.threshold:g} and fills {decision.smallest_cm3:g} cm3: "
        f"Dice {at.dice:.2f} and lesion F1 {at.lesion_f1:.2f} on the validation scans"
    )
