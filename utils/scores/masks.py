"""Masks (D, H, W): decided from probabilities, and what two of them share, in voxels and connected components, lesions.

Without pandas, for the runner. `models.training.strokeformer` chooses the `Decision`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.special import logit

from utils.regions.region import UNKNOWN_EVIDENCE, bounding_box

OVERLAP_SCORES = ("dice", "iou", "precision", "recall", "f1", "mcc")
SIX_CONNECTED = ndimage.generate_binary_structure(3, 1)  # voxels that share a face
TWENTY_SIX_CONNECTED = np.ones((3, 3, 3), bool)  # or an edge or a corner: what "a lesion" means unless said otherwise
Spacing = tuple[float, float, float]  # size of a voxel along (D, H, W) in mm
TELLING = (1e-3, 1 - 1e-6)  # probabilities between which log odds say more than their rounding


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


@dataclass(frozen=True)
class Components:
    """The components of a target and a prediction, in the smallest box around both."""

    true: np.ndarray  # (D, H, W) int32 labels, 0 for background
    predicted: np.ndarray
    corner: np.ndarray  # (3,) first voxel of the box
    # (1 + true, 1 + predicted components) int64, the voxels of each pair. Row and column 0 are what lies in none, so
    # that a row sums to the size of a lesion and a column to that of a predicted component.
    shared: np.ndarray

    @property
    def common(self) -> np.ndarray:
        """`shared` without the background."""
        return self.shared[1:, 1:]

    @property
    def true_voxels(self) -> np.ndarray:
        return self.shared[1:].sum(1)

    @property
    def predicted_voxels(self) -> np.ndarray:
        return self.shared[:, 1:].sum(0)

    @property
    def found(self) -> np.ndarray:
        """Which lesions have a predicted voxel, (true components,) bool."""
        return np.count_nonzero(self.common, axis=1) > 0

    @property
    def false(self) -> np.ndarray:
        """Which predicted components have no voxel of a lesion, (predicted components,) bool."""
        return np.count_nonzero(self.common, axis=0) == 0

    @property
    def box(self) -> tuple[slice, ...]:
        """Index of the box in the volume."""
        return tuple(slice(first, first + side) for first, side in zip(self.corner, self.predicted.shape, strict=True))


def find_components(
    prediction: np.ndarray, target: np.ndarray, connectivity: np.ndarray = TWENTY_SIX_CONNECTED
) -> Components:
    """Components of two masks, bool or uint8, and the voxels that they share; ValueError where their shapes differ."""
    prediction, target = as_masks(prediction=prediction, target=target)
    either = prediction | target
    box = bounding_box(either)
    true, n_true = ndimage.label(target[box], connectivity)
    predicted, n_predicted = ndimage.label(prediction[box], connectivity)
    inside, width = either[box], n_predicted + 1
    pairs = true[inside].astype(np.int64) * width + predicted[inside]
    shared = np.bincount(pairs, minlength=(n_true + 1) * width).reshape(-1, width)
    return Components(true, predicted, np.array([span.start for span in box]), shared)


def lesion_load(mask: np.ndarray, spacing_mm: Spacing | None) -> tuple[int, float]:
    """Number of the lesions of a (D, H, W) bool mask, 26-connected, and their volume in cm3; NaN without spacing."""
    _, n_lesions = ndimage.label(mask[bounding_box(mask)], TWENTY_SIX_CONNECTED)
    return n_lesions, float(np.count_nonzero(mask) * voxel_cm3(spacing_mm))


def voxel_cm3(spacing_mm: Spacing | None) -> float:
    """Volume of a voxel; NaN where its size is unknown."""
    return np.nan if spacing_mm is None else float(np.prod(spacing_mm)) / 1000


class Features(NamedTuple):
    """What is known of components, (N,) arrays: volume, largest and mean probability, and the evidence of stage 1.

    That is the largest one of the detections that a component touches; 0 where it touches none.
    """

    volume_cm3: np.ndarray
    peak: np.ndarray
    mean: np.ndarray
    evidence: np.ndarray

    @property
    def logs(self) -> np.ndarray:
        """(N, 4): the logarithms of volumes, the log odds of the rest."""
        odds = [logit(np.clip(values, *TELLING)) for values in self[1:]]
        return np.stack([np.log(self.volume_cm3), *odds], 1)


def features_of(
    labels: np.ndarray, probability: np.ndarray, evidence: np.ndarray | None, spacing_mm: Spacing
) -> Features:
    """Features of labelled components, given maps in [0, 1], all (D, H, W); `evidence` is None without stage 1."""
    numbers = np.arange(1, labels.max(initial=0) + 1)
    volumes = np.bincount(labels.ravel(), minlength=len(numbers) + 1)[1:] * voxel_cm3(spacing_mm)
    if not len(numbers):
        return Features(*[volumes] * 4)
    peaks, means = (np.asarray(of(probability, labels, numbers)) for of in (ndimage.maximum, ndimage.mean))
    if evidence is None:
        return Features(volumes, peaks, means, np.full(len(numbers), UNKNOWN_EVIDENCE))
    return Features(volumes, peaks, means, np.asarray(ndimage.maximum(evidence, labels, numbers)))


@dataclass(frozen=True)
class Decision:
    """What is lesion, given its probability.

    A component without a detection of stage 1 is none either. Regions are larger than detections, to show stage 2 what
    is around a lesion, and what only one stage detects is seldom one: on 60 synthetic heads unlike the training's the
    false lesions fell from 0.82 to 0.50 a scan, and no Dice was lost (docs/peers.md).
    """

    threshold: float = 0.5  # of a voxel's probability of any lesion, in [0, 1]
    smallest_cm3: float = 0.0  # volume below which a 26-connected component is none
    # Of a logistic regression on `Features.logs`, its constant first: a component of negative log odds is none.
    weights: tuple[float, ...] = ()

    def classes(self, probabilities: np.ndarray, spacing_mm: Spacing, evidence: np.ndarray | None = None) -> np.ndarray:
        """The class of each voxel, (D, H, W) uint8, of class probabilities (K, D, H, W); class 0 is background.

        `evidence` is that of stage 1, (D, H, W) in [0, 1] (`evidence_map`), or None without it.
        """
        probability = 1 - probabilities[0]
        lesion = probability > self.threshold
        if self.smallest_cm3 or self.weights or evidence is not None:
            box = bounding_box(lesion)
            labels, _ = ndimage.label(lesion[box], TWENTY_SIX_CONNECTED)
            own = None if evidence is None else evidence[box]
            valid = self.accepts(features_of(labels, probability[box], own, spacing_mm))
            lesion[box] &= np.append(False, valid)[labels]
        classes = lesion.astype(np.uint8)
        classes[lesion] += probabilities[1:, lesion].argmax(0).astype(np.uint8)
        return classes

    def accepts(self, components: Features) -> np.ndarray:
        """Which components are lesions, (N,) bool."""
        valid = (components.volume_cm3 >= self.smallest_cm3) & (components.evidence > 0)
        if self.weights:
            valid &= self.weights[0] + components.logs @ np.array(self.weights[1:]) >= 0
        return valid


def lesion_probability(probabilities: np.ndarray) -> np.ndarray:
    """Of any lesion, (D, H, W) in [0, 1], given class probabilities (K, D, H, W); class 0 is background."""
    return np.clip(1 - probabilities[0], 0, 1)
