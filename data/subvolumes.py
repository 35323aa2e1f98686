"""3D sub-volumes for stage 2: windows of the RoI size inside the proposed regions."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from data.cohort import Case
from data.context import cut_mirrored, join_channels, read_window
from data.grid import Grid
from data.prepared import PreparedScan, cached_scan
from data.sampling import item_rng
from data.space import cut
from data.transforms import apply_transforms, build_transforms
from utils.regions.region import Region, bounding_region, whole_volume

# A training window may leave its region by this share of the RoI: the network shall not learn that a lesion
# always sits where the RPN centred it.
JITTER = 0.125
# In a region larger than the RoI, this share of the windows is centred on a lesion voxel where there is one.
LESION_SHARE = 0.5


class RegionDataset(Dataset):
    """Windows of the proposed regions of a cohort.

    An item is a dict of arrays of the RoI size: ``image`` (C, D, H, W) float32, context included, ``mask`` (1, D, H, W)
    uint8, ``region`` (1, D, H, W) uint8 telling which voxels of the brain were proposed, and ``has_lesion`` float32.

    Args:
        regions: proposed regions by scan file name; None for whole volumes.
        train: random windows and augmentation, against one fixed window in the middle of each region.
        context: further channels of a window, ``mirror`` and ``position`` (`data.context`).
    """

    def __init__(
        self,
        cases: list[Case],
        regions: dict[str, list[Region]] | None,
        grid: Grid,
        roi_size: tuple[int, int, int],
        cache_dir: Path,
        transforms: list[str] | None = None,
        train: bool = False,
        seed: int = 0,
        context: Sequence[str] = (),
    ) -> None:
        self.grid, self.roi_size, self.cache_dir = grid, roi_size, cache_dir
        self.train, self.seed, self.context = train, seed, context
        self.brains: dict[Case, Region] = {}
        self.regions = regions or {case.name: [whole_volume(grid.shape)] for case in cases}
        self.windows = [
            (case, region)
            for case in cases
            for region in self.regions.get(case.name, [])
            for _ in range(windows_of(region, roi_size))
        ]
        self.transforms = build_transforms(transforms if train else None, spatial_dims=3)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, index = key
        case, region = self.windows[index]
        rng = item_rng(self.seed, epoch if self.train else 0, index)
        prepared = cached_scan(case, self.grid, self.cache_dir)
        starts = window_start(prepared, region, self.roi_size, self.train, rng)
        brain = self._brain_box(case, prepared) if self.context else None
        item = cut_window(prepared, self.regions[case.name], starts, self.roi_size, self.context, brain)
        if self.train:
            item = apply_transforms(self.transforms, item, rng)
        mask, region = item["mask"], item["region"]
        has_lesion = np.float32((mask * region).any())
        return {"image": join_channels(item), "mask": mask, "region": region, "has_lesion": has_lesion}

    def _brain_box(self, case: Case, prepared: PreparedScan) -> Region:
        """The bounding box of a brain, looked for once: that reads the whole mask."""
        if case not in self.brains:
            self.brains[case] = bounding_region(prepared.brain)
        return self.brains[case]


def windows_of(region: Region, roi_size: tuple[int, int, int]) -> int:
    """How many windows of the RoI size it takes to see a region once."""
    return math.prod(math.ceil(size / roi) for size, roi in zip(region.shape, roi_size, strict=True))


def window_start(
    prepared: PreparedScan,
    region: Region,
    roi_size: tuple[int, int, int],
    train: bool,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """First voxel (D, H, W) of a window on a region, inside the volume where the volume is large enough."""
    focus = _lesion_voxel(prepared, region, rng) if train and windows_of(region, roi_size) > 1 else None
    starts = []
    for axis, (span, roi, size) in enumerate(zip(region.slices, roi_size, prepared.brain.shape, strict=True)):
        slack = round(JITTER * roi)
        low, high = sorted((span.start, span.stop - roi))
        if not train:
            start = (low + high) // 2
        elif focus is not None:
            start = focus[axis] - roi // 2 + rng.integers(-slack, slack + 1)
        else:
            start = rng.integers(low - slack, high + slack + 1)
        starts.append(int(min(max(start, 0), max(size - roi, 0))))
    return tuple(starts)


def _lesion_voxel(prepared: PreparedScan, region: Region, rng: np.random.Generator) -> np.ndarray | None:
    if rng.random() > LESION_SHARE:
        return None
    voxels = np.argwhere(prepared.mask[region.slices])
    if len(voxels) == 0:
        return None
    return voxels[rng.integers(len(voxels))] + [s.start for s in region.slices]


def cut_window(
    prepared: PreparedScan,
    regions: list[Region],
    starts: tuple[int, ...],
    roi_size: tuple[int, int, int],
    context: Sequence[str] = (),
    brain: Region | None = None,
) -> dict[str, np.ndarray]:
    """Cut a window out of a scan, zero-padded behind where the volume ends; only brain is inside a region.

    Args:
        context, brain: as for `data.context.read_window`, whose keys come with ``mask`` and ``region``; with a mirror
            image there is also the ``mirror_mask`` of its lesions.
    """
    inside = np.zeros(roi_size, np.uint8)
    for region in regions:
        inside[_within(region, starts)] = 1
    inside &= cut(prepared.brain, starts, roi_size)
    item = {
        **read_window(prepared.scan, starts, roi_size, context, brain),
        "mask": cut(prepared.mask, starts, roi_size)[None].astype(np.uint8),
        "region": inside[None],
    }
    if "mirror" in context:
        item["mirror_mask"] = cut_mirrored(prepared.mask, starts, roi_size, brain)[None].astype(np.uint8)
    return item


def _within(region: Region, starts: tuple[int, ...]) -> tuple[slice, ...]:
    """Index of a region in a window that begins at `starts`."""
    spans = zip(region.slices, starts, strict=True)
    return tuple(slice(max(span.start - start, 0), max(span.stop - start, 0)) for span, start in spans)
