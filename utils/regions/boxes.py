"""Arithmetic on boxes (xmin, ymin, xmax, ymax) in voxels, half-open, x along W and y along H."""

import numpy as np


def enclosing_box(boxes: np.ndarray) -> np.ndarray:
    """The smallest box around (N, 4) boxes; a row of NaN when there are none."""
    if len(boxes) == 0:
        return np.full(4, np.nan)
    return np.concatenate([np.min(boxes[:, :2], 0), np.max(boxes[:, 2:], 0)]).astype(float)


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(..., N, N) intersection over union of (..., N, 4) boxes."""
    common = np.ones((), boxes.dtype)
    for axis in (0, 1):  # a last axis of two costs NumPy four times as much
        low, high = boxes[..., axis], boxes[..., axis + 2]
        sides = np.minimum(high[..., :, None], high[..., None, :]) - np.maximum(low[..., :, None], low[..., None, :])
        common = common * np.maximum(sides, 0)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return common / np.maximum(areas[..., :, None] + areas[..., None, :] - common, 1e-12)
