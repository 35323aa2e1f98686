"""From lesion probabilities to lesions: a threshold and the smallest component, chosen on validation scans."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from data.scans.prepared import PreparedScan
from utils.scores.components import Components, find_components, voxel_cm3
from utils.scores.decision import Decision
from utils.scores.overlap import overlap_scores

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SMALLEST_CM3 = (0.0, 0.02, 0.05, 0.1, 0.2)


def decision_table(
    segment: Callable[[PreparedScan], np.ndarray],
    scans: Iterable[PreparedScan],
    thresholds: Sequence[float] = THRESHOLDS,
    smallest_cm3: Sequence[float] = SMALLEST_CM3,
    seen: Callable[[PreparedScan], np.ndarray | None] = lambda scan: None,
) -> pd.DataFrame:
    """What every `Decision` that may be chosen gives on scans with masks, a row each.

    Lesions are counted over all scans together: a scan without any has an F1 of 0 or 1 of its own, and the mean over a
    few scans would hang on it.

    Args:
        segment: from a scan to its class probabilities (K, D, H, W).
        thresholds, smallest_cm3: of the decisions.
        seen: from a scan to what stage 1 saw of it (`utils.regions.region.seen_mask`).

    Returns:
        Columns ``threshold``, ``smallest_cm3``; ``dice``, the mean over scans with lesions, NaN without any;
        ``lesion_f1`` of the 26-connected lesions, and the numbers of ``found``, ``missed`` and ``false`` ones.
    """
    rows = []
    for scan in scans:
        lesion, looked_at = 1 - segment(scan)[0], seen(scan)
        for threshold in thresholds:
            components = find_components(lesion > threshold, scan.mask)
            confirmed = True if looked_at is None else components.touching(looked_at)
            for smallest in smallest_cm3:
                kept = confirmed & (components.predicted_voxels * voxel_cm3(scan.space.spacing_mm) >= smallest)
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
