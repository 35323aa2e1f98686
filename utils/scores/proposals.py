"""What is measured of stage 1: what its regions cover and cost, how precise its boxes are, by lesion size too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields

import numpy as np
import pandas as pd
from scipy import ndimage

from utils.regions.region import bounding_box, enclosing_box, pairwise_iou
from utils.scores.intervals import Estimate, estimate, without_interval
from utils.scores.masks import TWENTY_SIX_CONNECTED, Spacing, as_masks, voxel_cm3
from utils.scores.metrics import SIZE_BINS, size_bin

# What is divided by what, of the fields of `ProposalCounts`: shares covered, and what the regions hold over the brain.
SHARES = {
    "lesion_coverage": ("covered_voxels", "lesion_voxels"),
    "lesion_recall": ("covered_lesions", "lesions"),
    "proposed_fraction": ("region_voxels", "brain_voxels"),
}

COVERED_SHARE = 0.5  # of its voxels, from which on a lesion counts as covered


@dataclass(frozen=True)
class ProposalCounts:
    """What the regions of one or more volumes cover; counts of several volumes are added."""

    lesion_voxels: int = 0
    covered_voxels: int = 0
    lesions: int = 0
    covered_lesions: int = 0
    region_voxels: int = 0
    brain_voxels: int = 0

    def __add__(self, other: "ProposalCounts") -> "ProposalCounts":
        return ProposalCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def count_proposals(regions_mask: np.ndarray, target: np.ndarray, brain: np.ndarray) -> ProposalCounts:
    """Count what a volume's regions, the union of which is (D, H, W) bool, cover of its lesions, and what they cost.

    A lesion is a 26-connected component, covered if at least half of its voxels lie inside the regions.
    """
    regions_mask, target, brain = as_masks(regions_mask=regions_mask, target=target, brain=brain)
    voxels, covered = _voxels_of_lesions(regions_mask, target)
    return ProposalCounts(
        lesion_voxels=int(voxels.sum()),
        covered_voxels=int(covered.sum()),
        lesions=len(voxels),
        covered_lesions=int(np.count_nonzero(covered >= COVERED_SHARE * voxels)),
        region_voxels=int(np.count_nonzero(regions_mask)),
        brain_voxels=int(np.count_nonzero(brain)),
    )


def _voxels_of_lesions(regions_mask: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each lesion, and those inside the regions."""
    box = bounding_box(target)
    labels, n = ndimage.label(target[box], TWENTY_SIX_CONNECTED)
    inside = labels[regions_mask[box]]
    return np.bincount(labels.ravel(), minlength=n + 1)[1:], np.bincount(inside, minlength=n + 1)[1:]


def proposal_scores(counts: ProposalCounts) -> dict[str, float]:
    """The `SHARES` of counts; NaN with nothing to divide by. Regions that reach into air may propose more than 1."""
    values = asdict(counts)
    return {score: values[part] / values[whole] if values[whole] else np.nan for score, (part, whole) in SHARES.items()}


def box_scores(predictions: Sequence[dict], targets: Sequence[dict], kept: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores of the boxes of slices, NaN without any lesion.

    Args:
        predictions: a dict a slice with tensors ``boxes`` (N, 4) xyxy in voxels, half-open, ``scores`` (N,) in
            [0, 1] and ``labels`` (N,) int64.
        targets: a dict a slice with ``boxes`` and ``labels``, in the order of `predictions`.
        kept: the boxes (N, 4) of each slice that propose its region.

    Returns:
        ``map`` and ``map_50``, COCO's average precision at IoU 0.5:0.95 and 0.5, of all predictions; ``iou`` of the
        boxes around the kept ones and around the lesions, the mean over slices with lesion, 0 without a kept box.
    """
    ious = np.array([enclosing_iou(*pair) for pair in zip(kept, targets, strict=True)])
    with_lesion = ious[~np.isnan(ious)]
    return {**average_precision(predictions, targets), "iou": float(with_lesion.mean()) if len(with_lesion) else np.nan}


def average_precision(predictions: Sequence[dict], targets: Sequence[dict]) -> dict[str, float]:
    """``map`` and ``map_50`` as in `box_scores`."""
    from torchmetrics.detection import MeanAveragePrecision

    if not any(len(target["boxes"]) for target in targets):
        return {"map": np.nan, "map_50": np.nan}
    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    metric.update(list(predictions), list(targets))
    result = metric.compute()
    return {name: float(result[name]) for name in ("map", "map_50")}


def enclosing_iou(kept: np.ndarray, target: Mapping) -> float:
    """``iou`` of `box_scores` in one slice; NaN without lesion."""
    if not len(target["boxes"]):
        return np.nan
    pair = np.stack([enclosing_box(kept), enclosing_box(target["boxes"].numpy())])
    return float(np.nan_to_num(pairwise_iou(pair)[0, 1]))  # the box around no boxes is NaN: no overlap


@dataclass(frozen=True)
class SliceProposals:
    """Stage 1 in one slice; prediction, target and kept boxes are those of `box_scores`."""

    scan: str  # name
    size: str  # bin of its lesion's share of the brain, as in `size_bin`
    prediction: dict
    target: dict
    kept: np.ndarray
    counts: ProposalCounts  # of the slice; lesions are 8-connected here


def count_slice(regions_mask: np.ndarray, target: np.ndarray, brain: np.ndarray, z: int) -> tuple[str, ProposalCounts]:
    """Size bin and counts of slice `z` of (D, H, W) masks."""
    counts = count_proposals(*(mask[z : z + 1] for mask in (regions_mask, target, brain)))
    return str(size_bin(counts.lesion_voxels, counts.brain_voxels)), counts


# Columns of a scan that are no scores: what these are shares of, and the slices with lesion of which `iou` is the mean.
COUNTS = [*(field.name for field in fields(ProposalCounts)), "lesion_slices"]


def counts_by_scan(
    scans: Sequence[str], counts: Sequence[ProposalCounts], slices: Sequence[SliceProposals]
) -> pd.DataFrame:
    """By the name of the scan: `COUNTS` and ``iou`` (`enclosing_iou`, the mean over its slices with lesion).

    The counts, of scans or of slices, are added where they are of one scan.
    """
    table = pd.DataFrame(map(asdict, counts), index=list(scans), columns=COUNTS[:-1])
    by_slice = pd.Series([enclosing_iou(s.kept, s.target) for s in slices], [s.scan for s in slices], float)
    ious = by_slice.groupby(level=0)
    table = table.groupby(level=0, sort=False).sum().assign(lesion_slices=ious.count(), iou=ious.mean())
    return table.fillna({"lesion_slices": 0}).astype({"lesion_slices": int})  # a scan may have no slice with brain


def with_shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows of `counts_by_scan` with the scores of `proposal_scores` of each scan behind; NaN where undefined."""
    return counts.assign(**{score: counts[part] / counts[whole] for score, (part, whole) in SHARES.items()})


def proposal_estimates(counts: pd.DataFrame, slices: Sequence[SliceProposals], seed: int) -> dict[str, Estimate]:
    """The scores of `box_scores` and `proposal_scores` over scans, with intervals but for the average precision.

    `counts` are rows of `counts_by_scan`, of the same slices.
    """
    precision = average_precision([s.prediction for s in slices], [s.target for s in slices])
    return {
        **{score: without_interval(value, len(counts)) for score, value in precision.items()},
        "iou": estimate(counts.iou * counts.lesion_slices, counts.lesion_slices, seed),
        **{score: estimate(counts[part], counts[whole], seed) for score, (part, whole) in SHARES.items()},
    }


def proposals_by_size(slices: Sequence[SliceProposals], seed: int) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """For each bin of `SIZE_BINS` the number of its slices, and `proposal_estimates` over them."""
    bins = {}
    for size in SIZE_BINS:
        own = [s for s in slices if s.size == size]
        counts = counts_by_scan([s.scan for s in own], [s.counts for s in own], own)
        bins[size] = len(own), proposal_estimates(counts, own, seed)
    return bins


def lesions_covered(regions_mask: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None) -> pd.DataFrame:
    """A row for each lesion (26-connected): ``voxels``, ``volume_cm3`` (NaN without spacing), the share ``covered``."""
    voxels, covered = _voxels_of_lesions(*as_masks(regions_mask=regions_mask, target=target))
    return pd.DataFrame({"voxels": voxels, "volume_cm3": voxels * voxel_cm3(spacing_mm), "covered": covered / voxels})
