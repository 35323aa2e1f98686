"""What is lesion, given its probability. `models.segmentation.thresholds` chooses it."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.regions.region import bounding_box
from utils.scores.masks import TWENTY_SIX_CONNECTED, Spacing, voxel_cm3


@dataclass(frozen=True)
class Decision:
    """What is lesion, given its probability.

    threshold: of a voxel's probability of any lesion, in [0, 1].
    smallest_cm3: volume below which a 26-connected component is none.

    A component without a detection of stage 1 is none either. Regions are larger than detections, to show stage 2 what
    is around a lesion, and what only one stage detects is seldom one: on 60 synthetic heads unlike the training's the
    false lesions fell from 0.82 to 0.50 a scan, and no Dice was lost (docs/peers.md).
    """

    threshold: float = 0.5
    smallest_cm3: float = 0.0

    def classes(self, probabilities: np.ndarray, spacing_mm: Spacing, detected: np.ndarray | None = None) -> np.ndarray:
        """The class of each voxel, (D, H, W) uint8, of class probabilities (K, D, H, W); class 0 is background.

        Args:
            detected: (D, H, W) bool, of which a component must have a voxel (`detected_mask`); None for no such rule.
        """
        lesion = 1 - probabilities[0] > self.threshold
        if self.smallest_cm3 or detected is not None:
            box = bounding_box(lesion)
            labels, count = ndimage.label(lesion[box], TWENTY_SIX_CONNECTED)
            valid = np.bincount(labels.ravel(), minlength=count + 1) * voxel_cm3(spacing_mm) >= self.smallest_cm3
            if detected is not None:
                valid &= np.isin(np.arange(count + 1), labels[detected[box]])
            lesion[box] &= valid[labels]
        return np.where(lesion, 1 + probabilities[1:].argmax(0), 0).astype(np.uint8)


def lesion_probability(probabilities: np.ndarray) -> np.ndarray:
    """Of any lesion, (D, H, W) in [0, 1], given class probabilities (K, D, H, W); class 0 is background."""
    return np.clip(1 - probabilities[0], 0, 1)
