"""What two masks have in common: masks of one shape, counts of their voxels, and scores of such counts."""

import numpy as np
from numpy.typing import ArrayLike

OVERLAP_SCORES = ("dice", "iou", "precision", "recall", "f1", "mcc")


def as_masks(**masks: np.ndarray) -> list[np.ndarray]:
    """The named masks as bool; raises ValueError where their shapes differ."""
    shapes = {name: np.shape(mask) for name, mask in masks.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("masks differ in shape: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    return [np.asarray(mask).astype(bool, copy=False) for mask in masks.values()]


def count_overlap(prediction: np.ndarray, target: np.ndarray, axis: tuple[int, ...] | None = None) -> tuple:
    """True positives, false positives and false negatives of bool masks, summed over `axis`; None for all axes."""
    tp = np.count_nonzero(prediction & target, axis)
    return tp, np.count_nonzero(prediction, axis) - tp, np.count_nonzero(target, axis) - tp


def overlap_scores(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> dict[str, np.ndarray]:
    """Agreement of a prediction with a target from counts of voxels, or of lesions, in numbers or arrays.

    Without lesion and without prediction every score is 1, for there was nothing to find and nothing was found.
    Otherwise a score with denominator 0 is 0: a missed lesion has precision 0, a false alarm has recall 0.

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
