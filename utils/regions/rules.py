"""From the detections of a volume's slices to its 3D regions, by one of two rules.

``linked``: boxes that overlap from slice to slice are one candidate, which proposes the region around them.
``grouped``, as published: boxes are consolidated in each slice and made consistent over groups of similar slices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, logit

from utils.regions.region import (
    Region,
    Shape,
    enclosing_box,
    enclosing_region,
    expand_region,
    pairwise_iou,
    voxel_region,
)

# Boxes of this overlap are of one lesion. Its outline changes from slice to slice, so less than detection's 0.5.
LINK_IOU = 0.3
GAP = 2  # slices without a detection that may lie between two slices with one
MISSING_SCORE = 0.05  # of the box that another network of an ensemble has in a place, and this one has not
SUREST = 1 - np.finfo(float).eps  # 1 has no finite log odds
# Slices belong together while the brain's area differs by at most this share from the group's first slice ...
AREA_TOLERANCE = 0.15
# ... and the two outlines overlap at least this much. Together they cut an adult brain into some ten groups.
SHAPE_IOU = 0.80
# Boxes of two slices that overlap this much propose the same region: the usual criterion of detection.
CLUSTER_IOU = 0.5
# Of one network: by slice, ``boxes`` (N, 4) xyxy in voxels and ``scores`` (N,), arrays or tensors.
Detections = Mapping[int, Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class ProposalBoxes:
    """The boxes of a volume that count: slices (N,) int, boxes (N, 4) xyxy in voxels, candidates (N,) int."""

    slices: np.ndarray
    boxes: np.ndarray
    candidates: np.ndarray
    evidence: np.ndarray  # (N,) in [0, 1]: of each box's candidate, or its own score

    def in_slice(self, z: int) -> np.ndarray:
        return self.boxes[self.slices == z]


def select_boxes(detections: Sequence[Detections], threshold: float, rule: str) -> ProposalBoxes:
    """The boxes of a score of at least the threshold, given each network's detections; these propose the regions.

    Boxes of several networks are all taken, with their `agreed_scores`.
    """
    by_slice = [(network, z, one) for network, slices in enumerate(detections) for z, one in slices.items()]
    all_boxes, all_scores = ([np.asarray(one[part]) for *_, one in by_slice] for part in ("boxes", "scores"))
    n_boxes = [*map(len, all_scores)]
    networks, slices = (np.repeat([each[i] for each in by_slice], n_boxes).astype(int) for i in (0, 1))
    boxes, scores = np.concatenate([np.zeros((0, 4)), *all_boxes]), np.concatenate([np.zeros(0), *all_scores])
    if len(detections) > 1:
        scores = agreed_scores(networks, slices, boxes, scores, len(detections))
    above = scores >= threshold
    slices, boxes, scores = slices[above], boxes[above], scores[above]
    own = np.arange(len(slices)), scores
    return ProposalBoxes(slices, boxes, *(link_boxes(slices, boxes, scores) if rule == "linked" else own))


def agreed_scores(
    networks: np.ndarray, slices: np.ndarray, boxes: np.ndarray, scores: np.ndarray, n_networks: int
) -> np.ndarray:
    """Scores (N,) of boxes, each `pooled` with those that the other networks give to the same place.

    That is the best of a network's boxes that overlap this one in its slice, or `MISSING_SCORE`.
    """
    same = (slices[:, None] == slices) & (pairwise_iou(boxes) >= LINK_IOU)
    by_network = []
    for network in range(n_networks):
        own = networks == network
        others = np.where(same & own, scores, 0).max(1, initial=MISSING_SCORE)
        by_network.append(np.where(own, scores, others))
    return pooled(np.array(by_network))


def regions_of(kept: ProposalBoxes, brain: np.ndarray, roi_size: Shape, rule: str) -> list[Region]:
    """The regions that the kept boxes propose in a volume whose brain is (D, H, W) bool."""
    if rule == "linked":
        return linked_regions(kept, brain.shape, roi_size)
    consolidated = np.full((len(brain), 4), np.nan)
    for z in np.unique(kept.slices):
        consolidated[z] = enclosing_box(kept.in_slice(z))
    return grouped_regions(consolidated, brain, roi_size)


def link_boxes(slices: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Link boxes into candidates and weigh the evidence for each: the noisy or of the best scores of its slices.

    Args:
        slices: (N,) int, of each box.
        boxes: (N, 4) xyxy in voxels.
        scores: (N,) in [0, 1].

    Returns:
        (N,) int, the candidate of each box, and (N,) float, the evidence for that candidate.
    """
    if len(slices) == 0:
        return np.zeros(0, int), np.zeros(0)
    near = np.abs(slices[:, None] - slices[None]) <= 1 + GAP
    n, candidate = connected_components(near & (pairwise_iou(boxes) >= LINK_IOU), directed=False)
    best = np.zeros((n, int(slices.max()) + 1))
    np.maximum.at(best, (candidate, slices), scores)
    return candidate, (1 - np.prod(1 - best, axis=1))[candidate]


def pooled(probabilities: np.ndarray) -> np.ndarray:
    """The probabilities (M, ...) of M networks as one: that whose log odds are the mean of theirs."""
    return expit(logit(np.clip(probabilities, 1 - SUREST, SUREST)).mean(0))


def linked_regions(kept: ProposalBoxes, shape: Shape, roi_size: Shape) -> list[Region]:
    """One region around the boxes of each candidate, grown to the RoI size; neighbours share one where that is smaller.

    ``Region.detected`` are the boxes around the candidates, with their evidence.
    """
    tight = []
    for candidate in np.unique(kept.candidates):
        own = kept.candidates == candidate
        first, last = int(kept.slices[own].min()), int(kept.slices[own].max())
        around = voxel_region(first, last + 1, enclosing_box(kept.boxes[own]), shape)
        tight.append(replace(around, detected=(replace(around, evidence=float(kept.evidence[own][0])),)))
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


def grouped_regions(boxes: np.ndarray, brain: np.ndarray, roi_size: Shape) -> list[Region]:
    """A region for each anatomical group that has a proposal, grown to the RoI size, in order of depth, each once.

    `boxes` are (D, 4) float, a consolidated box per slice, rows of NaN for none; `brain` is (D, H, W) bool.
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

    A run goes on while the brain's area and outline stay similar to those of its first slice, and ends without brain.
    """
    areas = np.count_nonzero(brain, axis=(1, 2))
    groups, start = [], None
    for z, area in enumerate([*areas, 0]):  # the 0 ends the last run
        if start is not None and (area == 0 or not _similar(brain[start], areas[start], brain[z], area)):
            groups.append((start, z))
            start = None
        if start is None and area:
            start = z
    return groups


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


def _similar(first: np.ndarray, first_area: int, other: np.ndarray, area: int) -> bool:
    common, tolerance = int(np.count_nonzero(first & other)), AREA_TOLERANCE * first_area
    return abs(area - first_area) <= tolerance and common >= SHAPE_IOU * (first_area + area - common)
