"""The published rule, ``grouped``: slices of one anatomical group agree on their most frequent box.

A volume's boxes are a (D, 4) array with a row of NaN for a slice without proposal.
"""

import numpy as np
from scipy.sparse.csgraph import connected_components

from utils.regions.boxes import enclosing_box, pairwise_iou
from utils.regions.region import Region, expand_region, voxel_region

# Slices belong together while the brain's area differs by at most this share from the group's first slice ...
AREA_TOLERANCE = 0.15
# ... and the two outlines overlap at least this much. Together they cut an adult brain into some ten groups.
SHAPE_IOU = 0.80
# Boxes of two slices that overlap this much propose the same region: the usual criterion of detection.
CLUSTER_IOU = 0.5


def grouped_regions(boxes: np.ndarray, brain: np.ndarray, roi_size: tuple[int, int, int]) -> list[Region]:
    """Turn a box per slice into 3D regions, one for each anatomical group that has a proposal.

    Args:
        boxes: (D, 4) float, a consolidated box per slice, rows of NaN for none.
        brain: (D, H, W) bool.
        roi_size: (D, H, W) in voxels.

    Returns:
        Regions grown to the RoI size, in order of depth and without repetition.
    """
    regions = []
    for start, end in group_slices(brain):
        proposed = boxes[start:end]
        proposed = proposed[~np.isnan(proposed[:, 0])]
        if len(proposed):
            region = expand_region(voxel_region(start, end, agreed_box(proposed), brain.shape), roi_size, brain.shape)
            regions.append(region)
    return list(dict.fromkeys(regions))


def group_slices(brain: np.ndarray) -> list[tuple[int, int]]:
    """Cut a brain into runs of anatomically similar slices.

    A run goes on while the brain's area and outline stay similar to those of its first slice. Every slice with
    brain is in exactly one run; a slice without brain is in none and ends a run.

    Args:
        brain: (D, H, W) bool.

    Returns:
        Half-open (start, end) ranges of slices, in order.
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
    return common >= SHAPE_IOU * (first_area + area - common)


def agreed_box(boxes: np.ndarray) -> np.ndarray:
    """The box that stands for a whole group of slices.

    Boxes are clustered by IoU. A single largest cluster of at least two is the most frequent region; with none,
    or a tie for the largest, every box counts. The result encloses the boxes that count.

    Args:
        boxes: (N, 4), N at least 1, a box per slice.

    Returns:
        (4,) float.
    """
    _, cluster = connected_components(pairwise_iou(boxes) >= CLUSTER_IOU, directed=False)
    sizes = np.bincount(cluster)
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == 1 and sizes[largest[0]] >= 2:
        boxes = boxes[cluster == largest[0]]
    return enclosing_box(boxes)
