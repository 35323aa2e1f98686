"""From the detections of a volume's slices to its 3D regions, by one of two rules of consistency.

``linked`` (default): boxes that overlap over neighbouring slices are one candidate. It counts if its evidence, the
noisy or of its best score in each slice, reaches the threshold, which grows with what is proposed already, and gets a
region of its own.
``grouped``: the published rule. Boxes whose own score reaches the threshold are consolidated in each slice and made
consistent over groups of anatomically similar slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from utils.regions.boxes import enclosing_box
from utils.regions.grouped import grouped_regions
from utils.regions.linked import LOWEST_SCORE, link_boxes, linked_regions, trusted
from utils.regions.region import Region


@dataclass(frozen=True)
class Kept:
    """The boxes of a volume that count: slices (N,) int, boxes (N, 4) xyxy in voxels, candidates (N,) int."""

    slices: np.ndarray
    boxes: np.ndarray
    candidates: np.ndarray

    def in_slice(self, z: int) -> np.ndarray:
        return self.boxes[self.slices == z]


def keep_boxes(
    detections: Sequence[dict[int, dict[str, ArrayLike]]],
    threshold: float,
    rule: str,
    growth: float,
    shape: tuple[int, int, int],
    roi_size: tuple[int, int, int],
) -> Kept:
    """The boxes that the rule lets propose regions.

    Args:
        detections: of each network that has looked; by slice, ``boxes`` (N, 4) and ``scores`` (N,).
        threshold: of a box's score (``grouped``) or of its candidate's evidence (``linked``).
        rule: ``linked`` or, of one network, ``grouped``.
        growth: of the evidence asked for (``linked``; `utils.regions.linked.trusted`).
        shape, roi_size: (D, H, W) in voxels.
    """
    networks, slices, boxes, scores = _stack(detections)
    above = scores >= (LOWEST_SCORE if rule == "linked" else threshold)
    networks, slices, boxes, scores = networks[above], slices[above], boxes[above], scores[above]
    if rule == "grouped":
        return Kept(slices, boxes, np.arange(len(slices)))
    candidates, evidence = link_boxes(slices, boxes, scores, networks, len(detections))
    enough = trusted(slices, boxes, candidates, evidence, threshold, growth, shape, roi_size)
    return Kept(slices[enough], boxes[enough], candidates[enough])


def _stack(detections: Sequence[dict[int, dict[str, ArrayLike]]]) -> tuple[np.ndarray, ...]:
    """Network and slice (N,) int, box (N, 4) and score (N,) of every detection."""
    found = [(network, z, one) for network, by_slice in enumerate(detections) for z, one in by_slice.items()]
    counts = [len(one["scores"]) for *_, one in found]
    networks, slices = (np.repeat([each[i] for each in found], counts).astype(int) for i in (0, 1))
    boxes, scores = ([np.asarray(one[part]) for *_, one in found] for part in ("boxes", "scores"))
    return networks, slices, np.concatenate([np.zeros((0, 4)), *boxes]), np.concatenate([np.zeros(0), *scores])


def regions_of(kept: Kept, brain: np.ndarray, roi_size: tuple[int, int, int], rule: str) -> list[Region]:
    """The regions that the kept boxes propose in a volume whose brain is (D, H, W) bool."""
    if rule == "linked":
        return linked_regions(kept.slices, kept.boxes, kept.candidates, brain.shape, roi_size)
    consolidated = np.full((len(brain), 4), np.nan)
    for z in np.unique(kept.slices):
        consolidated[z] = enclosing_box(kept.in_slice(z))
    return grouped_regions(consolidated, brain, roi_size)
