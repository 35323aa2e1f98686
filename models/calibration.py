"""The score at which a detection proposes a region, chosen on validation subjects for a wanted lesion coverage."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.grid import PreparedScan
from models.rpn import MIN_SCORE, RPN
from utils.proposal_metrics import ProposalCounts, count_proposals, proposal_scores
from utils.regions import region_mask

# Share of the brain that may be proposed where the target coverage is out of reach: with more than about a third,
# stage 1 would spare stage 2 too little of the class imbalance.
FRACTION_BUDGET = 0.30
# Even in log odds: the evidence of several slices crowds towards 1.
THRESHOLDS = 1 / (1 + np.exp(-np.linspace(np.log(MIN_SCORE / (1 - MIN_SCORE)), np.log(0.999 / 0.001), 30)))


def coverage_curve(model: RPN, scans: Collection[PreparedScan], roi_size: tuple[int, int, int]) -> pd.DataFrame:
    """Lesion coverage, lesion recall and proposed fraction of scans with masks, a row for each of `THRESHOLDS`."""
    counts = [ProposalCounts() for _ in THRESHOLDS]
    for scan in tqdm(scans, "Calibrating", unit="scan", leave=False):
        detections = model.detect_volume(scan)
        for i, threshold in enumerate(THRESHOLDS):
            regions = model.propose(scan, detections, roi_size, threshold)
            counts[i] += count_proposals(region_mask(regions, scan.head.shape), scan.mask, scan.head)
    return pd.DataFrame([{"threshold": t, **proposal_scores(c)} for t, c in zip(THRESHOLDS, counts, strict=True)])


def choose_threshold(curve: pd.DataFrame, target_coverage: float, default: float) -> float:
    """The highest threshold that covers the target share, of the lesion voxels and of the lesions.

    Both, for a few large lesions hold most of the voxels and would let the small ones go. Where no threshold covers
    as much, the lowest within `FRACTION_BUDGET`: what is missed on a few validation scans says little about how low the
    threshold must be, so the brain that may be proposed is spent. `default` where the scans hold no lesion.
    """
    if curve.lesion_coverage.isna().all():
        return default
    enough = curve[curve[["lesion_coverage", "lesion_recall"]].min(axis=1) >= target_coverage]
    if len(enough):
        return float(enough.threshold.max())
    affordable = curve[curve.proposed_fraction <= FRACTION_BUDGET]
    return float(affordable.threshold.min() if len(affordable) else curve.threshold.max())
