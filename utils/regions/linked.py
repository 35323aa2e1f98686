"""The default rule, ``linked``: boxes of neighbouring slices are one candidate, proposed if its evidence is enough.

The published rule looks at anatomical groups of slices one by one (`utils.regions.grouped`). Here a lesion
is what its boxes make of it: boxes that overlap from slice to slice are one candidate, however many groups it crosses,
and every slice in which it is seen adds to its evidence.
"""

from dataclasses import replace

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from utils.regions.boxes import enclosing_box, pairwise_iou
from utils.regions.region import Region, expand_region, region_mask, region_of, voxel_region

# Boxes of this overlap are of one lesion. Its outline changes from slice to slice, so less than detection's 0.5.
LINK_IOU = 0.3
GAP = 2  # slices in which a lesion may go unseen between two in which it is seen
LOWEST_SCORE = 0.05  # boxes below are noise: they add nothing but chains between candidates
SUREST = 1 - np.finfo(float).eps  # 1 has no finite log odds


def link_boxes(
    slices: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    networks: np.ndarray | None = None,
    n_networks: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Link boxes into candidates and weigh the evidence for each.

    The evidence is the probability that a candidate is right in at least one slice if its best boxes of each slice are
    right with the probability of their score and independent (a noisy or): a sure box is enough, and unsure ones in
    several slices count for more than a lone one.

    Several networks that look at one volume have their candidates in common. Each has its own evidence for a candidate,
    from its own boxes, and `LOWEST_SCORE` where it has none; the evidence is what `pooled` makes of these.

    Args:
        slices: (N,) int, the slice of each box.
        boxes: (N, 4) xyxy in voxels.
        scores: (N,) in [0, 1].
        networks: (N,) int, the network that each box is of, from 0; None for one network.
        n_networks: how many have looked, those without any box included.

    Returns:
        (N,) int, the candidate of each box, and (N,) float, the evidence for that candidate.
    """
    if len(slices) == 0:
        return np.zeros(0, int), np.zeros(0)
    near = np.abs(slices[:, None] - slices[None]) <= 1 + GAP
    n, candidate = connected_components(near & (pairwise_iou(boxes) >= LINK_IOU), directed=False)
    best = np.zeros((n_networks, n, int(slices.max()) + 1))
    np.maximum.at(best, (0 if networks is None else networks, candidate, slices), scores)
    evidence = 1 - np.prod(1 - best, axis=2)
    evidence[evidence == 0] = LOWEST_SCORE
    return candidate, pooled(evidence)[candidate]


def pooled(probabilities: np.ndarray) -> np.ndarray:
    """What several networks say as one: the probability whose log odds are the mean of theirs.

    Args:
        probabilities: (M, ...) of M networks; of one alone they stay as they are, to the bit.

    Returns:
        (...) in [0, 1].
    """
    if len(probabilities) == 1:
        return probabilities[0]
    return expit(logit(np.clip(probabilities, 1 - SUREST, SUREST)).mean(0))


def trusted(
    slices: np.ndarray,
    boxes: np.ndarray,
    candidates: np.ndarray,
    evidence: np.ndarray,
    threshold: float,
    growth: float,
    shape: tuple[int, int, int],
    roi_size: tuple[int, int, int],
) -> np.ndarray:
    """Which boxes are of candidates with enough evidence, the surest candidates first.

    The more voxels the regions hold, the surer a further candidate must be: its odds must reach those of the threshold
    times n ** growth, where the regions so far and its own hold the voxels of n RoIs. On scans unlike the training's a
    network is sure of more that is none, and one threshold for all candidates lets the proposed fraction run away.

    Args:
        slices, boxes: as in `link_boxes`; candidates, evidence: what it returned.
        threshold: evidence in [0, 1], asked for where one RoI is proposed.
        growth: at least 0; with 0 the threshold is the same for all.
        shape, roi_size: (D, H, W) in voxels.

    Returns:
        (N,) bool.
    """
    if growth == 0:
        return evidence >= threshold
    kept, roi_voxels = np.zeros(len(slices), bool), np.prod(np.minimum(roi_size, shape))
    surest_first = dict.fromkeys(candidates[np.argsort(-evidence, kind="stable")].tolist())
    for candidate in surest_first:
        more = kept | (candidates == candidate)
        regions = linked_regions(slices[more], boxes[more], candidates[more], shape, roi_size)
        n_rois = np.count_nonzero(region_mask(regions, shape)) / roi_voxels
        if logit(evidence[candidates == candidate][0]) < logit(threshold) + growth * np.log(n_rois):
            break
        kept = more
    return kept


def linked_regions(
    slices: np.ndarray,
    boxes: np.ndarray,
    candidates: np.ndarray,
    shape: tuple[int, int, int],
    roi_size: tuple[int, int, int],
) -> list[Region]:
    """One region around the boxes of each candidate, grown to the RoI size; neighbours share one where that is smaller.

    What a region has seen are the boxes around its candidates.

    Args:
        slices, boxes: as in `link_boxes`.
        candidates: (N,) int, the candidate of each box.
        shape, roi_size: (D, H, W) in voxels.
    """
    tight = []
    for candidate in np.unique(candidates):
        own = candidates == candidate
        first, last = int(slices[own].min()), int(slices[own].max())
        around = voxel_region(first, last + 1, enclosing_box(boxes[own]), shape)
        tight.append(replace(around, seen=(around,)))
    return [expand_region(region, roi_size, shape) for region in _share(tight, roi_size, shape)]


def _share(regions: list[Region], roi_size: tuple[int, int, int], shape: tuple[int, int, int]) -> list[Region]:
    """Join regions for as long as the region around both, once grown, holds no more voxels than the two grown apart."""
    regions = list(regions)
    while (pair := _shareable(regions, roi_size, shape)) is not None:
        i, j = pair
        joined = _around(regions[i], regions[j])
        regions = [region for k, region in enumerate(regions) if k not in pair] + [joined]
    return sorted(regions, key=lambda region: (region.region_start, region.ymin, region.xmin))


def _shareable(regions: list[Region], roi_size, shape) -> tuple[int, int] | None:
    grown = [expand_region(region, roi_size, shape) for region in regions]
    for i in range(len(regions)):
        for j in range(i):
            together = expand_region(_around(regions[i], regions[j]), roi_size, shape)
            if _voxels(together) <= _voxels(grown[i]) + _voxels(grown[j]) - _overlap(grown[i], grown[j]):
                return i, j
    return None


def _around(one: Region, other: Region) -> Region:
    spans = zip(one.slices, other.slices, strict=True)
    both = region_of(tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in spans))
    return replace(both, seen=one.seen + other.seen)


def _voxels(region: Region) -> int:
    return int(np.prod(region.shape))


def _overlap(one: Region, other: Region) -> int:
    spans = zip(one.slices, other.slices, strict=True)
    return int(np.prod([max(min(a.stop, b.stop) - max(a.start, b.start), 0) for a, b in spans]))
