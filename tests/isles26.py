"""ISLES'26: the organisers' rules written anew, and 60 pairs of masks to hold the scores against."""

import numpy as np
from scipy import ndimage
from skimage.measure import label
from sklearn.metrics import auc, precision_recall_curve

COLUMNS = ("dice", "volume_difference", "lesion_count_difference", "lesion_f1_isles26", "pr_auc")
KINDS = ("touching", "tiny", "empty", "many", "large")
SHAPE = (14, 18, 16)


def organisers_scores(prediction, target, probability, spacing_mm):
    """`COLUMNS` by the rules of github.com/ezequieldlrosa/isles26, lesion by lesion, on masks of bool."""
    lesions, pieces = (label(mask, connectivity=3) for mask in (target, prediction))
    tp, n_lesions, n_pieces = len(matched(lesions, pieces)), lesions.max(), pieces.max()
    both_empty, voxels = n_lesions == n_pieces == 0, np.sum(target) + np.sum(prediction)
    if target.any():
        precision, recall, _ = precision_recall_curve(target.ravel(), probability.ravel())
        area = auc(recall, precision)
    else:
        area = float(len(np.unique(probability)) == 1)
    return {
        "dice": 1.0 if both_empty else 2 * np.sum(target & prediction) / voxels,
        "volume_difference": abs(np.sum(target) - np.sum(prediction)) * np.prod(spacing_mm) / 1000,
        "lesion_count_difference": abs(n_lesions - n_pieces),
        "lesion_f1_isles26": 1.0 if both_empty else tp / (tp + (n_pieces - tp) / 2 + (n_lesions - tp) / 2),
        "pr_auc": area,
    }


def matched(lesions, pieces):
    """Pairs of labels, one to one: of those with an IoU of 0.25 or more that with the highest, and so on."""
    candidates, pairs = [], []
    for j in range(1, pieces.max() + 1):
        for i in np.unique(lesions[(pieces == j) & (lesions > 0)]).tolist():
            iou = np.sum((lesions == i) & (pieces == j)) / np.sum((lesions == i) | (pieces == j))
            candidates.append((-iou, j, i))
    for iou, j, i in sorted(candidates):  # of equal ones the first component in order, as panoptica has it
        if iou <= -0.25 and not any(j == piece or i == lesion for lesion, piece in pairs):
            pairs.append((i, j))
    return pairs


def mask_pairs():
    """60 times a kind, a prediction and a target, bool, and a probability, float32 in [0, 1] with many ties."""
    for i in range(60):
        rng, kind = np.random.default_rng(i), KINDS[i % len(KINDS)]
        prediction, target = draw(kind, rng, i // len(KINDS))
        noise = ndimage.gaussian_filter(prediction + 0.4 * rng.random(SHAPE), 0.7)
        probability = np.where(noise > 0.25, np.round(np.clip(noise, 0, 1), 2), 0).astype(np.float32)
        yield kind, prediction, target, probability


def draw(kind, rng, number):
    """A prediction and a target of a kind; `number` counts those of the same kind."""
    prediction, target = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    if kind == "touching":  # rods that are broken elsewhere in each mask, so that pieces contend for a match
        for d, h in np.ndindex(4, 4):
            for mask in (prediction, target):
                mask[3 * d : 3 * d + 2, 4 * h : 4 * h + 2] = rng.random(SHAPE[2]) > 0.25
    elif kind == "tiny":
        target[tuple(rng.integers(0, SHAPE, (8, 3)).T)] = True
        prediction = ndimage.binary_dilation(target) & (rng.random(SHAPE) > 0.6)
    elif kind == "empty":
        sick = rng.random(SHAPE) > 0.99
        prediction, target = (sick & (number % 3 == 1)), (sick & (number % 3 == 2))
    else:
        smooth = 0.8 if kind == "many" else 3.0
        truth = ndimage.gaussian_filter(rng.standard_normal(SHAPE), smooth)
        guess = truth + 0.6 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), smooth)
        target, prediction = (field > 1.2 * field.std() for field in (truth, guess))
    return prediction, target
