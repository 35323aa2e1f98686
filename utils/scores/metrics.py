"""What is measured of a scan's masks, (D, H, W) bool or uint8: all its scores, and those of slices by lesion size.

A score that the data leave undefined is NaN, never 0: a mean over scans leaves it out, and a CSV shows an empty cell.
"""

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.regions.region import bounding_box
from utils.scores.masks import (
    OVERLAP_SCORES,
    SIX_CONNECTED,
    Components,
    Spacing,
    as_masks,
    count_overlap,
    find_components,
    overlap_scores,
    voxel_cm3,
)

# Lesion size in a slice: the upper bound, included, of its share of the slice's brain area.
SIZE_BINS = {"No Lesion": 0.0, "Small": 0.01, "Medium": 0.05, "Large": np.inf}
CONVENTIONS = ("atlas", "isles", "strict", "isles26")
STRICT_IOU, ISLES26_IOU = 0.5, 0.25  # from which on these two take two components for one, included
SURFACE_TOLERANCES_MM = (1, 3)
# Added to them: in a header the side of a voxel of 1 mm may be 1.0000001.
ROUNDING_MM = 1e-4


def scan_scores(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None, probability: np.ndarray | None = None
) -> dict[str, float]:
    """All scores of one scan, in the order of their columns in ``scores.csv``.

    `OVERLAP_SCORES`, `surface_scores`, ``lesion_f1``, ``lesion_count_difference``, ``volume_difference`` (cm3, without
    sign), the other `lesion_scores` and ``pr_auc`` of the lesion `probability`, (D, H, W) float in [0, 1]; NaN without
    one. Those of ISLES'26 are ``dice``, ``volume_difference``, ``lesion_count_difference``, ``lesion_f1_isles26`` and
    ``pr_auc`` (github.com/ezequieldlrosa/isles26).
    """
    prediction, target = as_masks(prediction=prediction, target=target)
    box = bounding_box(prediction | target)
    tp, fp, fn = count_overlap(prediction[box], target[box])
    overlap = overlap_scores(tp, fp, fn, prediction.size - tp - fp - fn)
    lesions = lesion_scores(prediction[box], target[box])
    surfaces = surface_scores(prediction[box], target[box], spacing_mm)
    return {
        **{name: float(value) for name, value in overlap.items()},
        **{name: surfaces[name] for name in ("hd95", "assd")},
        **{name: lesions[name] for name in ("lesion_f1", "lesion_count_difference")},
        "volume_difference": float(abs(fp - fn) * voxel_cm3(spacing_mm)),
        **lesions,  # those above keep their places
        "pr_auc": np.nan if probability is None else pr_auc(probability, target),
        **surfaces,
    }


def surface_scores(prediction: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None) -> dict[str, float]:
    """How far apart the surfaces of two bool masks lie, by MONAI's definitions; NaN where the spacing is unknown.

    ``hd95``, the larger of the two directed 95th percentiles, and ``assd``, the mean over both surfaces, are in mm, and
    NaN if a mask is empty. ``surface_dice_1mm`` and ``surface_dice_3mm`` are the share of both surfaces within that
    distance of the other (Nikolov et al., 2021, 10.2196/26151): of two empty masks 1, of one 0, like the Dice.
    """
    tolerances = {f"surface_dice_{limit}mm": limit + ROUNDING_MM for limit in SURFACE_TOLERANCES_MM}
    empty = not prediction.any(), not target.any()
    if spacing_mm is None or any(empty):
        surface_dice = np.nan if spacing_mm is None else float(all(empty))
        return {"hd95": np.nan, "assd": np.nan, **dict.fromkeys(tolerances, surface_dice)}
    # Imported here: they take seconds, and who asks for the size bins has no use for them.
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    # Once for all, as MONAI's metrics do it each. Masks may end at the border of the array: MONAI puts a margin of
    # background around them before it looks for surfaces.
    first, second = (torch.from_numpy(np.ascontiguousarray(mask)) for mask in (prediction, target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        _, directed, _ = get_edge_surface_distance(first, second, spacing=list(spacing_mm), symmetric=True)
    distances = torch.cat(directed)
    return {
        "hd95": float(max(torch.quantile(one_way, 0.95) for one_way in directed)),
        "assd": float(distances.mean()),
        **{name: float((distances <= limit).double().mean()) for name, limit in tolerances.items()},
    }


def pr_auc(probability: np.ndarray, target: np.ndarray) -> float:
    """Area under the precision-recall curve of all voxels by the trapezoid, as ISLES'26 defines it.

    scikit-learn's ``auc`` of its ``precision_recall_curve``, of float `probability` and bool `target`, both (D, H, W).
    Without a lesion it is 1 where the probability is the same everywhere, else 0; NaN where a probability is.
    """
    lowest, n_lesion = probability.min(), np.count_nonzero(target)
    if np.isnan(lowest):
        return np.nan
    if not n_lesion:
        return float(probability.max() == lowest)
    # Recall grows at the probabilities of lesion voxels alone: each brings a trapezoid from the precision of what is
    # higher to that of what is as high. Most voxels share the lowest value, that beyond the regions: none is sorted.
    values, lesion = np.unique(probability[target], return_counts=True)
    ordered = np.sort(probability[probability > lowest])
    higher = len(ordered) - np.searchsorted(ordered, values, side="right")
    as_high = np.where(values > lowest, len(ordered) - np.searchsorted(ordered, values), probability.size)
    found = lesion[::-1].cumsum()[::-1]
    before = np.where(higher > 0, (found - lesion) / np.maximum(higher, 1), 1)
    return float(lesion @ (before + found / as_high)) / (2 * n_lesion)


def size_bin(lesion_voxels: ArrayLike, brain_voxels: ArrayLike) -> np.ndarray:
    """Name of the size bin of each slice, given counts of a slice, or arrays of one count a slice."""
    share = np.asarray(lesion_voxels) / np.maximum(brain_voxels, 1)
    return np.array(list(SIZE_BINS))[np.searchsorted(list(SIZE_BINS.values()), share)]


def slice_scores(prediction: np.ndarray, target: np.ndarray, brain: np.ndarray) -> pd.DataFrame:
    """Overlap scores of the slices that have brain, a row each: ``size``, the name of its bin, and `OVERLAP_SCORES`.

    In the bin No Lesion a score is 1 for a slice rightly left empty and 0 for a false alarm.
    """
    prediction, target, brain = as_masks(prediction=prediction, target=target, brain=brain)
    brain_voxels = np.count_nonzero(brain, (1, 2))
    with_brain = brain_voxels > 0
    tp, fp, fn = (count[with_brain] for count in count_overlap(prediction, target, (1, 2)))
    tn = brain[0].size - tp - fp - fn
    return pd.DataFrame({"size": size_bin(tp + fn, brain_voxels[with_brain]), **overlap_scores(tp, fp, fn, tn)})


def scores_by_size(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean of the rows of `slice_scores` in each of `SIZE_BINS`: ``size``, ``n`` (slices) and `OVERLAP_SCORES`."""
    means = frame.groupby("size")[list(OVERLAP_SCORES)].mean().reindex(list(SIZE_BINS))
    means.insert(0, "n", frame["size"].value_counts().reindex(means.index, fill_value=0))
    return means.rename_axis("size").reset_index()


def lesion_scores(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Scores that count lesions instead of voxels, by each of `CONVENTIONS`, of (D, H, W) bool or uint8 masks.

    - ``atlas``: 6-connected. A lesion is found with one predicted voxel, a predicted component is false without any
      voxel of a lesion (ATLAS v2.0; Liew et al., 2022, 10.1038/s41597-022-01401-7).
    - ``isles``: the same, 26-connected (ISLES 2022; Hernandez Petzsche et al., 2022, 10.1038/s41597-022-01875-5;
      github.com/ezequieldlrosa/isles22).
    - ``strict``: 26-connected. A lesion is found by the component that overlaps it with an IoU of `STRICT_IOU`, all
      other components are false. F1 is then the recognition quality of panoptica (Kofler et al., 2023,
      arXiv:2312.02608).
    - ``isles26``: the same from `ISLES26_IOU` on, where a lesion may have several such components and a component
      several lesions. They are matched one to one as in the organisers' code (github.com/ezequieldlrosa/isles26 with
      panoptica's `NaiveThresholdMatching`): the pair of the highest IoU first, which need not give the most pairs.

    Returns:
        ``lesion_f1``, that of ISLES, and ``lesion_count_difference``, without sign, of 26-connected components. Then
        for each convention ``lesion_f1_``, ``lesion_precision_``, ``lesion_recall_``, in [0, 1] with the policy of
        `overlap_scores` for empty masks, and ``false_lesions_``, a count.
    """
    by_face, by_corner = find_components(prediction, target, SIX_CONNECTED), find_components(prediction, target)
    matched = (count_matched(by_corner, least_iou) for least_iou in (STRICT_IOU, ISLES26_IOU))
    counts = (_count_touched(by_face), _count_touched(by_corner), *matched)
    scores: dict[str, float] = {}
    for convention, (right, false, missed) in zip(CONVENTIONS, counts, strict=True):
        ratios = overlap_scores(right, false, missed, 0)
        scores |= {f"lesion_{name}_{convention}": float(ratios[name]) for name in ("f1", "precision", "recall")}
        scores[f"false_lesions_{convention}"] = float(false)
    n_true, n_predicted = by_corner.common.shape
    difference = float(abs(n_predicted - n_true))
    return {"lesion_f1": scores["lesion_f1_isles"], "lesion_count_difference": difference, **scores}


def _count_touched(components: Components) -> tuple[int, int, int]:
    """Lesions found, false components and lesions missed where one common voxel is enough."""
    right = int(components.found.sum())
    return right, int(components.false.sum()), len(components.found) - right


def count_matched(
    components: Components, least_iou: float, kept: np.ndarray | slice = slice(None)
) -> tuple[int, int, int]:
    """Matched pairs, components without a match and lesions without one, of the `kept` components (N,) bool or all."""
    common = components.common[:, kept]
    iou = common / (components.true_voxels[:, None] + components.predicted_voxels[kept] - common)
    predicted, true = np.nonzero((iou >= least_iou).T)
    best_first = np.argsort(-iou[true, predicted], kind="stable")  # the first component first, as in panoptica
    free_true, free_predicted = set(true.tolist()), set(predicted.tolist())
    matched = 0
    for i, j in zip(true[best_first].tolist(), predicted[best_first].tolist(), strict=True):
        if i in free_true and j in free_predicted:
            free_true.remove(i)
            free_predicted.remove(j)
            matched += 1
    n_true, n_predicted = common.shape
    return matched, n_predicted - matched, n_true - matched


def lesion_rows(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None, affine: np.ndarray
) -> pd.DataFrame:
    """A row for each lesion and each false component, 26-connected, in the columns of ``per_lesion_scores.csv``.

    Args:
        prediction, target: (D, H, W) bool or uint8 masks.
        affine: (4, 4) from voxel (H, W, D) to mm in RAS; means nothing where the voxel size is unknown.

    Returns:
        ``kind``, ``lesion`` or ``false_lesion`` (a predicted component without any voxel of a lesion); ``x_mm``,
        ``y_mm``, ``z_mm``, the centre of mass; ``slice``, its index along D; ``voxels`` and ``volume_cm3``. Of a lesion
        also ``found`` and ``dice`` with the union of the components that touch it, in [0, 1]. NaN where unknown.
    """
    components = find_components(prediction, target)
    touching = (components.common > 0) @ components.predicted_voxels
    dice = 2 * components.common.sum(1) / (components.true_voxels + touching)
    true = _places(components.true, components.corner, spacing_mm, affine)
    predicted = _places(components.predicted, components.corner, spacing_mm, affine)
    true = true.assign(kind="lesion", found=components.found, dice=dice)
    false = predicted[components.false].assign(kind="false_lesion", found=None, dice=np.nan)
    rows = pd.concat([frame.astype({"found": "boolean"}) for frame in (true, false)], ignore_index=True)
    return rows[["kind", "x_mm", "y_mm", "z_mm", "slice", "voxels", "volume_cm3", "found", "dice"]]


def _places(labels: np.ndarray, corner: np.ndarray, spacing_mm: Spacing | None, affine: np.ndarray) -> pd.DataFrame:
    inside = np.nonzero(labels)
    voxels = np.bincount(labels[inside] - 1)
    sums = (np.bincount(labels[inside] - 1, places) for places in inside)
    d, h, w = (total / voxels + first for total, first in zip(sums, corner, strict=True))
    to_mm = affine[:3] if spacing_mm is not None else np.full((3, 4), np.nan)
    centres = to_mm @ np.stack([h, w, d, np.ones_like(d)])
    table = pd.DataFrame(centres.T, columns=["x_mm", "y_mm", "z_mm"])
    return table.assign(slice=np.rint(d).astype(int), voxels=voxels, volume_cm3=voxels * voxel_cm3(spacing_mm))
