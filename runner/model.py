"""An exported model, ready to run by onnxruntime: boxes of slices from two networks, and windows segmented by a third.

What torchvision's Faster R-CNN (0.29) computes between and behind its networks is written out in NumPy:
`RegionProposalNetwork.filter_proposals`, `MultiScaleRoIAlign` but for its pooling, `RoIHeads.postprocess_detections`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from data.scans.head import head_window
from data.scans.prepared import PreparedScan
from models.export.exported import NETWORKS, DetectorSettings, ExportedModel
from models.segmentation.settings import SlidingWindow
from models.segmentation.windows import slide
from utils.onnx import Network, open_network
from utils.regions.region import Region, pairwise_iou
from utils.regions.rules import regions_of, select_boxes
from utils.scores.masks import Decision

LEVEL_EPSILON = 1e-6  # torchvision's, so that a box of just the canonical side is of its level


@dataclass(frozen=True)
class Runner:
    """Both stages of an exported model; `segmenter` makes class probabilities (B, K, D, H, W) of windows."""

    model: ExportedModel
    detector: "Detector"
    segmenter: Network

    @property
    def decision(self) -> Decision:
        """What the model takes for lesion, given the probabilities of `segment`."""
        hp = self.model.stage_2
        return Decision(hp.lesion_threshold, hp.smallest_lesion_cm3, tuple(hp.lesion_weights))

    def propose(self, scan: PreparedScan) -> list[Region]:
        """The regions of a scan's grid that stage 1 proposes."""
        hp, roi_size = self.model.stage_1, self.model.stage_2.roi_size
        detections = self.detector.detect(scan.slices())
        boxes = select_boxes([detections], hp.score_threshold, hp.consistency)
        return regions_of(boxes, scan.brain, roi_size, hp.consistency)

    def segment(
        self, prepared: PreparedScan, regions: list[Region] | None, sliding: SlidingWindow, batch_size: int
    ) -> np.ndarray:
        """Class probabilities (K, D, H, W) float32: background with certainty outside the brain and the regions."""
        hp = self.model.stage_2
        outside = [1.0] + [0.0] * (hp.num_classes - 1)
        return slide(lambda x: self.segmenter(x)[0], prepared, regions, outside, hp.window, sliding, batch_size)


def load_runner(folder: Path | str, model: ExportedModel, num_threads: int = 0) -> Runner:
    """The networks of a model folder, ready to run on the CPU with that many threads; 0 for one a core.

    Raises:
        UserError: onnxruntime is missing, or cannot read a network.
    """
    proposals, boxes, segmenter = (open_network(Path(folder) / name, num_threads) for name in NETWORKS)
    return Runner(model, Detector(proposals, boxes, model.stage_1), segmenter)


@dataclass(frozen=True)
class Detector:
    """Faster R-CNN over slices.

    proposal_network: from slices (B, C, h, w) to the features of the pooled levels, then the objectness (B, A, h, w)
        of all levels, then their offsets (B, 4 A, h, w), A anchors a place.
    box_network: from the boxes of each pooled level, (N, 5) with the number of their slice before their corners in the
        level's pixels, and the features, to scores (N,) in [0, 1] and offsets (N, 4) of all boxes, level by level.
    """

    proposal_network: Network
    box_network: Network
    settings: DetectorSettings

    def detect(self, slices: dict[int, np.ndarray], batch_size: int = 32) -> dict[int, dict[str, np.ndarray]]:
        """Detections of slices (C, H, W) float32 in [0, 1] of one shape, by their index.

        Returns:
            By index ``boxes`` (N, 4) xyxy in voxels and ``scores`` (N,) in [0, 1], best first.
        """
        if not slices:
            return {}
        images = np.stack(list(slices.values()))
        rows, columns = head_window(np.any(images > 0, axis=(0, 1)))
        corner, detections = np.array([columns.start, rows.start] * 2, np.float32), []
        for first in range(0, len(images), batch_size):
            detections += self._detect_batch(images[first : first + batch_size, :, rows, columns])
        for one in detections:
            one["boxes"] = one["boxes"] / np.float32(self.settings.scale) + corner
        return dict(zip(slices, detections, strict=True))

    def _detect_batch(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Detections of slices (B, C, h, w), boxes in pixels."""
        hp, (height, width) = self.settings, images.shape[-2:]
        far = np.array([int(width * hp.scale), int(height * hp.scale)] * 2, np.float32)  # the slices' far corner
        maps, n_levels = self.proposal_network(images), len(self.settings.anchors)
        features, objectness = maps[: hp.pooled_levels], maps[hp.pooled_levels : hp.pooled_levels + n_levels]
        proposals = self._propose(objectness, maps[hp.pooled_levels + n_levels :], far)
        boxes = np.concatenate(proposals)
        of_slice = np.repeat(np.arange(len(proposals)), list(map(len, proposals)))
        levels, rows = self._levels_of(boxes), np.column_stack([of_slice, boxes]).astype(np.float32)
        strides = [np.array([1, *[stride] * 4], np.float32) for stride in hp.strides[: hp.pooled_levels]]
        outputs = self.box_network(*(rows[levels == level] / stride for level, stride in enumerate(strides)), *features)
        back = np.argsort(np.argsort(levels, kind="stable"))  # from the order of the levels to that of the boxes
        scores, offsets = (values[back] for values in outputs)
        offsets = offsets / np.array(hp.box_weights, np.float32)
        boxes = np.clip(decode(offsets, boxes, hp.largest_log_scale), 0, far)
        return [self._best(boxes[of_slice == i], scores[of_slice == i]) for i in range(len(images))]

    def _propose(self, objectness: list[np.ndarray], offsets: list[np.ndarray], far: np.ndarray) -> list:
        """The surest boxes (N, 4) of each slice, in pixels of slices with that far corner."""
        hp, levels = self.settings, []
        for maps, shifts, cell, stride in zip(objectness, offsets, hp.anchors, hp.strides, strict=True):
            n, _, height, width = maps.shape
            logits = maps.transpose(0, 2, 3, 1).reshape(n, -1)
            shifts = shifts.reshape(n, -1, 4, height, width).transpose(0, 3, 4, 1, 2).reshape(n, -1, 4)
            order = np.argsort(-logits, axis=1, kind="stable")[:, : hp.candidates]
            y, x = (stride * places for places in np.indices((height, width)))
            on_map = np.stack([x, y, x, y], -1)[:, :, None] + np.array(cell, np.float32)  # (h, w, A, 4)
            anchors = on_map.reshape(-1, 4).astype(np.float32)[order]
            boxes = decode(np.take_along_axis(shifts, order[..., None], 1), anchors, hp.largest_log_scale)
            boxes = np.clip(boxes, 0, far)
            large = (boxes[..., 2:] - boxes[..., :2] >= hp.smallest_proposal).all(-1)
            remaining = suppress(boxes, large, hp.proposal_iou)
            levels.append((boxes, expit(np.take_along_axis(logits, order, 1)), remaining))
        boxes, scores, remaining = (np.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
        surest = [np.argsort(-s[k], kind="stable")[: hp.proposals] for s, k in zip(scores, remaining, strict=True)]
        return [b[k][order] for b, k, order in zip(boxes, remaining, surest, strict=True)]

    def _levels_of(self, boxes: np.ndarray) -> np.ndarray:
        """The pooled level (N,) that each box (N, 4) takes its features from."""
        hp, sides = self.settings, np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        finest, coarsest = np.log2(hp.strides[0]), np.log2(hp.strides[hp.pooled_levels - 1])
        levels = hp.canonical_level + np.log2(sides / np.float32(hp.canonical_side)) + np.float32(LEVEL_EPSILON)
        return (np.clip(np.floor(levels), finest, coarsest) - finest).astype(np.int64)

    def _best(self, boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """The detections among the scored boxes (N, 4) of a slice."""
        hp, order = self.settings, np.argsort(-scores, kind="stable")
        boxes, scores = boxes[order], scores[order]
        counted = (scores > hp.min_score) & (boxes[:, 2:] - boxes[:, :2] >= hp.smallest_detection).all(1)
        remaining = np.flatnonzero(suppress(boxes, counted, hp.detection_iou))[: hp.detections]
        return {"boxes": boxes[remaining], "scores": scores[remaining]}


def decode(offsets: np.ndarray, boxes: np.ndarray, largest_log_scale: float) -> np.ndarray:
    """The boxes (..., 4) that lie at offsets (..., 4) from others (Girshick et al., 2014, arXiv 1311.2524, app. C)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + np.float32(0.5) * sides + offsets[..., :2] * sides
    halves = np.float32(0.5) * np.exp(np.minimum(offsets[..., 2:], np.float32(largest_log_scale))) * sides
    return np.concatenate([centres - halves, centres + halves], -1)


def suppress(boxes: np.ndarray, counted: np.ndarray, iou: float) -> np.ndarray:
    """Non-maximum suppression of several sets of boxes at once.

    Args:
        boxes: (..., N, 4), the surest of each set first.
        counted: (..., N) bool; the others neither stay nor drop any.

    Returns:
        (..., N) bool, which of them stay: those that overlap no surer one that stays by more than `iou`.
    """
    overlap, remaining = pairwise_iou(boxes) > iou, counted.copy()
    for i in range(boxes.shape[-2]):
        remaining[..., i + 1 :] &= ~(overlap[..., i, i + 1 :] & remaining[..., i, None])
    return remaining
