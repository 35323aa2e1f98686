"""What is measured of a scan's masks, (D, H, W) bool or uint8: all its scores, and those of slices by lesion size.

A score that the data leave undefined is NaN, never 0: a mean over scans leaves it out, and a CSV shows an empty cell.
"""

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from utils.regions.region import bounding_box
from utils.scores.components import Spacing, voxel_cm3
from utils.scores.lesions import lesion_scores
from utils.scores.overlap import OVERLAP_SCORES, as_masks, count_overlap, overlap_scores

# Lesion size in a slice: the upper bound, included, of its share of the slice's brain area.
SIZE_BINS = {"No Lesion": 0.0, "Small": 0.01, "Medium": 0.05, "Large": np.inf}


def scan_scores(prediction: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None) -> dict[str, float]:
    """All scores of one scan, in the order of their columns in ``scores.csv``.

    Returns:
        ``OVERLAP_SCORES``, then ``hd95`` and ``assd`` in mm, ``lesion_f1``, ``lesion_count_difference``,
        ``volume_difference`` in cm3, without sign, and the other scores of `lesion_scores`.
    """
    prediction, target = as_masks(prediction=prediction, target=target)
    box = bounding_box(prediction | target)
    tp, fp, fn = count_overlap(prediction[box], target[box])
    overlap = overlap_scores(tp, fp, fn, prediction.size - tp - fp - fn)
    lesions = lesion_scores(prediction[box], target[box])
    return {
        **{name: float(value) for name, value in overlap.items()},
        **surface_scores(prediction[box], target[box], spacing_mm),
        **{name: lesions[name] for name in ("lesion_f1", "lesion_count_difference")},
        "volume_difference": float(abs(fp - fn) * voxel_cm3(spacing_mm)),
        **lesions,  # the two above keep their places
    }


def surface_scores(prediction: np.ndarray, target: np.ndarray, spacing_mm: Spacing | None) -> dict[str, float]:
    """Distances in mm between the surfaces of two bool masks; NaN if the spacing is unknown or a mask is empty.

    ``hd95`` is the larger of the two directed 95th percentiles, ``assd`` the mean over both surfaces.
    """
    if spacing_mm is None or not prediction.any() or not target.any():
        return {"hd95": np.nan, "assd": np.nan}
    # Imported here: they take seconds, and who asks for the size bins has no use for them.
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    # One channel that is foreground: (B, C, D, H, W) with no background to leave out. Masks may end at the border
    # of the array: MONAI puts a margin of background around them before it looks for surfaces.
    first, second = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, target))
    spacing = list(spacing_mm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        hd95 = compute_hausdorff_distance(first, second, include_background=True, percentile=95, spacing=spacing)
        assd = compute_average_surface_distance(first, second, include_background=True, symmetric=True, spacing=spacing)
    return {"hd95": float(hd95), "assd": float(assd)}


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
