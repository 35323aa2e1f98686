"""3D sub-volumes for stage 2: windows drawn over training scans and laid over validation regions.

An item of either data set is a dict of arrays of the window's size: ``image`` (C, D, H, W) float32, context included,
``mask`` (1, D, H, W) uint8, ``region`` (1, D, H, W) uint8 telling which voxels count, and ``has_lesion`` float32.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from data.batches.context import Start, cut_mirrored, join_channels, read_window
from data.batches.sampling import item_rng
from data.batches.transforms import apply_transforms, build_transforms
from data.files.space import cut
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, cached_scan
from utils.regions.region import Region, bounding_region, whole_volume

# What training windows lie about, in turn, so that every batch holds as much of each.
ABOUT = ("lesion", "brain", "lesion", "region")
# A training window may leave what it lies about by this share of its size: the network shall not learn that a lesion
# always sits in the middle.
JITTER = 0.3
TRIALS = 100  # to hit the brain of a box; where less than a thirtieth of it is brain, any voxel may be taken


@dataclass
class WindowCutter:
    """Cuts windows out of the scans of a cohort.

    grid, cache_dir: of the prepared scans.
    window: size (D, H, W) of a window in voxels.
    context: further channels of a window, ``mirror`` and ``position`` (`data.batches.context`).
    """

    grid: Grid
    window: tuple[int, int, int]
    cache_dir: Path
    context: Sequence[str] = ()
    brains: dict[str, Region] = field(default_factory=dict)

    def prepared(self, case: Case) -> PreparedScan:
        return cached_scan(case, self.grid, self.cache_dir)

    def cut(self, prepared: PreparedScan, start: Start, regions: list[Region] | None) -> dict[str, np.ndarray]:
        """A window of a scan, zero-padded behind where the volume ends.

        Args:
            regions: whose brain counts; None for all brain.

        Returns:
            The parts that `read_window` gives, ``mask`` and ``region``; with a mirror image there is also
            the ``mirror_mask`` of its lesions.
        """
        brain = self._brain_box(prepared) if self.context else None
        item = read_window(prepared.scan, start, self.window, self.context, brain)
        masks = {"mask": cut(prepared.mask, start, self.window)}
        if "mirror" in self.context:
            masks["mirror_mask"] = cut_mirrored(prepared.mask, start, self.window, brain)
        masks["region"] = cut(prepared.brain, start, self.window)
        if regions is not None:
            masks["region"] &= _seen_from(regions, start, self.window)
        return {**item, **{name: mask[None].astype(np.uint8) for name, mask in masks.items()}}

    def _brain_box(self, prepared: PreparedScan) -> Region:
        """The bounding box of a brain, looked for once: that reads the whole mask."""
        if prepared.name not in self.brains:
            self.brains[prepared.name] = bounding_region(prepared.brain)
        return self.brains[prepared.name]


def _seen_from(regions: list[Region], start: Start, window: tuple[int, int, int]) -> np.ndarray:
    """Which voxels of the window that begins at `start` are in a region, (D, H, W) bool."""
    inside = np.zeros(window, bool)
    for region in regions:
        spans = zip(region.slices, start, strict=True)
        inside[tuple(slice(max(span.start - first, 0), max(span.stop - first, 0)) for span, first in spans)] = True
    return inside


def _item(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask, region = parts["mask"], parts["region"]
    return {
        "image": join_channels(parts),
        "mask": mask,
        "region": region,
        "has_lesion": np.float32((mask * region).any()),
    }


# --- training ------------------------------------------------------------------------------------------


class TrainingWindows(Dataset):
    """Windows drawn anew each epoch about lesions, about proposed regions and anywhere in the brain, and augmented.

    Not in the proposed regions alone: those of training scans are better than any to come, since stage 1 has learned
    from these scans, and few. All brain of a window counts.

    Args:
        regions: proposed regions by scan file name; None for none.
        length: windows an epoch.
    """

    def __init__(
        self,
        cases: list[Case],
        regions: dict[str, list[Region]] | None,
        cutter: WindowCutter,
        length: int,
        transforms: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.cutter, self.length, self.seed = cutter, length, seed
        self.regions = regions or {}
        self.transforms = build_transforms(transforms, spatial_dims=3)
        proposed = [case for case in cases if self.regions.get(case.name)]
        sick = [case for case in cases if cutter.prepared(case).mask.any()]
        self.cases = {"lesion": sick or cases, "region": proposed or cases, "brain": cases}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, index = key
        rng = item_rng(self.seed, epoch, index)
        about = ABOUT[index % len(ABOUT)]
        case = self.cases[about][rng.integers(len(self.cases[about]))]
        prepared = self.cutter.prepared(case)
        middle = self._middle(about, case, prepared, rng)
        parts = self.cutter.cut(prepared, _start_about(middle, self.cutter.window, prepared.brain.shape, rng), None)
        return _item(apply_transforms(self.transforms, parts, rng))

    def _middle(self, about: str, case: Case, prepared: PreparedScan, rng: np.random.Generator) -> np.ndarray:
        """The voxel (3,) that a window lies about; one of the brain where the scan has nothing of what is asked for."""
        if about == "lesion" and len(voxels := np.flatnonzero(prepared.mask)):
            return np.array(np.unravel_index(voxels[rng.integers(len(voxels))], prepared.mask.shape))
        regions = self.regions.get(case.name) if about == "region" else None
        box = regions[rng.integers(len(regions))] if regions else whole_volume(prepared.brain.shape)
        return _brain_voxel(prepared.brain, box, rng)


def _brain_voxel(brain: np.ndarray, box: Region, rng: np.random.Generator) -> np.ndarray:
    """A random voxel (3,) of a box that is brain, by trial: to look for all of them would read the whole mask."""
    for _ in range(TRIALS):
        voxel = [rng.integers(span.start, span.stop) for span in box.slices]
        if brain[tuple(voxel)]:
            break
    return np.array(voxel)


def _start_about(middle: np.ndarray, window: tuple, shape: tuple, rng: np.random.Generator) -> Start:
    """Where a window begins that lies about a voxel, not quite in its middle; inside the volume where it fits in."""
    starts = []
    for voxel, roi, size in zip(middle, window, shape, strict=True):
        slack = round(JITTER * roi)
        start = voxel - roi // 2 + rng.integers(-slack, slack + 1)
        starts.append(int(min(max(start, 0), max(size - roi, 0))))
    return tuple(starts)


# --- validation ----------------------------------------------------------------------------------------


class RegionWindows(Dataset):
    """Windows laid over the proposed regions, the same each epoch; only the brain of regions counts.

    Args:
        regions: proposed regions by scan file name.
    """

    def __init__(self, cases: list[Case], regions: dict[str, list[Region]], cutter: WindowCutter) -> None:
        self.cutter, self.regions = cutter, regions
        self.windows = [
            (case, start)
            for case in cases
            for region in regions.get(case.name, [])
            for start in starts_over(region, cutter.window, cutter.grid.shape)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        case, start = self.windows[index]
        return _item(self.cutter.cut(self.cutter.prepared(case), start, self.regions[case.name]))


def starts_over(region: Region, window: tuple[int, int, int], shape: tuple[int, int, int]) -> list[Start]:
    """Windows that see a region once, spread evenly over it; a region smaller than a window is in the middle of one."""
    lines = []
    for span, roi, size in zip(region.slices, window, shape, strict=True):
        count, spare = math.ceil((span.stop - span.start) / roi), span.stop - span.start - roi
        first = [span.start + spare // 2] if count == 1 else np.linspace(0, spare, count).astype(int) + span.start
        lines.append([int(min(max(start, 0), max(size - roi, 0))) for start in first])
    return list(itertools.product(*lines))
