"""Tissue as it may have looked without a lesion."""

import numpy as np
import torch
from scipy import ndimage

from utils.regions.region import bounding_box

REACH = 4  # standard deviations of a Gaussian, beyond which its weights are nothing


def surrounding_tissue(image: torch.Tensor, known: torch.Tensor, width: float) -> torch.Tensor:
    """Intensities (C, [D,] H, W), in any units, as the healthy tissue around suggests them.

    Each voxel is the mean of the `known` ones, healthy tissue, with Gaussian weights as wide as the lesion is thick
    (normalised convolution, Knutsson and Westin, 1993, doi 10.1109/CVPR.1993.341081).

    Args:
        known: (C or 1, [D,] H, W) bool.
        width: standard deviation in voxels.
    """
    weight, intensity = known.to(image.dtype), torch.where(known, image, 0)
    for axis, size in enumerate(image.shape[1:], 1):
        smoothing = _smoothing(size, width).to(image)
        weight, intensity = (
            torch.tensordot(v, smoothing, ([axis], [1])).movedim(-1, axis) for v in (weight, intensity)
        )
    return intensity / weight.clamp(min=1e-6)


def lesion_width(lesion: np.ndarray) -> float:
    """Radius in voxels of the largest ball in a mask ([D,] H, W) bool, and one more."""
    return float(ndimage.distance_transform_edt(lesion).max()) + 1


def lesion_surroundings(lesion: np.ndarray) -> tuple[float, tuple[slice, ...]]:
    """The `lesion_width`, and the part of the mask in which all tissue lies that then counts."""
    box = bounding_box(lesion)
    width = lesion_width(lesion[_grown(box, 1)])
    return width, _grown(box, round(REACH * width))


def _grown(box: tuple[slice, ...], margin: int) -> tuple[slice, ...]:
    return tuple(slice(max(span.start - margin, 0), span.stop + margin) for span in box)


def _smoothing(size: int, width: float) -> torch.Tensor:
    """Gaussian weights (size, size) of the voxels of an axis, which is mirrored at its ends."""
    at = torch.arange(size)
    one, other = at[:, None], at
    distances = torch.stack([one - other, one + other + 1, one + other + 1 - 2 * size])
    weights = (-0.5 * (distances / width) ** 2).exp().sum(0)
    return weights / weights.sum(1, keepdim=True)
