"""What is measured of masks: overlap, surface distance, lesion counts, and scores by lesion size.

Masks are (D, H, W), zero for background. A score that the data leave undefined is NaN, never 0, so that a mean
over scans can leave it out and a CSV shows an empty cell.
"""

import math
import warnings

import numpy as np
import pandas as pd
from scipy import ndimage

# Lesion size in a slice: the upper bound, included, of its share of the slice's brain area.
SIZE_BINS = {"No Lesion": 0.0, "Small": 0.01, "Medium": 0.05, "Large": np.inf}
OVERLAP_SCORES = ("dice", "iou", "precision", "recall", "f1", "mcc")
TWENTY_SIX_CONNECTED = np.ones((3, 3, 3), bool)
MM3_PER_CM3 = 1000


# --- overlap -------------------------------------------------------------------------------------------


def overlap_scores(tp, fp, fn, tn) -> dict[str, np.ndarray]:
    """Agreement of a prediction with a target from counts of voxels.

    Without lesion and without prediction every score is 1, for there was nothing to find and nothing was found.
    Otherwise a score with denominator 0 is 0: a missed lesion has precision 0, a false alarm has recall 0.

    Args:
        tp, fp, fn, tn: true positives, false positives, false negatives and true negatives; numbers or arrays of
            one shape.

    Returns:
        Scores by the names of `OVERLAP_SCORES`, each of the counts' shape. ``mcc`` (Matthews, 1975,
        10.1016/0005-2795(75)90109-9) lies in [-1, 1], the others in [0, 1]. ``f1`` over voxels is ``dice`` by
        definition; both are given because papers report either.
    """
    # The product of four counts of a volume leaves int64.
    tp, fp, fn, tn = (np.asarray(count, np.float64) for count in (tp, fp, fn, tn))
    wrong = fp + fn
    nothing = tp + wrong == 0
    dice = _ratio(2 * tp, 2 * tp + wrong, nothing)
    spread = np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
    return {
        "dice": dice,
        "iou": _ratio(tp, tp + wrong, nothing),
        "precision": _ratio(tp, tp + fp, nothing),
        "recall": _ratio(tp, tp + fn, nothing),
        "f1": dice,
        "mcc": _ratio(tp * tn - fp * fn, spread, nothing),
    }


def _ratio(part: np.ndarray, whole: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """``part / whole``, 1 where there is `nothing` to compare and 0 where `whole` is 0."""
    return np.where(nothing, 1.0, part / np.where(whole == 0, 1.0, whole))[()]


def _count_overlap(prediction: np.ndarray, target: np.ndarray, axis=None) -> tuple[np.ndarray, ...]:
    """True positives, false positives and false negatives of bool masks, summed over `axis`; None for all axes."""
    tp = np.count_nonzero(prediction & target, axis)
    return tp, np.count_nonzero(prediction, axis) - tp, np.count_nonzero(target, axis) - tp


# --- stage 2: scans ------------------------------------------------------------------------------------


def scan_scores(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, float, float] | None
) -> dict[str, float]:
    """All scores of one scan, in the order of their columns in ``scores.csv``.

    Args:
        prediction, target: (D, H, W) bool or uint8 masks.
        spacing_mm: size of a voxel along (D, H, W), or None if unknown.

    Returns:
        ``OVERLAP_SCORES``, then ``hd95`` and ``assd`` in mm, ``lesion_f1`` in [0, 1], ``lesion_count_difference``
        in lesions and ``volume_difference`` in cm3, the last two absolute.

    Raises:
        ValueError: the masks differ in shape.
    """
    prediction, target = as_masks(prediction=prediction, target=target)
    box = bounding_box(prediction | target)
    tp, fp, fn = _count_overlap(prediction[box], target[box])
    overlap = overlap_scores(tp, fp, fn, prediction.size - tp - fp - fn)
    voxel_cm3 = np.nan if spacing_mm is None else math.prod(spacing_mm) / MM3_PER_CM3
    return {
        **{name: float(value) for name, value in overlap.items()},
        **surface_scores(prediction[box], target[box], spacing_mm),
        **lesion_scores(prediction[box], target[box]),
        "volume_difference": float(abs(fp - fn) * voxel_cm3),
    }


def as_masks(**masks: np.ndarray) -> list[np.ndarray]:
    """The named masks as bool, once their shapes agree."""
    shapes = {name: np.shape(mask) for name, mask in masks.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("masks differ in shape: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    return [np.asarray(mask).astype(bool, copy=False) for mask in masks.values()]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Index of the smallest box around the foreground; of an empty box if there is none.

    Lesions fill a few per cent of a volume: what follows is that much faster inside it.
    """
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0))
    return tuple(box)


def surface_scores(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: tuple[float, float, float] | None
) -> dict[str, float]:
    """Distances between the surfaces of two bool masks, in mm.

    Returns:
        ``hd95``, the larger of the two directed 95th percentiles, and ``assd``, the mean over both surfaces; NaN
        if the spacing is unknown or a mask is empty.
    """
    if spacing_mm is None or not prediction.any() or not target.any():
        return {"hd95": np.nan, "assd": np.nan}
    # Imported here: they take seconds, and who asks for the size bins has no use for them.
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    # One channel that is foreground: (B, C, D, H, W) with no background to leave out. Masks may end at the border
    # of the array: MONAI puts a margin of background around them before it looks for surfaces.
    pair = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, target)]
    common = {"include_background": True, "spacing": list(spacing_mm)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        return {
            "hd95": float(compute_hausdorff_distance(*pair, percentile=95, **common)),
            "assd": float(compute_average_surface_distance(*pair, symmetric=True, **common)),
        }


def lesion_scores(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Scores of lesions as 26-connected components, counted as in the evaluation of ISLES 2022.

    A lesion is found if at least one of its voxels is predicted; a predicted component without any lesion voxel is
    a false positive (Hernandez Petzsche et al., 2022, 10.1038/s41597-022-01875-5; github.com/ezequieldlrosa/isles22).

    Args:
        prediction, target: (D, H, W) bool.

    Returns:
        ``lesion_f1``, 1 if both masks are empty, and ``lesion_count_difference``, absolute.
    """
    n_lesions, n_found = _count_components(target, prediction)
    n_predicted, n_right = _count_components(prediction, target)
    missed, false = n_lesions - n_found, n_predicted - n_right
    return {
        "lesion_f1": float(overlap_scores(n_found, false, missed, 0)["f1"]),
        "lesion_count_difference": float(abs(n_predicted - n_lesions)),
    }


def _count_components(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """Number of 26-connected components of `mask`, and of those among them that share a voxel with `other`."""
    labels, n = ndimage.label(mask, TWENTY_SIX_CONNECTED)
    return n, len(np.unique(labels[mask & other]))


# --- stage 2: slices by lesion size --------------------------------------------------------------------


def size_bin(lesion_voxels, brain_voxels) -> np.ndarray:
    """Name of the size bin of each slice.

    Args:
        lesion_voxels, brain_voxels: counts of a slice, or arrays of one count a slice.
    """
    lesion, brain = np.asarray(lesion_voxels), np.asarray(brain_voxels)
    share = lesion / np.maximum(brain, 1)
    return np.array(list(SIZE_BINS))[np.searchsorted(list(SIZE_BINS.values()), share)]


def slice_scores(prediction: np.ndarray, target: np.ndarray, brain: np.ndarray) -> pd.DataFrame:
    """Overlap scores of the slices that have brain, a row each.

    Args:
        prediction, target, brain: (D, H, W) bool or uint8 masks.

    Returns:
        Columns ``size``, the name of the slice's bin, and `OVERLAP_SCORES`. In the bin No Lesion a score is 1 for
        a slice rightly left empty and 0 for a false alarm.

    Raises:
        ValueError: the masks differ in shape.
    """
    prediction, target, brain = as_masks(prediction=prediction, target=target, brain=brain)
    brain_voxels = np.count_nonzero(brain, (1, 2))
    with_brain = brain_voxels > 0
    tp, fp, fn = (count[with_brain] for count in _count_overlap(prediction, target, (1, 2)))
    tn = brain[0].size - tp - fp - fn
    return pd.DataFrame({"size": size_bin(tp + fn, brain_voxels[with_brain]), **overlap_scores(tp, fp, fn, tn)})


def scores_by_size(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of the slices in each size bin.

    Args:
        frame: rows of `slice_scores`, of any number of scans.

    Returns:
        Columns ``size``, ``n`` (slices) and `OVERLAP_SCORES`; a row for each of `SIZE_BINS`, in their order, with
        NaN scores where n is 0.
    """
    means = frame.groupby("size")[list(OVERLAP_SCORES)].mean().reindex(list(SIZE_BINS))
    means.insert(0, "n", frame["size"].value_counts().reindex(means.index, fill_value=0))
    return means.rename_axis("size").reset_index()
