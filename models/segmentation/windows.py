"""Sliding-window inference of stage 2 over the regions of a scan, in one stream of batches. Where regions overlap they
share windows, and without brain there are none. NumPy alone is needed, for the runner lays the same windows."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from data.files.space import Start, cut
from data.scans.prepared import PreparedScan
from models.segmentation.settings import SlidingWindow
from utils.regions.region import (
    Region,
    bounding_region,
    expand_region,
    grow_region,
    region_mask,
    region_of,
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
    sliding: SlidingWindow,
    batch_size: int,
) -> np.ndarray:
    """Maps (K, D, H, W) that `predict` makes of windows (B, C, *window), inside the brain of the regions, which are of
    the scan's grid; None for the whole volume. `outside` is the (K,) value of each map elsewhere."""
    regions = [whole_volume(prepared.brain.shape)] if regions is None else regions
    inside = region_mask(regions, prepared.brain.shape) & prepared.brain
    pieces, overlap = split_by_depth(regions, sliding.subvolume_depth), sliding.overlap
    starts = lay_windows(pieces, inside, window, DEFAULT_OVERLAP if overlap is None else overlap)
    return average_windows(predict, prepared.scan, starts, inside, window, outside, batch_size)


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
    """First voxels of windows (D, H, W) that cover every voxel of the (D, H, W) bool `inside` in the regions.

    They reach beyond a region by their overlap, a share of their size in [0, 1), so that its borders are covered as
    often as its middle (docs/peers.md has what that brings). In a single region full of brain they lie as in MONAI's
    sliding window over the region and that margin. The largest region comes first; of each further one only the rest
    needs windows. A window ends behind a volume that is smaller.
    """
    rest_of_all, margin = inside.copy(), [round(overlap * side) for side in window]
    starts: dict[Start, None] = {}  # a set in order
    for region in sorted(regions, key=lambda region: -np.prod(region.shape)):
        if (rest := bounding_region(rest_of_all[region.slices])) is None:
            continue
        pairs = zip(rest.slices, region.slices, strict=True)
        rest = region_of(slice(inner.start + outer.start, inner.stop + outer.start) for inner, outer in pairs)
        grown = expand_region(grow_region(rest, margin, inside.shape), window, inside.shape)
        lines = []
        for span, side in zip(grown.slices, window, strict=True):
            last = max(span.stop - side, span.start)  # moved back into the span
            lines.append([*range(span.start, last, max(int(side * (1 - overlap)), 1)), last])
        for z, y, x in itertools.product(*lines):
            spans = zip(rest.slices, (z, y, x), window, strict=True)
            if rest_of_all[tuple(slice(max(b.start, s), min(b.stop, s + roi)) for b, s, roi in spans)].any():
                starts[z, y, x] = None
        rest_of_all[rest.slices] = False
    return list(starts)


def average_windows(
    predict: Callable[[np.ndarray], np.ndarray],
    scan: np.ndarray,
    starts: list[Start],
    inside: np.ndarray,
    window: tuple[int, int, int],
    outside: Sequence[float],
    batch_size: int,
) -> np.ndarray:
    """Maps (K, D, H, W) float32, where windows overlap their mean, weighted with a Gaussian about their middle.

    The windows at `starts` of a scan (C, D, H, W) in [0, 1] cover all of the (D, H, W) bool `inside`; `predict` makes
    maps (B, K, *window) of them, (B, C, *window) float32. `outside` is as of `slide`.
    """
    volume = np.empty((len(outside), *inside.shape), np.float32)
    volume[:] = np.reshape(outside, (-1, 1, 1, 1))
    if not starts:
        return volume
    # Summed in the box that holds the windows alone: regions are a small part of a volume.
    low, high = np.min(starts, 0), np.minimum(np.max(starts, 0) + window, inside.shape)
    box = tuple(map(slice, low, high))
    weights = gaussian_weights(window)
    # In 64 bit: with an overlap of 7/8, the rounding of hundreds of windows adds up in a voxel.
    summed, total = np.zeros((len(outside), *(high - low))), np.zeros(high - low)
    for first in range(0, len(starts), batch_size):
        batch = starts[first : first + batch_size]
        maps = predict(np.stack([cut(scan, start, window) for start in batch]).astype(np.float32))
        for start, window_maps in zip(batch, maps, strict=True):
            place = tuple(map(slice, start - low, start - low + window))
            within = tuple(map(slice, total[place].shape))  # a window may leave the volume behind its end
            summed[(slice(None), *place)] += window_maps[(slice(None), *within)] * weights[within]
            total[place] += weights[within]
    np.divide(summed, total, out=volume[(slice(None), *box)], where=inside[box])
    return volume


def gaussian_weights(window: tuple[int, int, int]) -> np.ndarray:
    """The weight of each voxel of a window where windows overlap, (D, H, W) float32: MONAI's ``gaussian``."""
    weights = np.ones((), np.float32)
    for size in window:
        off_middle = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        weights = weights[..., None] * np.exp(-(off_middle**2) / np.float32(2 * (GAUSSIAN_SIGMA * size) ** 2))
    return np.maximum(weights, LEAST_WEIGHT)
