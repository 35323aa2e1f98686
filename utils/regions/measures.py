"""What is measured of stage 1: what its regions cover and cost, how precise its boxes are, by lesion size too.

Masks are (D, H, W). A score that the data leave undefined is NaN, never 0.
"""

from dataclasses import asdict, astuple, dataclass, fields

import numpy as np
import pandas as pd
from scipy import ndimage

from utils.regions.boxes import enclosing_box, pairwise_iou
from utils.scores.components import TWENTY_SIX_CONNECTED, voxel_cm3
from utils.scores.intervals import Estimate, estimate, without_interval
from utils.scores.metrics import SIZE_BINS, size_bin
from utils.scores.overlap import as_masks, bounding_box

# What is divided by what, of the fields of `ProposalCounts`.
SHARES = {
    "lesion_coverage": ("covered_voxels", "lesion_voxels"),
    "lesion_recall": ("covered_lesions", "lesions"),
    "proposed_fraction": ("region_voxels", "brain_voxels"),
}

# Lesions by volume: the upper bound, excluded, in cm3. "Small" is where stage 1 misses them.
VOLUME_BINS_CM3 = {"under 1 cm3": 1.0, "1 to 10 cm3": 10.0, "over 10 cm3": np.inf}
COVERED_SHARE = 0.5  # of its voxels, from which on a lesion counts as covered


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
    values = asdict(counts)
    return {score: values[part] / values[whole] if values[whole] else np.nan for score, (part, whole) in SHARES.items()}


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
    ious = np.array([enclosing_iou(*pair) for pair in zip(kept, targets, strict=True)])
    with_lesion = ious[~np.isnan(ious)]
    return {**average_precision(predictions, targets), "iou": float(with_lesion.mean()) if len(with_lesion) else np.nan}


def average_precision(predictions: list[dict], targets: list[dict]) -> dict[str, float]:
    """``map`` and ``map_50`` as in `box_scores`."""
    from torchmetrics.detection import MeanAveragePrecision

    if not any(len(target["boxes"]) for target in targets):
        return {"map": np.nan, "map_50": np.nan}
    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    metric.update(predictions, targets)
    result = metric.compute()
    return {name: float(result[name]) for name in ("map", "map_50")}


def enclosing_iou(kept: np.ndarray, target: dict) -> float:
    """``iou`` of `box_scores` in one slice; NaN without lesion."""
    if not len(target["boxes"]):
        return np.nan
    pair = np.stack([enclosing_box(kept), enclosing_box(target["boxes"].numpy())])
    return float(np.nan_to_num(pairwise_iou(pair)[0, 1]))  # the box around no boxes is NaN: no overlap


# --- over scans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceProposals:
    """Stage 1 in one slice.

    scan: name of the scan that it belongs to.
    size: bin of its lesion's share of the brain, as in `size_bin`.
    prediction, target: detections and lesion boxes, as in `box_scores`.
    kept: (N, 4) boxes that propose.
    counts: what the regions cover of the slice; lesions are 8-connected here.
    """

    scan: str
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


# Columns of a scan that are no scores: what these are shares of, and the slices with lesion of which `iou` is the mean.
COUNTS = [*(field.name for field in fields(ProposalCounts)), "lesion_slices"]


def counts_by_scan(scans: list[str], counts: list[ProposalCounts], slices: list[SliceProposals]) -> pd.DataFrame:
    """What the scores of stage 1 are shares of, a row for each scan.

    Args:
        scans, counts: scan by scan or slice by slice; the counts of one scan are added.
        slices: slices of these scans.

    Returns:
        By the name of the scan the fields of `ProposalCounts`, ``lesion_slices`` (slices with lesion) and ``iou``
        (`enclosing_iou`, the mean over these).
    """
    table = pd.DataFrame(map(asdict, counts), index=scans, columns=COUNTS[:-1])
    by_slice = pd.Series([enclosing_iou(s.kept, s.target) for s in slices], [s.scan for s in slices], float)
    ious = by_slice.groupby(level=0)
    table = table.groupby(level=0, sort=False).sum().assign(lesion_slices=ious.count(), iou=ious.mean())
    return table.fillna({"lesion_slices": 0}).astype({"lesion_slices": int})  # a scan may have no slice with brain


def with_shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows of `counts_by_scan` with the scores of `proposal_scores` of each scan behind; NaN where undefined."""
    return counts.assign(**{score: counts[part] / counts[whole] for score, (part, whole) in SHARES.items()})


def proposal_estimates(counts: pd.DataFrame, slices: list[SliceProposals], seed: int) -> dict[str, Estimate]:
    """The scores of `box_scores` and `proposal_scores` over scans, with intervals but for the average precision.

    Args:
        counts: rows of `counts_by_scan`.
        slices: slices of these scans.
    """
    precision = average_precision([s.prediction for s in slices], [s.target for s in slices])
    return {
        **{score: without_interval(value, len(counts)) for score, value in precision.items()},
        "iou": estimate(counts.iou * counts.lesion_slices, counts.lesion_slices, seed),
        **{score: estimate(counts[part], counts[whole], seed) for score, (part, whole) in SHARES.items()},
    }


# --- by lesion size ------------------------------------------------------------------------------------


def proposals_by_size(slices: list[SliceProposals], seed: int) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """For each bin of `SIZE_BINS` the number of its slices, and `proposal_estimates` over them."""
    bins = {}
    for size in SIZE_BINS:
        those = [s for s in slices if s.size == size]
        counts = counts_by_scan([s.scan for s in those], [s.counts for s in those], those)
        bins[size] = len(those), proposal_estimates(counts, those, seed)
    return bins


def lesions_covered(regions_mask: np.ndarray, target: np.ndarray, spacing_mm: tuple | None) -> pd.DataFrame:
    """A row for each lesion (26-connected): ``voxels``, ``volume_cm3`` (NaN without spacing), the share ``covered``."""
    regions_mask, target = as_masks(regions_mask=regions_mask, target=target)
    labels, n = ndimage.label(target, TWENTY_SIX_CONNECTED)
    voxels = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    inside = np.bincount(labels[regions_mask], minlength=n + 1)[1:]
    volumes = voxels * voxel_cm3(spacing_mm)
    return pd.DataFrame({"voxels": voxels, "volume_cm3": volumes, "covered": inside / np.maximum(voxels, 1)})


def recall_by_volume(lesions: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """Share of the lesions of each of `VOLUME_BINS_CM3` that are at least half covered; NaN for an empty bin.

    Args:
        lesions: columns ``scan``, ``volume_cm3`` and ``covered``, a row a lesion.
    """
    bins = np.searchsorted(list(VOLUME_BINS_CM3.values()), lesions.volume_cm3, side="right")
    known = lesions.volume_cm3.notna()
    recalls = {}
    for i, name in enumerate(VOLUME_BINS_CM3):
        those = lesions[known & (bins == i)]
        found = (those.covered >= COVERED_SHARE).groupby(those.scan)
        recalls[f"lesion_recall, {name}"] = estimate(found.sum(), found.count(), seed)
    return recalls
