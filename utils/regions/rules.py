"""From the detections of a volume's slices to its 3D regions, by one of two rules of consistency.

``linked`` (default): boxes that overlap over neighbouring slices are one candidate, which gets a region of its own if
its evidence, the noisy or of its best score in each slice, reaches a threshold that grows with what is proposed.
``grouped``: the published rule. Boxes whose own score reaches the threshold are consolidated in each slice and made
consistent over groups of anatomically similar slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from utils.regions.grouped import grouped_regions
from utils.regions.linked import LOWEST_SCORE, link_boxes, linked_regions, trusted
from utils.regions.region import Region, Shape, enclosing_box

RULES = ("linked", "grouped")
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


def _stack(detections: Sequence[Detections]) -> tuple[np.ndarray, ...]:
    """Network and slice (N,) int, box (N, 4) and score (N,) of every detection."""
    by_slice = [(network, z, one) for network, slices in enumerate(detections) for z, one in slices.items()]
    boxes, scores = ([np.asarray(one[part]) for *_, one in by_slice] for part in ("boxes", "scores"))
    networks, slices = (np.repeat([each[i] for each in by_slice], [*map(len, scores)]).astype(int) for i in (0, 1))
    return networks, slices, np.concatenate([np.zeros((0, 4)), *boxes]), np.concatenate([np.zeros(0), *scores])


def regions_of(kept: ProposalBoxes, brain: np.ndarray, roi_size: Shape, rule: str) -> list[Region]:
    """The regions that the kept boxes propose in a volume whose brain is (D, H, W) bool."""
    if rule == "linked":
        return linked_regions(kept.slices, kept.boxes, kept.candidates, brain.shape, roi_size)
    consolidated = np.full((len(brain), 4), np.nan)
    for z in np.unique(kept.slices):
        consolidated[z] = enclosing_box(kept.in_slice(z))
    return grouped_regions(consolidated, brain, roi_size)
