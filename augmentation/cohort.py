"""The scans that give and take lesions, and which sick slices are like which healthy ones.

They are alike by brain outline (IoU, most are ruled out by a bound of it), by structure (SSIM), and close in depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from skimage.metrics import structural_similarity

from data.scans.checks import read_scan
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.head import PERCENTILES
from data.scans.open import Cohort
from data.scans.prepared import cached_scan
from utils.errors import UserError
from utils.progress import map_in_order
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
class Scan:
    """A scan that gives or takes lesions."""

    case: Case
    image: np.ndarray  # (C, D, H, W) float32 in its own units
    low: np.ndarray  # (C,) 1st percentile of its brain
    contrast: np.ndarray  # (C,) from there to the 99th
    brain: np.ndarray  # (D, H, W) bool
    lesions: np.ndarray  # likewise
    scaled: np.ndarray  # (D, H, W) float16 in [0, 1], the first channel

    @cached_property
    def healthy(self) -> np.ndarray:
        """(D, H, W) bool, the brain without lesions and their rims of partial volume."""
        return self.brain & ~ndimage.binary_dilation(self.lesions)

    @cached_property
    def inner(self) -> np.ndarray:
        """(D, H, W) bool, the brain without 2 voxels at its surface, which near the vertex lies flat in a slice."""
        return ndimage.binary_erosion(self.brain, iterations=2)

    @cached_property
    def usual_step(self) -> np.ndarray:
        """(C,) 95th percentile of the steps between neighbours in plane, in healthy brain: a larger one shows."""
        steps = []
        for axis in (-2, -1):
            both = sliding_window_view(self.healthy, 2, axis).all(-1)
            steps.append(np.abs(np.diff(self.image, axis=axis))[:, both])
        return np.percentile(np.concatenate(steps, 1), 95, axis=1)


@dataclass(frozen=True)
class SliceIndex:
    """Slices of a cohort, a row each: volume (N,) and z (N,) int, sick (N,) bool, cells (N, CELLS ** 2) int."""

    volume: np.ndarray
    z: np.ndarray
    sick: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class IndexedCohort:
    """A cohort kept prepared, and which of its slices may lend to which."""

    cohort: Cohort
    index: SliceIndex

    @property
    def cases(self) -> list[Case]:
        return self.cohort.cases

    def load(self, volume: int) -> Scan:
        return load_scan(self.cases[volume], self.cohort.grid, self.cohort.cache_dir)

    def slice_of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A row's slice (H, W) in [0, 1] and its brain mask (H, W) bool."""
        scan, z = self.load(self.index.volume[row]), self.index.z[row]
        return scan.scaled[z].astype(np.float32), scan.brain[z]


@lru_cache(maxsize=12)
def load_scan(case: Case, grid: Grid, cache_dir: Path) -> Scan:
    prepared, image = cached_scan(case, grid, cache_dir), read_scan(case)
    low, high = np.percentile(image[:, prepared.brain], PERCENTILES, axis=1)
    return Scan(case, image, low, high - low, np.array(prepared.brain), np.array(prepared.mask), prepared.scan[0])


def index_cohort(cohort: Cohort, num_workers: int) -> IndexedCohort:
    """Describe the slices of a cohort that is kept prepared."""
    work, n = partial(_index_case, cohort=cohort), len(cohort.cases)
    index = join(list(map_in_order(work, range(n), num_workers, "Describing slices")))
    if not index.sick.any():
        raise UserError("no mask of --masks_dir holds a lesion that could be moved; add scans with lesions")
    return IndexedCohort(cohort, index)


def _index_case(number: int, cohort: Cohort) -> SliceIndex:
    prepared = cohort.prepare(cohort.cases[number])
    return index_slices(number, prepared.brain, np.asarray(prepared.mask))


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
    """The largest IoU that a mask can have with others of these counts, (CELLS ** 2,) and (N, CELLS ** 2)."""
    # In each cell the smaller count may overlap wholly.
    return np.minimum(cells, others).sum(1) / np.maximum(np.maximum(cells, others).sum(1), 1)


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return int(np.count_nonzero(mask & other)) / max(int(np.count_nonzero(mask | other)), 1)


@dataclass(frozen=True)
class Pair:
    """A healthy and a sick slice: rows of the index, and how alike they are."""

    healthy: int
    sick: int
    iou: float
    ssim: float


def find_pairs(
    index: SliceIndex,
    healthy: int,
    donors: np.ndarray,
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    criteria: Criteria,
) -> list[Pair]:
    """Sick partners of a healthy slice, the likeliest first.

    Args:
        healthy: row of the slice.
        donors: (N,) bool, which rows may be partners.
        read: from a row to its slice (H, W) in [0, 1] and its brain mask (H, W) bool.
    """
    near = np.abs(index.z - index.z[healthy]) <= criteria.max_depth_difference
    looked_at = rng.permutation(np.flatnonzero(index.sick & donors & near))[:CANDIDATES]
    bounds = iou_bound(index.cells[healthy], index.cells[looked_at])
    pairs: list[Pair] = []
    image, brain = read(healthy)
    for sick in looked_at[bounds >= criteria.min_iou][np.argsort(-bounds[bounds >= criteria.min_iou])]:
        other_image, other_brain = read(sick)
        if (overlap := iou(brain, other_brain)) >= criteria.min_iou:
            likeness = structural_similarity(image, other_image, data_range=1.0)
            if likeness >= criteria.min_ssim:
                pairs.append(Pair(int(healthy), int(sick), overlap, float(likeness)))
        if len(pairs) == PARTNERS:
            break
    return pairs
