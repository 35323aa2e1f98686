"""The head: what of a scan is not air, and intensities scaled by it."""

import math

import numpy as np
from scipy import ndimage

from utils.regions.region import box_around

# The head begins at this share of the way from air to tissue. On ATLAS's raw T1w, where air is 0 and the median
# tissue about 60, that is the reference threshold of 8.0.
HEAD_SHARE = 0.13
OTSU_BINS = 256
OTSU_PERCENTILES = (0.5, 99.5)  # intensities outside are clipped: a spike would leave Otsu's histogram one bin
STRAY, STRAY_SHARE = 3, 0.001  # voxels or share of a plane: padding is padding though so few are something else
PADDED_CORNERS = 4  # of 8: padding on one side fills four corners, about a rotated field all
BLEND = 2  # voxels next to padding that interpolation may have mixed with it
# What borders the padding is air if it is uniform: if these percentiles of it span less than this share of the step
# to tissue. Measured: 0.10 in air of SNR 20, 0.17 of SNR 10; stripped, 0.6 in ADC, 5 and more in T1w, DWI and FLAIR.
RIM_PERCENTILES, UNIFORM = (1, 75), 0.2  # above the 75th there may be the neck
BRIGHT = 90  # intensities above this percentile may be a lesion's, and are not asked what tissue is
MOST = 0.95  # of the tissue is brighter than a dark background; published stripped scans have 0.1 % below theirs
IN_SLICE = np.zeros((3, 3, 3), bool)  # neighbours along H and W, none in other slices
IN_SLICE[1] = ndimage.generate_binary_structure(2, 1)
PERCENTILES = (1, 99)  # intensities outside are clipped: vessels, fat and spikes say nothing of lesions
Window = tuple[slice, ...]  # rows and columns of a slice
WINDOW_MARGIN = 2  # pixels of a slice that are looked at around the heads


def head_mask(scan: np.ndarray) -> np.ndarray:
    """Separate the head from air, whatever the intensity scale and offset, a few stray voxels, or constant padding.

    The head begins `HEAD_SHARE` of the way from air to tissue, so that dark CSF and lesions at the brain's rim belong
    to it. The largest component is kept, holes are filled slice by slice (a lesion is no hole in the head).

    Args:
        scan: (D, H, W), finite, any units; a constant one has no head.
    """
    head = np.zeros(scan.shape, bool)
    box = _field_of_view(scan)
    field = scan[box]
    if field.size and field.min() < field.max():
        # Without specks and threads; the border of the volume wears nothing off, nor does a single slice vanish.
        opened = ndimage.binary_dilation(ndimage.binary_erosion(_not_air(field), border_value=1))
        labels, n = ndimage.label(opened)
        largest = labels == np.argmax(np.bincount(labels[opened])) if n > 1 else opened
        head[box] = ~_at_border(~largest, IN_SLICE, (1, 2))
    elif field.size < scan.size:  # a block of one value amid another
        head[box] = True
    return head


def _field_of_view(scan: np.ndarray) -> tuple[slice, ...]:
    """The box of a (D, H, W) scan within the planes of padding, each side's of one value."""
    values = [[np.median(scan.take(end, axis)) for end in (0, -1)] for axis in range(3)]
    box, before = [slice(0, size) for size in scan.shape], None
    while box != before:  # a plane may prove to be padding once others are cut off it
        before = list(box)
        for axis, (low, high) in enumerate(values):
            planes = np.moveaxis(scan[tuple(box)], axis, 0)
            start = box[axis].start + _count_leading(planes, low)
            box[axis] = slice(start, max(box[axis].stop - _count_leading(planes[::-1], high), start))
    return tuple(box)


def _count_leading(planes: np.ndarray, value: float) -> int:
    """How many of the first of (N, A, B) planes hold nothing but `value`, up to a few stray voxels."""
    size = math.prod(planes.shape[1:])
    few = min(max(STRAY, STRAY_SHARE * size), size / 100)
    return next((i for i, plane in enumerate(planes) if np.count_nonzero(plane != value) > few), len(planes))


def _not_air(field: np.ndarray) -> np.ndarray:
    """Voxels of a (D, H, W) field of view that are neither air nor padding, by their intensities; bool."""
    values, counts = np.unique(field[np.ix_(*[(0, -1)] * 3)], return_counts=True)
    constant = values[counts.argmax()] if counts.max() >= PADDED_CORNERS else np.nan  # which equals no voxel
    sample = field[::2, ::2, ::2]
    outside = ndimage.binary_dilation(_at_border(sample == constant), iterations=BLEND)
    inside, rim = sample[~outside], sample[ndimage.binary_dilation(outside) & ~outside]
    if not rim.size:  # noisy air up to the corners
        return field > _head_threshold(sample)
    bright = np.percentile(inside, BRIGHT)
    _, tissue = _otsu_medians(np.minimum(inside, bright))
    if np.diff(np.percentile(rim, RIM_PERCENTILES)).item() < UNIFORM * (tissue - np.median(rim)):
        # The rim is air, uniform and darker than tissue, and the constant is padding.
        threshold = _head_threshold(inside)
        head = field > threshold
        if constant > threshold:
            head &= ~ndimage.binary_dilation(_at_border(field == constant), iterations=BLEND)
        return head
    # The constant is the air of a scan that was stripped or masked.
    if np.mean(inside > constant) > MOST:
        # Cut off above, or a large bright lesion would be Otsu's one class and the brain the other.
        return field > _head_threshold(np.minimum(sample, bright))
    return ~_at_border(field == constant)  # tissue is darker, as where a brain was scaled to a mean of 0


def _at_border(mask: np.ndarray, structure: np.ndarray | None = None, axes: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """The components of a (D, H, W) mask that touch the border of the volume along any of the axes."""
    labels, n = ndimage.label(mask, structure)
    touching = np.zeros(n + 1, bool)
    for axis in axes:
        touching[labels.take((0, -1), axis)] = True
    touching[0] = False
    return touching[labels]


def _head_threshold(intensities: np.ndarray) -> float:
    """Where the head begins, by Otsu's threshold and the medians of air below and tissue above it."""
    air, tissue = _otsu_medians(intensities)
    return air + HEAD_SHARE * (tissue - air)


def _otsu_medians(intensities: np.ndarray) -> tuple[float, float]:
    """The medians of the darker and the brighter of Otsu's two classes."""
    low, high = np.percentile(intensities, OTSU_PERCENTILES)
    if not low < high:
        return float(low), float(high)
    clipped = np.clip(intensities, low, high).ravel()
    otsu = otsu_threshold(clipped)
    return float(np.median(clipped[clipped <= otsu])), float(np.median(clipped[clipped > otsu]))


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold of Otsu (1979, 10.1109/TSMC.1979.4310076) as in scikit-image, which the runner does without."""
    counts, edges = np.histogram(values, OTSU_BINS)
    counts, centres = counts.astype(np.float32), (edges[:-1] + edges[1:]) / 2
    darker, brighter = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_darker = np.cumsum(counts * centres) / darker
    mean_brighter = np.cumsum((counts * centres)[::-1])[::-1] / brighter
    between = darker[:-1] * brighter[1:] * (mean_darker[:-1] - mean_brighter[1:]) ** 2
    return float(centres[between.argmax()])


def normalise(scan: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Clip a scan (C, D, H, W) to the 1st and 99th percentile of its brain (D, H, W) and scale it to [0, 1], float32.

    Each channel is scaled by itself.
    """
    scaled = np.empty(scan.shape, np.float32)
    for channel, out in zip(scan, scaled, strict=True):
        low, high = np.percentile(channel[brain], PERCENTILES) if brain.any() else (0.0, 1.0)
        np.clip((channel - low) / (high - low or 1), 0, 1, out=out, casting="same_kind")
    return scaled


def head_window(heads: np.ndarray) -> Window:
    """The rows and columns of an (H, W) mask that hold its pixels, with a margin; all of them where it is empty."""
    return box_around(heads if heads.any() else ~heads, WINDOW_MARGIN)
