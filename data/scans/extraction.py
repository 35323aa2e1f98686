"""Brain extraction in any contrast: a small network on voxels of 3 mm, run by onnxruntime; see pretrained/README.md."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from data.files.space import Space, cut
from utils.onnx import open_network

NETWORK = Path(__file__).parents[2] / "pretrained/brain.onnx"
VOXEL_MM = 3.0
VIEW = (64, 56, 64)  # (D, H, W) voxels that the network has learned from: 192 x 168 x 192 mm about a brain
MULTIPLE = 8  # of it are the sides of a volume that the network takes
# Of a scan's voxels: intensities are scaled by these and clipped. A head is a tenth of them at least.
SCALE_PERCENTILES = (0.5, 99.5)
CERTAIN = 0.4  # at a half more lesions at the rim were lost: 1.3 % in place of 0.8 (docs/brain_and_grid.md)


def extract_brain(scan: np.ndarray, own: Space) -> np.ndarray:
    """The brain of a scan (D, H, W) of any contrast and units with or without its skull, bool; empty if it sees none.

    The network looks twice: at all, and at a `VIEW` about the brain that it has seen, without neck and far air. The
    probability is interpolated, not the mask: its border is smooth.
    """
    coarse = [round(n * mm / VOXEL_MM) or 1 for n, mm in zip(scan.shape, own.spacing_mm, strict=True)]
    steps = [VOXEL_MM / mm for mm in own.spacing_mm]
    small = scale(_interpolate(scan, [_weights(*sizes) for sizes in zip(scan.shape, coarse, steps, strict=True)]))
    first = brain_alone(brain_probability(small))
    probability = brain_alone(_look_again(small, first))
    back = [_weights(n, m, 1 / step) for n, m, step in zip(coarse, scan.shape, steps, strict=True)]
    return _interpolate(probability, back) > CERTAIN


def _look_again(image: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The probability of a brain in a `scale`d image, from a view about a first one; all (D, H, W)."""
    if not first.any():
        return first
    middle = ndimage.center_of_mass(first)
    corner = [round(centre - side / 2) for centre, side in zip(middle, VIEW, strict=True)]
    view = cut(image, corner, VIEW)
    return cut(brain_probability(scale(view)), [-start for start in corner], image.shape)


def brain_probability(image: np.ndarray) -> np.ndarray:
    """(D, H, W) in [0, 1] of an image `scale`d at `VOXEL_MM`."""
    padded = np.pad(image, [(0, -n % MULTIPLE) for n in image.shape])
    (logits,) = _network()(padded[None, None])
    d, h, w = image.shape
    return 1 / (1 + np.exp(-logits[0, 0, :d, :h, :w]))


def scale(image: np.ndarray) -> np.ndarray:
    """An image in any units as the network sees it: float32 in [0, 1]."""
    low, high = np.percentile(image, SCALE_PERCENTILES)
    return np.clip((image - low) / (high - low or 1), 0, 1).astype(np.float32)


def brain_alone(probability: np.ndarray) -> np.ndarray:
    """The probability (D, H, W) without what is apart from the largest component, its holes filled."""
    labels, n = ndimage.label(probability > CERTAIN)
    if not n:
        return np.zeros_like(probability)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    near = ndimage.binary_dilation(largest)  # with the border's own uncertain voxels
    holes = ndimage.binary_fill_holes(largest) & ~largest
    return np.where(holes, 1, np.where(near, probability, 0)).astype(np.float32)


def _weights(n: int, n_target: int, step: float) -> np.ndarray:
    """(n_target, n) of the voxels of a line in its linear interpolation, or where `step` voxels become one, their mean.

    Both lines have their middle in common; voxels beyond the end take its value.
    """
    places = (np.arange(n_target) - (n_target - 1) / 2) * step + (n - 1) / 2
    distance = np.abs(np.clip(places, 0, n - 1)[:, None] - np.arange(n))
    weights = np.clip(1 - distance / max(step, 1), 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _interpolate(volume: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """A product with a matrix along each axis; first along those that it shortens."""
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        matrix = weights[axis]
        if axis == 0:
            volume = (matrix @ volume.reshape(len(volume), -1)).reshape(len(matrix), *volume.shape[1:])
        else:
            volume = matrix @ volume if axis == 1 else volume @ matrix.T
    return volume


@lru_cache(maxsize=1)
def _network():
    return open_network(NETWORK, num_threads=1)  # a brain is the same on every machine
