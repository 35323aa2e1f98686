"""The scans that give and take lesions, and which sick slices are like which healthy ones.

They are alike by brain outline (IoU) and by structure (SSIM), and close in depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
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
class IndexedCohort:
    """A cohort kept prepared, and its slices (`index_slices`)."""

    cohort: Cohort
    index: pd.DataFrame

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
    index = pd.concat(map_in_order(work, range(n), num_workers, "Describing slices"), ignore_index=True)
    if not index.sick.any():
        raise UserError("no mask of --masks_dir holds a lesion that could be moved; add scans with lesions")
    return IndexedCohort(cohort, index)


def _index_case(number: int, cohort: Cohort) -> pd.DataFrame:
    prepared = cohort.prepare(cohort.cases[number])
    return index_slices(number, prepared.brain, np.asarray(prepared.mask))


def index_slices(number: int, brain: np.ndarray, lesion: np.ndarray) -> pd.DataFrame:
    """The slices of masks (D, H, W) bool with at least `LEAST_BRAIN` of the brain of the largest one.

    A row each: ``volume``, the number of the scan, ``z``, and ``sick``, whether it has lesion.
    """
    areas = brain.sum((1, 2))
    z = np.flatnonzero((areas > 0) & (areas >= LEAST_BRAIN * areas.max()))
    return pd.DataFrame({"volume": number, "z": z, "sick": lesion[z].any((1, 2))})


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
    index: pd.DataFrame,
    healthy: int,
    donors: np.ndarray,
    read: Callable[[int], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    criteria: Criteria,
) -> list[Pair]:
    """Sick partners of a healthy slice, those whose brains overlap most first.

    Args:
        healthy: row of the slice.
        donors: (N,) bool, which rows may be partners.
        read: from a row to its slice (H, W) in [0, 1] and its brain mask (H, W) bool.
    """
    near = (index.z - index.z[healthy]).abs() <= criteria.max_depth_difference
    looked_at = rng.permutation(np.flatnonzero(index.sick & donors & near))[:CANDIDATES]
    image, brain = read(healthy)
    others = [read(sick) for sick in looked_at]
    overlaps = np.array([iou(brain, other_brain) for _, other_brain in others])
    pairs: list[Pair] = []
    for i in np.argsort(-overlaps):
        if len(pairs) == PARTNERS or overlaps[i] < criteria.min_iou:
            break
        likeness = structural_similarity(image, others[i][0], data_range=1.0)
        if likeness >= criteria.min_ssim:
            pairs.append(Pair(int(healthy), int(looked_at[i]), float(overlaps[i]), float(likeness)))
    return pairs
