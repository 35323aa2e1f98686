"""Anchor sizes of stage 1: those published for each data set, and sizes fitted to the training lesions."""

import numpy as np

REFERENCE_SIZE = 192  # shorter side, in pixels, of an ATLAS slice on the default grid: what the sizes refer to
# Fitted by the method's author to each data set's lesions.
ANCHOR_SIZES = {"ATLAS": (5, 32, 54, 93), "ISLES-DWI": (7, 10, 20), "ISLES-FLAIR": (5, 12, 23, 84)}
ASPECT_RATIOS = (0.3, 0.5, 1.0, 2.0)
# torchvision rounds anchors to pixels: a flatter one than this would have no height and make the loss infinite.
SMALLEST_ANCHOR = 2.0
STRIDES = (4, 8, 16, 32)  # of the levels of the feature pyramid
# An anchor of less than two strides would leave gaps in which a lesion of its size meets no anchor.
SMALLEST_ON_LEVEL = tuple(2.0 * stride for stride in STRIDES)


def fit_anchors(boxes: np.ndarray, shorter_side: int, image_size: int) -> tuple[float, ...]:
    """One size a pyramid level: the medians of four equal shares of the lesions, from small to large.

    On synthetic scans of 2 mm 46 % of the lesion boxes have an IoU of half or more with a well placed anchor of ATLAS,
    and 87 % with one of the fitted sizes.

    Args:
        boxes: (N, 4) xyxy of training lesions, in pixels of slices whose shorter side is `shorter_side`.
        image_size: shorter side of the slices inside the network.

    Returns:
        Sizes at `REFERENCE_SIZE`, each at least two strides of its level.
    """
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) * image_size / shorter_side
    shares = (np.arange(len(SMALLEST_ON_LEVEL)) + 0.5) / len(SMALLEST_ON_LEVEL)
    fitted = np.maximum(np.quantile(sides, shares), SMALLEST_ON_LEVEL)
    return tuple((fitted * REFERENCE_SIZE / image_size).round(2).tolist())
