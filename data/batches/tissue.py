"""Tissue as it may have looked without a lesion."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from utils.regions.region import box_around

REACH = 4  # standard deviations of a Gaussian, beyond which its weights are nothing


def surrounding_tissue(images: torch.Tensor, known: torch.Tensor, widths: Sequence[float]) -> torch.Tensor:
    """Intensities (B, C, [D,] H, W), in any units, as the healthy tissue around suggests them.

    Each voxel is the mean of the `known` ones, healthy tissue, with Gaussian weights as wide as the lesion is thick
    (normalised convolution, Knutsson and Westin, 1993, doi 10.1109/CVPR.1993.341081).

    Args:
        known: (B, C or 1, [D,] H, W) bool.
        widths: standard deviation in voxels for each of the B images.
    """
    weight, intensity = known.to(images.dtype), torch.where(known, images, 0)
    for axis, size in enumerate(images.shape[2:], 2):
        smoothing = _smoothing(size, widths).to(images)
        weight, intensity = (_smooth(v, smoothing, axis) for v in (weight, intensity))
    return intensity / weight.clamp(min=1e-6)


def _smooth(images: torch.Tensor, smoothing: torch.Tensor, axis: int) -> torch.Tensor:
    """Images (B, C, [D,] H, W), along an axis, with the weights (B, S, S) of its voxels."""
    lines = images.movedim(axis, -1)
    return (lines.flatten(1, -2) @ smoothing.mT).view(lines.shape).movedim(-1, axis)


def lesion_width(lesion: np.ndarray) -> float:
    """Radius in voxels of the largest ball in a mask ([D,] H, W) bool, and one more."""
    return float(ndimage.distance_transform_edt(lesion[box_around(lesion)]).max()) + 1


def _smoothing(size: int, widths: Sequence[float]) -> torch.Tensor:
    """For each of the widths, Gaussian weights (B, S, S) of the voxels of an axis, which is mirrored at its ends."""
    at = torch.arange(size)
    one, other = at[:, None], at
    distances = torch.stack([one - other, one + other + 1, one + other + 1 - 2 * size])
    weights = (-0.5 * (distances / torch.tensor(widths)[:, None, None, None]) ** 2).exp().sum(1)
    return weights / weights.sum(2, keepdim=True)
