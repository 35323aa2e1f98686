"""The published rule, ``grouped``: slices of one anatomical group agree on their most frequent box."""

import numpy as np
from scipy.sparse.csgraph import connected_components

from utils.regions.region import Region, Shape, enclosing_box, expand_region, pairwise_iou, voxel_region

# Slices belong together while the brain's area differs by at most this share from the group's first slice ...
AREA_TOLERANCE = 0.15
# ... and the two outlines overlap at least this much. Together they cut an adult brain into some ten groups.
SHAPE_IOU = 0.80
# Boxes of two slices that overlap this much propose the same region: the usual criterion of detection.
CLUSTER_IOU = 0.5


def grouped_regions(boxes: np.ndarray, brain: np.ndarray, roi_size: Shape) -> list[Region]:
    """A region for each anatomical group that has a proposal, grown to the RoI size, in order of depth, each once.

    Args:
        boxes: (D, 4) float, a consolidated box per slice, rows of NaN for none.
        brain: (D, H, W) bool.
    """
    regions = []
    for start, end in group_slices(brain):
        proposed = boxes[start:end]
        proposed = proposed[~np.isnan(proposed[:, 0])]
        if len(proposed):
            region = voxel_region(start, end, agreed_box(proposed), brain.shape)
            regions.append(expand_region(region, roi_size, brain.shape))
    return list(dict.fromkeys(regions))


def group_slices(brain: np.ndarray) -> list[tuple[int, int]]:
    """Cut a brain (D, H, W) bool into runs of anatomically similar slices: half-open (start, end), in order.

    A run goes on while the brain's area and outline stay similar to those of its first slice. Every slice with
    brain is in exactly one run; a slice without brain is in none and ends a run.
    """
    areas = np.count_nonzero(brain, axis=(1, 2))
    groups, start = [], None
    for z, area in enumerate(areas):
        if start is not None and (area == 0 or not _similar(brain[start], areas[start], brain[z], area)):
            groups.append((start, z))
            start = None
        if start is None and area:
            start = z
    if start is not None:
        groups.append((start, len(areas)))
    return groups


def _similar(first: np.ndarray, first_area: int, other: np.ndarray, area: int) -> bool:
    if abs(int(area) - int(first_area)) > AREA_TOLERANCE * first_area:
        return False
    common = np.count_nonzero(first & other)
    return bool(common >= SHAPE_IOU * (first_area + area - common))


def agreed_box(boxes: np.ndarray) -> np.ndarray:
    """The box (4,) float for a whole group of slices, given a box per slice, (N, 4) with N at least 1.

    Boxes are clustered by IoU. A single largest cluster of at least two is the most frequent region; with none,
    or a tie for the largest, every box counts. The result encloses the boxes that count.
    """
    _, cluster = connected_components(pairwise_iou(boxes) >= CLUSTER_IOU, directed=False)
    sizes = np.bincount(cluster)
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == 1 and sizes[largest[0]] >= 2:
        boxes = boxes[cluster == largest[0]]
    return enclosing_box(boxes)
