"""What is lesion, given its probability: the threshold and the smallest lesion, chosen on validation scans."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from models.pipeline import Prediction
from utils.scores.masks import Components, Decision, find_components, overlap_scores, voxel_cm3

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SMALLEST_CM3 = (0.0, 0.02, 0.05, 0.1, 0.2)


def decision_table(predictions: Iterable[tuple[Prediction, np.ndarray]]) -> pd.DataFrame:
    """The scores of every `Decision` that may be chosen, a row each, on the scans' own grids as in an evaluation.

    Args:
        predictions: each with the true lesions, (D, H, W) bool on the scan's own grid.

    ``dice`` is the mean over scans with lesions, NaN without any. ``lesion_f1`` of the 26-connected lesions, and the
    numbers of ``found``, ``missed`` and ``false`` ones, are over all scans together: the F1 of a scan without lesions
    is 0 or 1.
    """
    rows = []
    for prediction, target in predictions:
        detected, cm3 = prediction.detected, voxel_cm3(prediction.scan.own.spacing_mm)
        for threshold in THRESHOLDS:
            components = find_components(1 - prediction.own_probabilities[0] > threshold, target)
            confirmed = True if detected is None else components.touching(detected)
            for smallest in SMALLEST_CM3:
                kept = confirmed & (components.predicted_voxels * cm3 >= smallest)
                rows.append({"threshold": threshold, "smallest_cm3": smallest, **_scores(components, kept)})
    by_decision = pd.DataFrame(rows).groupby(["threshold", "smallest_cm3"], as_index=False)
    table = by_decision.agg({"dice": "mean", "found": "sum", "missed": "sum", "false": "sum"})
    table.insert(3, "lesion_f1", overlap_scores(table.found, table.false, table.missed, 0)["f1"])
    return table


def choose_decision(table: pd.DataFrame) -> Decision:
    """The decision with the largest sum of Dice and lesion F1; of equal ones that nearest to an argmax."""
    gain = (table.dice + table.lesion_f1).fillna(0)
    order = table.assign(gain=gain.round(6), off=(table.threshold - 0.5).abs())
    best = order.sort_values(["gain", "off", "smallest_cm3"], ascending=[False, True, True]).iloc[0]
    return Decision(float(best.threshold), float(best.smallest_cm3))


def decision_summary(table: pd.DataFrame, decision: Decision) -> str:
    """One line: what a decision of the table gives on its scans."""
    at = table[(table.threshold == decision.threshold) & (table.smallest_cm3 == decision.smallest_cm3)].iloc[0]
    return (
        f"Lesion is what has a probability above {decision.threshold:g} and fills {decision.smallest_cm3:g} cm3: "
        f"Dice {at.dice:.2f} and lesion F1 {at.lesion_f1:.2f} on the validation scans"
    )


def _scores(components: Components, kept: np.ndarray) -> dict[str, float]:
    """The Dice of the voxels, NaN without lesion, and the counts of lesions; (N,) bool tells the predicted ones."""
    common, true = components.common[:, kept], components.true_voxels.sum()
    inside, predicted, found = common.sum(), components.predicted_voxels[kept].sum(), int(common.any(1).sum())
    dice = float(overlap_scores(inside, predicted - inside, true - inside, 0)["dice"]) if true else np.nan
    return {"dice": dice, "found": found, "missed": len(common) - found, "false": int((~common.any(0)).sum())}
