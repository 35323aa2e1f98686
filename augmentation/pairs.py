"""Which sick slices are like which healthy ones: by brain outline (IoU), by structure (SSIM), and close in depth.

An upper bound of the IoU from coarse descriptors rules most unlike ones out, without loss, before a voxel is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from skimage.metrics import structural_similarity

from utils.settings import option
from utils.validators import fraction, non_negative_int

CELLS = 12  # along each side of the coarse grid that the brain's voxels are counted on
LEAST_BRAIN = 0.2  # of the largest slice of its volume: the tips of the brain are no place for most lesions
CANDIDATES = 32  # sick slices that are looked at for a healthy one: the cost grows with the scans, not their square
PARTNERS = 3  # after so many the search ends: one of them lends, drawn at random


@dataclass(frozen=True)
class Criteria:
    """Pairs of a healthy and a sick slice."""

    min_iou: float = option(fraction, "least overlap of the brain masks", 0.8)
    min_ssim: float = option(fraction, "least structural similarity of the slices, each scaled to [0, 1]", 0.5)
    max_depth_difference: int = option(non_negative_int, "slices that the two may be apart", 30)


@dataclass(frozen=True)
class SliceIndex:
    """Slices of a cohort, a row each: volume (N,) and z (N,) int, sick (N,) bool, cells (N, CELLS ** 2) int."""

    volume: np.ndarray
    z: np.ndarray
    sick: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class Pair:
    """A healthy and a sick slice: rows of the index, and how alike they are."""

    healthy: int
    sick: int
    iou: float
    ssim: float


def index_slices(volume: int, brain: np.ndarray, lesion: np.ndarray) -> SliceIndex:
    """The slices of masks (D, H, W) bool with at least `LEAST_BRAIN` of the brain of the largest one."""
    areas = brain.sum((1, 2))
    z = np.flatnonzero((areas > 0) & (areas >= LEAST_BRAIN * areas.max()))
    sick = np.asarray(lesion[z].any((1, 2)))
    return SliceIndex(np.full(len(z), volume), z, sick, count_cells(brain[z]))


def join(indices: list[SliceIndex]) -> SliceIndex:
    return SliceIndex(*(np.concatenate([getattr(i, n) for i in indices]) for n in ("volume", "z", "sick", "cells")))


def count_cells(masks: np.ndarray) -> np.ndarray:
    """Voxels of (N, H, W) bool in each cell of a grid of `CELLS` by `CELLS`, (N, CELLS ** 2) int32."""
    edges = [np.linspace(0, size, CELLS + 1).astype(int)[:-1] for size in masks.shape[1:]]
    rows = np.add.reduceat(masks.astype(np.int32), edges[0], axis=1)
    return np.add.reduceat(rows, edges[1], axis=2).reshape(len(masks), -1)


def iou_bound(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest IoU that a mask can have with others of these counts, (CELLS ** 2,) and (N, CELLS ** 2).

    In each cell the smaller count may overlap wholly.
    """
    return np.minimum(cells, others).sum(1) / np.maximum(np.maximum(cells, others).sum(1), 1)


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return int(np.count_nonzero(mask & other)) / max(int(np.count_nonzero(mask | other)), 1)


def find_pairs(
    index: SliceIndex,
    healthy: np.ndarray,
    donors: np.ndarray,
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    criteria: Criteria,
) -> list[Pair]:
    """Sick partners of healthy slices, the likeliest first for each.

    Args:
        healthy: rows of the slices that look for partners.
        donors: (N,) bool, which rows may be partners.
        read: from a row to its slice (H, W) in [0, 1] and its brain mask (H, W) bool.
    """
    pairs: list[Pair] = []
    for row in healthy:
        near = np.abs(index.z - index.z[row]) <= criteria.max_depth_difference
        possible = np.flatnonzero(index.sick & donors & near)
        looked_at = rng.permutation(possible)[:CANDIDATES]
        bounds = iou_bound(index.cells[row], index.cells[looked_at])
        promising = looked_at[bounds >= criteria.min_iou][np.argsort(-bounds[bounds >= criteria.min_iou])]
        pairs += islice(_partners(row, promising, read, criteria), PARTNERS)
    return pairs


def _partners(row: int, promising: np.ndarray, read: Callable, criteria: Criteria) -> Iterator[Pair]:
    image, brain = read(row)
    for sick in promising:
        other_image, other_brain = read(sick)
        if (overlap := iou(brain, other_brain)) >= criteria.min_iou:
            likeness = structural_similarity(image, other_image, data_range=1.0)
            if likeness >= criteria.min_ssim:
                yield Pair(int(row), int(sick), overlap, float(likeness))
