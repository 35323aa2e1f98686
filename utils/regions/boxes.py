"""Arithmetic on boxes (xmin, ymin, xmax, ymax) in voxels, half-open."""

import numpy as np


def enclosing_box(boxes: np.ndarray) -> np.ndarray:
    """The smallest box around (N, 4) boxes; a row of NaN when there are none."""
    if len(boxes) == 0:
        return np.full(4, np.nan)
    return np.concatenate([np.min(boxes[:, :2], 0), np.max(boxes[:, 2:], 0)]).astype(float)


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """(..., N, N) intersection over union of (..., N, 4) boxes."""
    one, other = boxes[..., :, None, :], boxes[..., None, :, :]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return common / np.maximum(areas[..., :, None] + areas[..., None, :] - common, 1e-12)
