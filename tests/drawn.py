"""Small drawings that stand for scans."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data.batches.datamodules import TrainingData
from data.files.nifti import affine_of
from data.files.space import Space
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.open import Cohort, Facts
from data.scans.prepared import PreparedScan

SHAPE = (3, 4, 5)  # of masks that one can check by eye


def mask_of(*voxels, shape=SHAPE):
    """A mask (D, H, W) with these voxels alone."""
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def prepared(name: str, scan: np.ndarray, brain: np.ndarray, mask: np.ndarray | None = None) -> PreparedScan:
    """A scan (C, D, H, W) on the networks' grid, which is its own and of unknown voxel size."""
    space = Space(brain.shape, affine_of((1, 1, 1)))
    return PreparedScan(name, "1", scan, brain, mask, space, space, False)


def trained_on(data: TrainingData) -> list:
    """The batches of an epoch as Lightning hands them to a network in training."""
    data.trainer = SimpleNamespace(training=True)
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def ball(shape=(24, 30, 26), radius=9.0, noise=1.0, seed=0, middle=(0, 0, 0)):
    """A head-like ball of tissue 60 around CSF 15 in noisy air; returns the scan (D, H, W) and the true head.

    Args:
        middle: (D, H, W) in voxels from the middle of the field of view.
    """
    centre = (np.array(shape) - 1) / 2 + middle
    distance = np.linalg.norm(np.indices(shape) - centre[:, None, None, None], axis=0)
    scan = np.where(distance < radius, 60.0, 0.0)
    scan[distance < 3] = 15
    rng = np.random.default_rng(seed)
    return np.abs(scan + rng.normal(0, noise, shape)).astype(np.float32), distance < radius


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def admit(
    cases: list[Case], grid: Grid, brains: Path, num_workers: int = 0, cache_dir: Path | None = None
) -> dict[Case, Facts]:
    return Cohort((cases,), grid, brains=brains, cache_dir=cache_dir).admit(num_workers)
