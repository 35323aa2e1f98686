"""The default rule, ``linked``: boxes of neighbouring slices are one candidate, proposed if its evidence is enough.

A candidate may cross many anatomical groups, and every slice in which it is detected adds to its evidence. The
published rule looks at the groups one by one (`utils.regions.rules.grouped_regions`).
"""

import math
from dataclasses import replace

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from utils.regions.region import (
    Region,
    Shape,
    enclosing_box,
    enclosing_region,
    expand_region,
    pairwise_iou,
    region_mask,
    voxel_region,
)

# Boxes of this overlap are of one lesion. Its outline changes from slice to slice, so less than detection's 0.5.
LINK_IOU = 0.3
GAP = 2  # slices without a detection that may lie between two slices with one
LOWEST_SCORE = 0.05  # boxes below are noise: they add nothing but chains between candidates
# Power of the proposed voxels with which the odds that a further candidate needs grow. Measured on shifted cohorts:
# three networks found as many lesions as without, or one fewer, in a seventh to a quarter less of the brain.
EVIDENCE_GROWTH = 5.0
SUREST = 1 - np.finfo(float).eps  # 1 has no finite log odds


def link_boxes(
    slices: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    networks: np.ndarray | None = None,
    n_networks: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Link boxes into candidates and weigh the evidence for each: the noisy or of the best scores of its slices.

    Of several networks each has its own evidence, `LOWEST_SCORE` where it has no box; `pooled` makes one of these.

    Args:
        slices, networks: (N,) int, of each box, networks from 0; None for one network.
        boxes: (N, 4) xyxy in voxels.
        scores: (N,) in [0, 1].
        n_networks: those without any box included.

    Returns:
        (N,) int, the candidate of each box, and (N,) float, the evidence for that candidate.
    """
    if len(slices) == 0:
        return np.zeros(0, int), np.zeros(0)
    near = np.abs(slices[:, None] - slices[None]) <= 1 + GAP
    n, candidate = connected_components(near & (pairwise_iou(boxes) >= LINK_IOU), directed=False)
    best = np.zeros((n_networks, n, int(slices.max()) + 1))
    networks = np.zeros_like(candidate) if networks is None else networks
    np.maximum.at(best, (networks, candidate, slices), scores)
    evidence = 1 - np.prod(1 - best, axis=2)
    evidence[evidence == 0] = LOWEST_SCORE
    return candidate, pooled(evidence)[candidate]


def pooled(probabilities: np.ndarray) -> np.ndarray:
    """The probabilities (M, ...) of M networks as one: that whose log odds are the mean of theirs."""
    if len(probabilities) == 1:
        return probabilities[0]  # as they are, to the bit
    return expit(logit(np.clip(probabilities, 1 - SUREST, SUREST)).mean(0))


def trusted(
    slices: np.ndarray,
    boxes: np.ndarray,
    candidates: np.ndarray,
    evidence: np.ndarray,
    threshold: float,
    shape: Shape,
    roi_size: Shape,
) -> np.ndarray:
    """Which boxes are of candidates with enough evidence, the surest candidates first; (N,) bool.

    The odds of a further candidate must reach those of the threshold times n ** `EVIDENCE_GROWTH`, where the regions
    with it hold the voxels of n RoIs: on scans unlike the training's one threshold for all would propose too much.

    `threshold` is the evidence in [0, 1] that one RoI needs; the others are as in `link_boxes` and what it returns.
    """
    proposed, roi_voxels = np.zeros(len(slices), bool), np.prod(np.minimum(roi_size, shape))
    surest_first = dict.fromkeys(candidates[np.argsort(-evidence, kind="stable")].tolist())
    for candidate in surest_first:
        more = proposed | (candidates == candidate)
        regions = linked_regions(slices[more], boxes[more], candidates[more], shape, roi_size)
        n_rois = np.count_nonzero(region_mask(regions, shape)) / roi_voxels
        if logit(evidence[candidates == candidate][0]) < logit(threshold) + EVIDENCE_GROWTH * np.log(n_rois):
            break
        proposed = more
    return proposed


def linked_regions(
    slices: np.ndarray, boxes: np.ndarray, candidates: np.ndarray, shape: Shape, roi_size: Shape
) -> list[Region]:
    """One region around the boxes of each candidate, grown to the RoI size; neighbours share one where that is smaller.

    The parameters are those of `trusted`. ``Region.detected`` are the boxes around the candidates.
    """
    tight = []
    for candidate in np.unique(candidates):
        own = candidates == candidate
        first, last = int(slices[own].min()), int(slices[own].max())
        around = voxel_region(first, last + 1, enclosing_box(boxes[own]), shape)
        tight.append(replace(around, detected=(around,)))
    return [expand_region(region, roi_size, shape) for region in _share(tight, roi_size, shape)]


def _share(regions: list[Region], roi_size: Shape, shape: Shape) -> list[Region]:
    """Join regions for as long as the region around both, once grown, holds no more voxels than the two grown apart."""
    while pair := _shareable(regions, roi_size, shape):
        joined = enclosing_region(*(regions[k] for k in pair))
        regions = [region for k, region in enumerate(regions) if k not in pair] + [joined]
    return sorted(regions, key=lambda region: (region.region_start, region.ymin, region.xmin))


def _shareable(regions: list[Region], roi_size: Shape, shape: Shape) -> tuple[int, int] | None:
    grown = [expand_region(region, roi_size, shape) for region in regions]
    for i in range(len(regions)):
        for j in range(i):
            spans = zip(grown[i].slices, grown[j].slices, strict=True)
            common = math.prod(max(min(a.stop, b.stop) - max(a.start, b.start), 0) for a, b in spans)
            together = expand_region(enclosing_region(regions[i], regions[j]), roi_size, shape)
            if math.prod(together.shape) <= math.prod(grown[i].shape) + math.prod(grown[j].shape) - common:
                return i, j
    return None
