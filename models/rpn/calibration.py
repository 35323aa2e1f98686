"""The score at which a detection proposes a region, chosen on validation subjects for a wanted lesion coverage."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from data.scans.prepared import PreparedScan
from models.rpn.detector import MIN_SCORE
from models.rpn.module import RPN
from utils.progress import progress
from utils.regions.measures import ProposalCounts, count_proposals, proposal_scores
from utils.regions.region import region_mask

# Share of the brain that may be proposed where the target coverage is out of reach. With more than about a third,
# stage 1 would spare stage 2 too little of the class imbalance; with 0.30, more lesions were lost than false ones
# spared (docs/proposals.md).
FRACTION_BUDGET = 0.35
# What the validation scans need is too little for others: on ten of them a target is reached by luck, too. Ten pairs of
# a network and a synthetic cohort, most with fainter lesions, had a mean recall of small lesions of 0.91 with 1.2 and
# of 0.97 with this margin, with which at most 0.34 of the brain was proposed.
MARGIN = 1.6
# Even in log odds: the evidence of several slices crowds towards 1. A network that learned from few subjects is so sure
# of all it sees that only the last of these keep it within the budget.
THRESHOLDS = 1 / (1 + np.exp(-np.linspace(np.log(MIN_SCORE / (1 - MIN_SCORE)), 13, 45)))


def coverage_curve(model: RPN, scans: Collection[PreparedScan], roi_size: tuple[int, int, int]) -> pd.DataFrame:
    """Lesion coverage, lesion recall and proposed fraction of scans with masks, a row for each of `THRESHOLDS`."""
    counts = [ProposalCounts() for _ in THRESHOLDS]
    for scan in progress(scans, "Calibrating"):
        detections = model.detect_volume(scan)
        for i, threshold in enumerate(THRESHOLDS):
            regions = model.propose(scan, detections, roi_size, threshold)
            counts[i] += count_proposals(region_mask(regions, scan.brain.shape), scan.mask, scan.brain)
    return pd.DataFrame([{"threshold": t, **proposal_scores(c)} for t, c in zip(THRESHOLDS, counts, strict=True)])


def choose_threshold(curve: pd.DataFrame, target_coverage: float, default: float) -> float:
    """The lowest threshold within what may be proposed of the brain: `MARGIN` times what the target needs.

    The target is a share of the lesion voxels and of the lesions: a few large lesions hold most of the voxels and would
    let the small ones go. `FRACTION_BUDGET` limits the margin, and is spent where no threshold reaches the target.
    `default` where the scans hold no lesion.
    """
    if curve.lesion_coverage.isna().all():
        return default
    enough = curve[curve[["lesion_coverage", "lesion_recall"]].min(axis=1) >= target_coverage]
    needed = enough.proposed_fraction[enough.threshold.idxmax()] if len(enough) else FRACTION_BUDGET
    affordable = curve[curve.proposed_fraction <= max(needed, min(MARGIN * needed, FRACTION_BUDGET))]
    return float(affordable.threshold.min() if len(affordable) else curve.threshold.max())


def calibration_summary(curve: pd.DataFrame, threshold: float, target_coverage: float) -> str:
    """In one line what a threshold gives on the scans of the curve, and what to do where that is too little."""
    if curve.lesion_coverage.isna().all():
        return "Not calibrated: no validation scan holds a lesion"
    at = curve.loc[(curve.threshold - threshold).abs().idxmin()]
    line = (
        f"Calibrated: {at.proposed_fraction:.2f} of the brain is proposed and holds {at.lesion_coverage:.2f} of the "
        f"lesion voxels and {at.lesion_recall:.2f} of the lesions of the validation scans"
    )
    if min(at.lesion_coverage, at.lesion_recall) < target_coverage:
        return f"{line}; {target_coverage:g} is out of reach within {FRACTION_BUDGET:g}: train longer"
    if at.proposed_fraction > FRACTION_BUDGET:
        return f"{line}; train longer, or lower --target_coverage, to propose less"
    return line
