"""3D windows for stage 2, drawn over training scans and laid over the regions of validation scans.

An item: ``image`` (C, D, H, W) float32; ``mask`` and ``region``, what counts, (1, D, H, W) uint8; its ``key``.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import find_objects, label
from torch.utils.data import Dataset

from data.files.space import Shape, Start, cut
from data.scans.cohort import Case
from data.scans.open import Cohort
from data.scans.prepared import PreparedScan
from utils.regions.region import Region, bounding_box, region_mask, whole_volume
from utils.scores.masks import TWENTY_SIX_CONNECTED

# What training windows lie about, in turn, so that every batch holds as much of each: any lesion, so that small ones
# count, and any voxel of lesion, so that the inside of large ones is seen (docs/proposals.md).
ABOUT = ("lesion", "brain", "lesion voxel", "region")
# A training window may leave what it lies about by this share of its size: the network shall not learn that a lesion
# always sits in the middle.
JITTER = 0.3
TRIALS = 100  # to hit the brain of a box; where less than a thirtieth of it is brain, any voxel may be taken
Item = dict[str, np.ndarray]


def cut_window(prepared: PreparedScan, start: Start, window: Shape, regions: list[Region] | None) -> Item:
    """A window of a scan, zero-padded behind where the volume ends; the brain of `regions` counts, or all of it."""
    region = cut(prepared.brain, start, window)
    if regions is not None:
        region &= cut(region_mask(regions, prepared.brain.shape), start, window)
    return {
        "image": cut(prepared.scan, start, window).astype(np.float32),
        "mask": cut(prepared.lesions, start, window)[None].astype(np.uint8),
        "region": region[None].astype(np.uint8),
    }


def _start_inside(start: np.ndarray | Sequence[int], window: Shape, shape: Shape) -> Start:
    """The start moved so that the window leaves the volume nowhere or, where it is larger, only behind."""
    d, h, w = np.clip(start, 0, np.maximum(np.subtract(shape, window), 0)).tolist()
    return d, h, w


class TrainingWindows(Dataset):
    """Windows drawn anew each epoch about lesions, about proposed regions and anywhere in the brain.

    Not in the proposed regions alone: those of training scans are better than any to come, since stage 1 has learned
    from these scans, and few. All brain of a window, `window` voxels (D, H, W), counts. `length` windows are an epoch.
    """

    def __init__(
        self,
        cases: list[Case],
        regions: Mapping[str, list[Region]] | None,
        cohort: Cohort,
        window: Shape,
        length: int,
        seed: int = 0,
    ) -> None:
        self.cohort, self.window, self.length, self.seed = cohort, window, length, seed
        self.regions = regions or {}
        self.lesions: dict[str, tuple[list[tuple[slice, ...]], np.ndarray]] = {}  # of each scan, `_lesions_of`
        proposed = [case for case in cases if self.regions.get(case.name)]
        sick = [case for case in cases if cohort.prepare(case).lesions.any()] or cases
        self.cases = {"lesion": sick, "lesion voxel": sick, "region": proposed or cases, "brain": cases}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        about = ABOUT[index % len(ABOUT)]
        case = self.cases[about][rng.integers(len(self.cases[about]))]
        prepared = self.cohort.prepare(case)
        middle = self._middle(about, prepared, rng)
        shift = [rng.integers(-most, most + 1) for most in (round(JITTER * size) for size in self.window)]
        start = _start_inside(middle - np.floor_divide(self.window, 2) + shift, self.window, prepared.brain.shape)
        return {**cut_window(prepared, start, self.window, None), "key": np.array(key)}

    def _middle(self, about: str, prepared: PreparedScan, rng: np.random.Generator) -> np.ndarray:
        """The voxel (3,) that a window lies about; any of the brain where the scan has no lesion or no region."""
        boxes, shares = self._lesions_of(prepared) if about.startswith("lesion") else ([], None)
        if boxes:
            around = boxes[rng.choice(len(boxes), p=shares if about == "lesion voxel" else None)]
            inside = np.argwhere(prepared.lesions[around])
            return inside[rng.integers(len(inside))] + [span.start for span in around]
        regions = self.regions.get(prepared.name) if about == "region" else None
        box = regions[rng.integers(len(regions))] if regions else whole_volume(prepared.brain.shape)
        for _ in range(TRIALS):  # to look for all that is brain would read the whole mask
            voxel = [rng.integers(span.start, span.stop) for span in box.slices]
            if prepared.brain[tuple(voxel)]:
                break
        return np.array(voxel)

    def _lesions_of(self, prepared: PreparedScan) -> tuple[list[tuple[slice, ...]], np.ndarray]:
        """A box around each lesion of a scan, and its share of their voxels (N,)."""
        if prepared.name not in self.lesions:
            mask = prepared.lesions
            around_all = bounding_box(mask)  # labels of whole volumes take ten times as long
            labels, n = label(mask[around_all], TWENTY_SIX_CONNECTED)
            boxes = [
                tuple(slice(o.start + s.start, o.start + s.stop) for o, s in zip(around_all, box, strict=True))
                for box in (find_objects(labels) if n else ())
            ]
            voxels = np.bincount(labels.ravel(), minlength=2)[1:]
            self.lesions[prepared.name] = boxes, voxels / max(voxels.sum(), 1)
        return self.lesions[prepared.name]


class RegionWindows(Dataset):
    """Windows laid over the proposed regions, by scan file name, the same each epoch; only their brain counts."""

    def __init__(self, cases: list[Case], regions: Mapping[str, list[Region]], cohort: Cohort, window: Shape) -> None:
        self.cohort, self.window, self.regions = cohort, window, regions
        self.windows = [
            (case, start)
            for case in cases
            for start in windows_over(regions.get(case.name, []), window, cohort.grid.shape)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Item:
        case, start = self.windows[index]
        window = cut_window(self.cohort.prepare(case), start, self.window, self.regions[case.name])
        return {**window, "key": np.array((0, index))}


def windows_over(regions: Sequence[Region], window: Shape, shape: Shape) -> list[Start]:
    """Windows that see all regions once; a region that lies in a window of a larger one needs none."""
    starts: list[Start] = []
    for region in sorted(regions, key=lambda region: -math.prod(region.shape)):
        if not any(_lies_in_window(region, start, window) for start in starts):
            starts += starts_over(region, window, shape)
    return starts


def _lies_in_window(region: Region, start: Start, window: Shape) -> bool:
    spans = zip(region.slices, start, window, strict=True)
    return all(first <= span.start and span.stop <= first + side for span, first, side in spans)


def starts_over(region: Region, window: Shape, shape: Shape) -> list[Start]:
    """Windows that see a region once, spread evenly over it; a region smaller than a window is in the middle of one."""
    lines = []
    for span, size in zip(region.slices, window, strict=True):
        count, spare = math.ceil((span.stop - span.start) / size), span.stop - span.start - size
        offsets = np.linspace(0, spare, count).astype(int).tolist() if count > 1 else [spare // 2]
        lines.append([span.start + offset for offset in offsets])
    return [_start_inside(start, window, shape) for start in itertools.product(*lines)]
