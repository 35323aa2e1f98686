"""From the detections of a volume's slices to its 3D regions: ``linked`` (`utils.regions.linked`) or ``grouped``.

The latter is the published rule: boxes of enough score are consolidated in each slice and made consistent over groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.csgraph import connected_components

from utils.regions.linked import LOWEST_SCORE, link_boxes, linked_regions, trusted
from utils.regions.region import Region, Shape, enclosing_box, expand_region, pairwise_iou, voxel_region

RULES = ("linked", "grouped")
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

    def in_slice(self, z: int) -> np.ndarray:
        return self.boxes[self.slices == z]


def select_boxes(
    detections: Sequence[Detections], threshold: float, rule: str, shape: Shape, roi_size: Shape
) -> ProposalBoxes:
    """The boxes that the rule lets propose regions.

    Args:
        detections: of each network.
        threshold: of a box's score (``grouped``) or of its candidate's evidence (``linked``).
        rule: ``linked`` or, of one network, ``grouped``.
    """
    networks, slices, boxes, scores = _stack(detections)
    above = scores >= (LOWEST_SCORE if rule == "linked" else threshold)
    networks, slices, boxes, scores = networks[above], slices[above], boxes[above], scores[above]
    if rule == "grouped":
        return ProposalBoxes(slices, boxes, np.arange(len(slices)))
    candidates, evidence = link_boxes(slices, boxes, scores, networks, len(detections))
    enough = trusted(slices, boxes, candidates, evidence, threshold, shape, roi_size)
    return ProposalBoxes(slices[enough], boxes[enough], candidates[enough])


def regions_of(kept: ProposalBoxes, brain: np.ndarray, roi_size: Shape, rule: str) -> list[Region]:
    """The regions that the kept boxes propose in a volume whose brain is (D, H, W) bool."""
    if rule == "linked":
        return linked_regions(kept.slices, kept.boxes, kept.candidates, brain.shape, roi_size)
    consolidated = np.full((len(brain), 4), np.nan)
    for z in np.unique(kept.slices):
        consolidated[z] = enclosing_box(kept.in_slice(z))
    return grouped_regions(consolidated, brain, roi_size)


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


def _stack(detections: Sequence[Detections]) -> tuple[np.ndarray, ...]:
    """Network and slice (N,) int, box (N, 4) and score (N,) of every detection."""
    by_slice = [(network, z, one) for network, slices in enumerate(detections) for z, one in slices.items()]
    boxes, scores = ([np.asarray(one[part]) for *_, one in by_slice] for part in ("boxes", "scores"))
    networks, slices = (np.repeat([each[i] for each in by_slice], [*map(len, scores)]).astype(int) for i in (0, 1))
    return networks, slices, np.concatenate([np.zeros((0, 4)), *boxes]), np.concatenate([np.zeros(0), *scores])


def _similar(first: np.ndarray, first_area: int, other: np.ndarray, area: int) -> bool:
    common, tolerance = int(np.count_nonzero(first & other)), AREA_TOLERANCE * first_area
    return abs(area - first_area) <= tolerance and common >= SHAPE_IOU * (first_area + area - common)
