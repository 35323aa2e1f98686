"""Connected components of masks (D, H, W), lesions, and what two masks share of them; no pandas, for the runner."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.regions.region import bounding_box
from utils.scores.overlap import as_masks

SIX_CONNECTED = ndimage.generate_binary_structure(3, 1)  # voxels that share a face
TWENTY_SIX_CONNECTED = np.ones((3, 3, 3), bool)  # or an edge or a corner: what "a lesion" means unless said otherwise
Spacing = tuple[float, float, float]  # size of a voxel along (D, H, W) in mm


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

    def touching(self, mask: np.ndarray) -> np.ndarray:
        """Which predicted components have a voxel of a mask (D, H, W), (predicted components,) bool."""
        box = tuple(slice(first, first + side) for first, side in zip(self.corner, self.predicted.shape, strict=True))
        return np.isin(np.arange(1, self.shared.shape[1]), self.predicted[mask[box]])


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
