"""Lesions cut out of a donor, varied at random, and fitted into the brain of a recipient, in 2D and 3D alike."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from data.batches.tissue import lesion_width, surrounding_tissue
from data.files.space import cut
from utils.regions.region import bounding_box, box_around

# Ventricles are deeper inside the brain than the sulci, which are as dark: this share of the deepest voxel's depth.
VENTRICLE_DEPTH = 0.35
LEAST_KEPT = 0.5  # of a lesion that does not fit whole; with less it would be another lesion
PLACES = 20  # random places in which a lesion is tried before it is given up


@dataclass(frozen=True)
class Lesion:
    """A lesion with the tissue around it."""

    patch: np.ndarray  # (C, [D,] h, w) intensities
    tissue: np.ndarray  # of that shape, the patch as it may have looked without the lesion
    mask: np.ndarray  # ([D,] h, w) bool
    centre: tuple[float, ...]  # of the patch in its slice or volume, in voxels


def cut_lesion(image: np.ndarray, mask: np.ndarray, healthy: np.ndarray) -> Lesion:
    """Cut a lesion out of an image (C, [D,] H, W) with enough around it to turn it in plane, and a voxel of margin.

    `mask`, not empty, and `healthy`, the brain without lesions, are ([D,] H, W) bool. Beyond it the border goes on.
    """
    spans = bounding_box(mask)
    reach = [span.stop - span.start for span in spans]
    reach[-2:] = [int(np.ceil(np.hypot(*reach[-2:])))] * 2
    starts = [(span.start + span.stop - size) // 2 - 1 for span, size in zip(spans, reach, strict=True)]
    shape = [size + 2 for size in reach]
    lesion, known = cut(mask, starts, shape), cut(healthy, starts, shape)
    ranges = zip(starts, shape, mask.shape, strict=True)
    nearest = np.ix_(*(np.arange(start, start + size).clip(0, n - 1) for start, size, n in ranges))
    patch = np.stack([channel[nearest] for channel in image])
    values, healthy_there = torch.from_numpy(patch.astype(np.float32)), torch.from_numpy(known)[None]
    tissue = surrounding_tissue(values[None], healthy_there[None], [lesion_width(lesion)])[0].numpy()
    centre = tuple(start + (size - 1) / 2 for start, size in zip(starts, shape, strict=True))
    return Lesion(patch, tissue, lesion, centre)


def vary(
    lesion: Lesion, rng: np.random.Generator, max_angle: float, min_scale: float, max_erosion: int
) -> tuple[Lesion, dict]:
    """Turn a lesion in plane, shrink it and erode it, by random amounts; the varied lesion and these amounts.

    Args:
        max_angle: in degrees, to either side; drawn evenly.
        min_scale: (0 to 1], least ratio of the new diameter to the old one; its logarithm is drawn evenly.
        max_erosion: in voxels, drawn evenly; less is taken off where nothing would be left.
    """
    angle, scale = float(rng.uniform(-max_angle, max_angle)), float(min_scale ** rng.random())
    moved = turn_and_shrink(lesion, angle, scale)
    depth = ndimage.distance_transform_cdt(np.pad(moved.mask, 1), "taxicab")[(slice(1, -1),) * moved.mask.ndim]
    erosion = min(int(rng.integers(max_erosion + 1)), int(depth.max()) - 1)
    return replace(moved, mask=depth > erosion), {"angle": angle, "scale": scale, "erosion": erosion}


def turn_and_shrink(lesion: Lesion, angle: float, scale: float) -> Lesion:
    """The lesion turned in plane by degrees and `scale` times as wide, in its window; the same if nothing stays."""
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    matrix = np.eye(lesion.mask.ndim)
    matrix[-2:, -2:] = [[cosine, sine], [-sine, cosine]]
    matrix /= scale
    middle = (np.array(lesion.mask.shape) - 1) / 2
    offset = middle - matrix @ middle
    resample = partial(ndimage.affine_transform, matrix=matrix, offset=offset, order=1, mode="nearest")
    mask = resample(lesion.mask.astype(np.float32)) >= 0.5
    if not mask.any():
        return lesion
    patch, tissue = (np.stack([resample(channel) for channel in part]) for part in (lesion.patch, lesion.tissue))
    return replace(lesion, patch=patch, tissue=tissue, mask=mask)


def place(lesion: Lesion, centre: tuple[float, ...], allowed: np.ndarray) -> tuple[Lesion, tuple[slice, ...]] | None:
    """Fit a lesion into a recipient, about a centre in voxels, where it may be by `allowed`, ([D,] H, W) bool.

    Returns:
        What fits of the lesion, its mask not empty, its centre where whole voxels put it, and the window of the
        recipient that it belongs to; None where less than `LEAST_KEPT` of it may stay.
    """
    shape = np.array(lesion.mask.shape)
    start = np.round(np.array(centre) - (shape - 1) / 2).astype(int)
    low, high = np.clip([start, start + shape], 0, allowed.shape)
    target, source = tuple(map(slice, low, high)), tuple(map(slice, low - start, high - start))
    mask = lesion.mask[source] & allowed[target]
    if mask.sum() < max(LEAST_KEPT * lesion.mask.sum(), 1):
        return None
    every = (slice(None), *source)
    whole_voxels = tuple(start + (shape - 1) / 2)
    placed = replace(lesion, patch=lesion.patch[every], tissue=lesion.tissue[every], mask=mask, centre=whole_voxels)
    return placed, target


def place_anywhere(
    lesion: Lesion, allowed: np.ndarray, rng: np.random.Generator
) -> tuple[Lesion, tuple[slice, ...]] | None:
    """`place` a lesion at a random voxel of those where it may be; None where none of `PLACES` gives it room.

    Every slice is as likely, so that the small ones near the vertex and the temporal poles get lesions too.
    """
    voxels = np.flatnonzero(allowed)
    chance = 1 / np.broadcast_to(allowed.sum((-2, -1), keepdims=True), allowed.shape)[allowed]
    for voxel in rng.choice(voxels, PLACES, p=chance / chance.sum()) if len(voxels) else ():
        if (placed := place(lesion, np.unravel_index(voxel, allowed.shape), allowed)) is not None:
            return placed
    return None


def allowed_region(image: np.ndarray, brain: np.ndarray, inner: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Where a new lesion may be, ([D,] H, W) bool: in the `inner` brain, but for ventricles and the lesions it has."""
    allowed = np.zeros(brain.shape, bool)
    box = box_around(brain)  # the air around it takes most of the time
    allowed[box] = inner[box] & ~ventricles(image[box], brain[box]) & ~ndimage.binary_dilation(lesion[box])
    return allowed


def ventricles(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Dark voxels deep inside the brain: the CSF of the ventricles on T1w, FLAIR and DWI, and old cavities."""
    try:  # the darkest of three classes (multi-level Otsu) is CSF
        darkest = threshold_multiotsu(image[brain], 3)[0] if brain.any() else -np.inf
    except ValueError:  # fewer than three different values
        return np.zeros(brain.shape, bool)
    depth = ndimage.distance_transform_edt(brain)
    return ndimage.binary_opening(brain & (image < darkest) & (depth > VENTRICLE_DEPTH * depth.max()))
