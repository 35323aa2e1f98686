"""The scans that give and take lesions."""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from augmentation.pairs import SliceIndex, index_slices, join
from data.scans.checks import read_scan
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.head import PERCENTILES
from data.scans.open import Cohort
from data.scans.prepared import cached_scan
from utils.errors import UserError
from utils.progress import map_in_order


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
