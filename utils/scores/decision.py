"""What is lesion, given its probability. `models.segmentation.decisions` chooses it."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.scores.components import TWENTY_SIX_CONNECTED, voxel_cm3
from utils.scores.overlap import bounding_box


@dataclass(frozen=True)
class Decision:
    """What is lesion, given its probability.

    threshold: of a voxel's probability of any lesion, in [0, 1].
    smallest_cm3: volume below which a 26-connected component is none.

    A component is also none where stage 1 has seen nothing. Regions are larger than that, so that stage 2 sees what is
    around a lesion, and what only one of the two stages sees is seldom one: on 60 synthetic heads unlike the training's
    the false lesions fell from 0.82 to 0.50 a scan, and no Dice was lost (docs/peers.md).
    """

    threshold: float = 0.5
    smallest_cm3: float = 0.0

    def classes(
        self, probabilities: np.ndarray, spacing_mm: tuple[float, float, float], seen: np.ndarray | None = None
    ) -> np.ndarray:
        """The class of each voxel, (D, H, W) uint8, of class probabilities (K, D, H, W); class 0 is background.

        Args:
            seen: (D, H, W) bool, what a component must have a voxel of (`seen_on_own_grid`); None
                for anything.
        """
        lesion = 1 - probabilities[0] > self.threshold
        if self.smallest_cm3 or seen is not None:
            box = bounding_box(lesion)
            labels, count = ndimage.label(lesion[box], TWENTY_SIX_CONNECTED)
            kept = np.bincount(labels.ravel(), minlength=count + 1) * voxel_cm3(spacing_mm) >= self.smallest_cm3
            if seen is not None:
                kept &= np.isin(np.arange(count + 1), labels[seen[box]])
            lesion[box] &= kept[labels]
        return np.where(lesion, 1 + probabilities[1:].argmax(0), 0).astype(np.uint8)


def lesion_probability(probabilities: np.ndarray) -> np.ndarray:
    """Of any lesion, (D, H, W) in [0, 1], given class probabilities (K, D, H, W); class 0 is background."""
    return np.clip(1 - probabilities[0], 0, 1)
