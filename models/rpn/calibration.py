"""The score at which a detection proposes a region, chosen on validation subjects for a wanted lesion coverage."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from data.scans.prepared import PreparedScan
from models.rpn.detector import MIN_SCORE
from models.rpn.module import RPN
from utils.progress import progress
from utils.regions.region import region_mask
from utils.scores.proposals import ProposalCounts, count_proposals, proposal_scores

# Share of the brain that may be proposed where the target coverage is out of reach. More would spare stage 2 too little
# of the class imbalance; with 0.30, more lesions were lost than false ones spared (docs/proposals.md).
FRACTION_BUDGET = 0.35
# What the validation scans need is too little for others: few scans reach a target by luck, too. Ten networks on other
# synthetic cohorts, most with fainter lesions, had a mean recall of small lesions of 0.91 with 1.2 and 0.97 with this
# margin, with which at most 0.34 of the brain was proposed.
MARGIN = 1.6
# Even in log odds: the evidence of several slices crowds towards 1, most of all of networks that learned from few
# subjects.
THRESHOLDS = 1 / (1 + np.exp(-np.linspace(np.log(MIN_SCORE / (1 - MIN_SCORE)), 13, 45)))


def coverage_curve(model: RPN, scans: Iterable[PreparedScan], roi_size: tuple[int, int, int]) -> pd.DataFrame:
    """Lesion coverage, lesion recall and proposed fraction of scans with masks, a row for each of `THRESHOLDS`."""
    counts = [ProposalCounts() for _ in THRESHOLDS]
    for scan in progress(scans, "Calibrating"):
        assert scan.mask is not None  # a training has masks
        detections = model.detect_volume(scan)
        for i, threshold in enumerate(THRESHOLDS):
            regions = model.propose(scan, detections, roi_size, threshold)
            counts[i] += count_proposals(region_mask(regions, scan.brain.shape), scan.mask, scan.brain)
    return pd.DataFrame([{"threshold": t, **proposal_scores(c)} for t, c in zip(THRESHOLDS, counts, strict=True)])


def choose_threshold(curve: pd.DataFrame, target_coverage: float, default: float) -> float:
    """The lowest threshold that proposes at most `MARGIN` times the share of the brain that the target needs.

    The target is a share of the lesion voxels and of the lesions, or a few large lesions would decide alone.
    `FRACTION_BUDGET` limits the margin, and is spent where no threshold reaches the target. `default` without lesions.
    """
    if curve.lesion_coverage.isna().all():
        return default
    enough = curve[curve[["lesion_coverage", "lesion_recall"]].min(axis=1) >= target_coverage]
    needed = enough.proposed_fraction.iloc[enough.threshold.argmax()] if len(enough) else FRACTION_BUDGET
    affordable = curve[curve.proposed_fraction <= max(needed, min(MARGIN * needed, FRACTION_BUDGET))]
    return float(affordable.threshold.min() if len(affordable) else curve.threshold.max())


def calibration_summary(curve: pd.DataFrame, threshold: float, target_coverage: float) -> str:
    """One line: what a threshold gives on the scans of the curve, and what to do where that is too little."""
    if curve.lesion_coverage.isna().all():
        return "Not calibrated: no validation scan holds a lesion"
    at = curve.iloc[(curve.threshold - threshold).abs().argmin()]
    line = (
        f"Calibrated: {at.proposed_fraction:.2f} of the brain is proposed and holds {at.lesion_coverage:.2f} of the "
        f"lesion voxels and {at.lesion_recall:.2f} of the lesions of the validation scans"
    )
    if min(at.lesion_coverage, at.lesion_recall) < target_coverage:
        return f"{line}; {target_coverage:g} is out of reach within {FRACTION_BUDGET:g}: train longer"
    if at.proposed_fraction > FRACTION_BUDGET:
        return f"{line}; train longer, or lower --target_coverage, to propose less"
    return line
