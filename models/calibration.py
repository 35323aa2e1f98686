"""The score at which a detection proposes a region, chosen on validation subjects for a wanted lesion coverage."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.grid import PreparedScan
from models.rpn import MIN_SCORE, RPN
from utils.metrics import ProposalCounts, count_proposals, proposal_scores
from utils.regions import region_mask

THRESHOLDS = np.geomspace(MIN_SCORE, 0.95, 25)


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
    """The highest threshold that reaches the target coverage.

    Where none does, the one with the largest coverage less proposed fraction (Youden's index, 1950,
    10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3): the last percents of coverage of a weak network
    cost most of the brain. `default` where the scans hold no lesion.
    """
    if curve.lesion_coverage.isna().all():
        return default
    enough = curve[curve.lesion_coverage >= target_coverage]
    if len(enough):
        return float(enough.threshold.max())
    return float(curve.threshold[(curve.lesion_coverage - curve.proposed_fraction).idxmax()])
