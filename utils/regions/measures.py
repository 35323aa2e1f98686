"""What is measured of stage 1: what its regions cover and cost, how precise its boxes are, by lesion size too.

Masks are (D, H, W). A score that the data leave undefined is NaN, never 0.
"""

from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from utils.lesions import TWENTY_SIX_CONNECTED, voxel_cm3
from utils.metrics import SIZE_BINS, size_bin
from utils.overlap import as_masks, bounding_box
from utils.regions.boxes import enclosing_box, pairwise_iou

# Lesions by volume: the upper bound, excluded, in cm3. "Small" is where stage 1 misses them.
VOLUME_BINS_CM3 = {"under 1 cm3": 1.0, "1 to 10 cm3": 10.0, "over 10 cm3": np.inf}


# --- regions -------------------------------------------------------------------------------------------


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
    """Count what a volume's regions cover of its lesions, and what they cost.

    A lesion is a 26-connected component, covered if at least half of its voxels lie inside the regions.

    Args:
        regions_mask: (D, H, W) bool, the union of the regions.
        target, brain: (D, H, W) bool or uint8 masks.

    Raises:
        ValueError: the masks differ in shape.
    """
    regions_mask, target, brain = as_masks(regions_mask=regions_mask, target=target, brain=brain)
    box = bounding_box(target)
    labels, n = ndimage.label(target[box], TWENTY_SIX_CONNECTED)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    covered = np.bincount(labels[regions_mask[box]], minlength=n + 1)[1:]
    return ProposalCounts(
        lesion_voxels=int(voxels.sum()),
        covered_voxels=int(covered.sum()),
        lesions=n,
        covered_lesions=int(np.count_nonzero(2 * covered >= voxels)),
        region_voxels=int(np.count_nonzero(regions_mask)),
        brain_voxels=int(np.count_nonzero(brain)),
    )


def proposal_scores(counts: ProposalCounts) -> dict[str, float]:
    """How much the regions find, and at what cost.

    Returns:
        ``lesion_coverage`` (share of lesion voxels inside), ``lesion_recall`` (share of lesions covered), both in
        [0, 1], and ``proposed_fraction`` (region voxels over brain voxels, above 1 where regions reach into air);
        NaN with nothing to divide by.
    """
    return {
        "lesion_coverage": _share(counts.covered_voxels, counts.lesion_voxels),
        "lesion_recall": _share(counts.covered_lesions, counts.lesions),
        "proposed_fraction": _share(counts.region_voxels, counts.brain_voxels),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan


# --- boxes ---------------------------------------------------------------------------------------------


def box_scores(predictions: list[dict], targets: list[dict], kept: list[np.ndarray]) -> dict[str, float]:
    """Scores of the boxes of slices.

    Args:
        predictions: a dict a slice with tensors ``boxes`` (N, 4) xyxy in voxels, half-open, ``scores`` (N,) in
            [0, 1] and ``labels`` (N,) int64.
        targets: a dict a slice with ``boxes`` and ``labels``, in the order of `predictions`.
        kept: the boxes (N, 4) of each slice that propose its region.

    Returns:
        ``map`` and ``map_50``, COCO's average precision at IoU 0.5:0.95 and 0.5 over all slices, of all
        predictions; ``iou``, the mean over slices with lesion of the IoU of the box enclosing the kept boxes with
        the box enclosing the lesions, 0 without a kept box. All are NaN without any lesion.
    """
    return {**_average_precision(predictions, targets), "iou": _enclosing_iou(kept, targets)}


def _average_precision(predictions: list[dict], targets: list[dict]) -> dict[str, float]:
    from torchmetrics.detection import MeanAveragePrecision

    if not any(len(target["boxes"]) for target in targets):
        return {"map": np.nan, "map_50": np.nan}
    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    metric.update(predictions, targets)
    result = metric.compute()
    return {name: float(result[name]) for name in ("map", "map_50")}


def _enclosing_iou(kept: list[np.ndarray], targets: list[dict]) -> float:
    ious = []
    for boxes, target in zip(kept, targets, strict=True):
        if len(target["boxes"]):
            pair = np.stack([enclosing_box(boxes), enclosing_box(target["boxes"].numpy())])
            ious.append(np.nan_to_num(pairwise_iou(pair)[0, 1]))  # the box around no boxes is NaN: no overlap
    return float(np.mean(ious)) if ious else np.nan


# --- by lesion size ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceProposals:
    """Stage 1 in one slice.

    size: bin of its lesion's share of the brain, as in `size_bin`.
    prediction, target: detections and lesion boxes, as in `box_scores`.
    kept: (N, 4) boxes that propose.
    counts: what the regions cover of the slice; lesions are 8-connected here.
    """

    size: str
    prediction: dict
    target: dict
    kept: np.ndarray
    counts: ProposalCounts


def count_slice(regions_mask: np.ndarray, target: np.ndarray, brain: np.ndarray, z: int) -> tuple[str, ProposalCounts]:
    """Size bin and counts of slice `z` of (D, H, W) masks."""
    inside = slice(z, z + 1)
    counts = count_proposals(regions_mask[inside], target[inside], brain[inside])
    return str(size_bin(counts.lesion_voxels, counts.brain_voxels)), counts


def proposals_by_size(slices: list[SliceProposals]) -> pd.DataFrame:
    """A row for each bin of `SIZE_BINS`: ``size``, ``n`` slices, and the scores of stage 1 over them."""
    rows = []
    for size in SIZE_BINS:
        those = [s for s in slices if s.size == size]
        counts = sum((s.counts for s in those), ProposalCounts())
        boxes = box_scores([s.prediction for s in those], [s.target for s in those], [s.kept for s in those])
        rows.append({"size": size, "n": len(those), **boxes, **proposal_scores(counts)})
    return pd.DataFrame(rows)


def lesions_covered(regions_mask: np.ndarray, target: np.ndarray, spacing_mm: tuple | None) -> pd.DataFrame:
    """A row for each lesion (26-connected): ``voxels``, ``volume_cm3`` (NaN without spacing), the share ``covered``."""
    regions_mask, target = as_masks(regions_mask=regions_mask, target=target)
    labels, n = ndimage.label(target, TWENTY_SIX_CONNECTED)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    inside = np.bincount(labels[regions_mask], minlength=n + 1)[1:]
    volumes = voxels * voxel_cm3(spacing_mm)
    return pd.DataFrame({"voxels": voxels, "volume_cm3": volumes, "covered": inside / np.maximum(voxels, 1)})


def recall_by_volume(lesions: pd.DataFrame) -> dict[str, float]:
    """Share of the lesions of each of `VOLUME_BINS_CM3` that are at least half covered; NaN for an empty bin."""
    bins = np.searchsorted(list(VOLUME_BINS_CM3.values()), lesions.volume_cm3, side="right")
    found = lesions.covered >= 0.5
    known = lesions.volume_cm3.notna()
    return {
        f"lesion_recall, {name}": float(found[known & (bins == i)].mean()) for i, name in enumerate(VOLUME_BINS_CM3)
    }
