"""Inference of stage 2: windows laid over the regions of a scan, and what they say averaged.

Windows of all regions form one stream of batches. Regions that overlap do not have windows each, and where there is no
brain nothing is looked at. Nothing but NumPy is needed, so that the runner of exported models lays the same windows.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from data.batches.context import Start, join_channels, read_window
from data.files.space import resample
from data.scans.prepared import PreparedScan
from utils.regions.region import (
    Region,
    bounding_region,
    expand_region,
    grow_region,
    region_mask,
    region_of,
    seen_mask,
    whole_volume,
)

DEFAULT_OVERLAP = 0.25  # MONAI's own default
GAUSSIAN_SIGMA, LEAST_WEIGHT = 0.125, 1e-3  # of a window's size, and of its middle's weight: MONAI's own, too


def slide(
    predict: Callable[[np.ndarray], np.ndarray],
    prepared: PreparedScan,
    regions: list[Region] | None,
    outside: Sequence[float],
    window: tuple[int, int, int],
    context: Sequence[str],
    overlap: float | None = None,
    subvolume_depth: int | None = None,
    batch_size: int = 4,
) -> np.ndarray:
    """Maps (K, D, H, W) of what `predict` says of windows (B, C, *window), inside the brain of the regions.

    Args:
        regions: regions of the scan's grid; None for the whole volume.
        outside: (K,) what each map holds elsewhere.
        window: (D, H, W) of a window.
        context: further channels of a window (`data.batches.context`).
        overlap: of neighbouring windows; None for `DEFAULT_OVERLAP`.
        subvolume_depth: slices segmented at a time; None for all.
        batch_size: windows at a time.
    """
    brain = bounding_region(prepared.brain) if context else None
    regions = [whole_volume(prepared.brain.shape)] if regions is None else regions
    inside = region_mask(regions, prepared.brain.shape) & prepared.brain
    pieces = split_by_depth(regions, subvolume_depth)
    starts = lay_windows(pieces, inside, window, DEFAULT_OVERLAP if overlap is None else overlap)
    return average_windows(
        predict,
        lambda start: join_channels(read_window(prepared.scan, start, window, context, brain)),
        starts,
        inside,
        window,
        outside,
        batch_size,
    )


def seen_on_own_grid(scan: PreparedScan, regions: list[Region] | None) -> np.ndarray | None:
    """What stage 1 saw of a scan, (D, H, W) bool on the scan's own grid; None without regions.

    Its boxes grow by a voxel of that grid: between thick slices a small box would fall through.
    """
    if regions is None:
        return None
    margin = [math.ceil(max(scan.own.spacing_mm) / side) for side in scan.space.spacing_mm]
    return resample(seen_mask(regions, scan.brain.shape, margin)[None], scan.space, scan.own)[0]


# --- where windows lie ---------------------------------------------------------------------------------


def split_by_depth(regions: list[Region], depth: int | None) -> list[Region]:
    """Cut the regions at the borders of sub-volumes of `depth` slices; None leaves them as they are."""
    if depth is None:
        return regions
    pieces = []
    for region in regions:
        d, y, x = region.slices
        borders = [d.start, *range((d.start // depth + 1) * depth, d.stop, depth), d.stop]
        pieces += [region_of((slice(*ends), y, x)) for ends in itertools.pairwise(borders)]
    return pieces


def lay_windows(regions: list[Region], inside: np.ndarray, window: tuple[int, int, int], overlap: float) -> list[Start]:
    """Windows that see every voxel of interest in the regions.

    They reach beyond a region by their overlap, so that its borders, where lesions may lie, are seen as often and from
    as many sides as its middle (docs/peers.md has what that brings). In a region that is alone and full of brain they
    lie as in MONAI's sliding window over the region and that margin. The largest region comes first. Of each further
    one only the rest needs windows, and without a voxel of it a window is left out.

    Args:
        inside: (D, H, W) bool, the voxels of interest.
        window: (D, H, W) of a window.
        overlap: of neighbouring windows, a share of their size in [0, 1).

    Returns:
        First voxels of the windows, inside the volume; behind its end where it is smaller than a window.
    """
    unseen, starts = inside.copy(), {}
    margin = [round(overlap * side) for side in window]
    for region in sorted(regions, key=lambda region: -np.prod(region.shape)):
        if (rest := _box_of(unseen, region)) is None:
            continue
        grown = expand_region(grow_region(rest, margin, inside.shape), window, inside.shape)
        lines = [_starts_along(s, roi, overlap) for s, roi in zip(grown.slices, window, strict=True)]
        starts |= dict.fromkeys(start for start in itertools.product(*lines) if _see(unseen, rest, start, window))
        unseen[rest.slices] = False
    return list(starts)


def _box_of(mask: np.ndarray, region: Region) -> Region | None:
    """The smallest box around what a (D, H, W) mask holds in a region; None where that is nothing."""
    if (box := bounding_region(mask[region.slices])) is None:
        return None
    spans = zip(box.slices, region.slices, strict=True)
    return region_of(tuple(slice(b.start + r.start, b.stop + r.start) for b, r in spans))


def _starts_along(span: slice, roi: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: `overlap` apart from the span's start on, the last one moved back into it."""
    last = max(span.stop - roi, span.start)
    step = max(int(roi * (1 - overlap)), 1)
    return [*range(span.start, last, step), last]


def _see(unseen: np.ndarray, rest: Region, start: Start, window: tuple[int, int, int]) -> bool:
    """Whether a window sees an unseen voxel in the box `rest`."""
    spans = zip(rest.slices, start, window, strict=True)
    return bool(unseen[tuple(slice(max(r.start, s), min(r.stop, s + roi)) for r, s, roi in spans)].any())


def _span(start: Start, window: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + roi) for s, roi in zip(start, window, strict=True))


# --- what they say -------------------------------------------------------------------------------------


def average_windows(
    predict: Callable[[np.ndarray], np.ndarray],
    image_at: Callable[[Start], np.ndarray],
    starts: list[Start],
    inside: np.ndarray,
    window: tuple[int, int, int],
    outside: Sequence[float],
    batch_size: int,
) -> np.ndarray:
    """Run `predict` on windows and average where they overlap, each weighed with a Gaussian about its middle.

    Args:
        predict: from windows (B, C, *window) float32 to maps (B, K, *window).
        image_at: from the first voxel of a window to its image, (C, *window) float32.
        starts: of windows that see all of `inside`, as `lay_windows` gives them.
        inside: (D, H, W) bool, where the maps count.
        outside: (K,) what each map holds elsewhere.

    Returns:
        (K, D, H, W) float32.
    """
    volume = np.empty((len(outside), *inside.shape), np.float32)
    volume[:] = np.reshape(outside, (-1, 1, 1, 1))
    if not starts:
        return volume
    # Nothing is summed beyond the box that holds the windows: regions are a small part of a volume.
    low, high = np.min(starts, 0), np.minimum(np.max(starts, 0) + window, inside.shape)
    box = tuple(map(slice, low, high))
    weights = gaussian_weights(window)
    # In 64 bit: where windows overlap by 7/8, hundreds of them see a voxel, whose rounding adds up.
    summed, total = np.zeros((len(outside), *(high - low))), np.zeros(high - low)
    for first in range(0, len(starts), batch_size):
        batch = starts[first : first + batch_size]
        maps = predict(np.stack([image_at(start) for start in batch]))
        for start, found in zip(batch, maps, strict=True):
            place = _span(start - low, window)
            within = tuple(map(slice, total[place].shape))  # a window may leave the volume behind its end
            summed[(slice(None), *place)] += found[(slice(None), *within)] * weights[within]
            total[place] += weights[within]
    np.divide(summed, total, out=volume[(slice(None), *box)], where=inside[box])
    return volume


def gaussian_weights(window: tuple[int, int, int]) -> np.ndarray:
    """What each voxel of a window counts where windows overlap, (D, H, W) float32: MONAI's ``gaussian``."""
    weights = np.ones((), np.float32)
    for size in window:
        off_middle = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        weights = weights[..., None] * np.exp(-(off_middle**2) / np.float32(2 * (GAUSSIAN_SIGMA * size) ** 2))
    return np.maximum(weights, LEAST_WEIGHT)
