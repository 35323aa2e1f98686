"""Further channels that tell a network of the rest of the head.

Stage 1 (``--context``): a slice's neighbours in the volume (2.5D) and its mirror image.
Stage 2 (``--seg_context``): the other side of the head at a window's place, and where in the head that is.
"""

from collections.abc import Sequence

import numpy as np

from data.files.space import cut
from utils.regions.region import Region

# --- slices --------------------------------------------------------------------------------------------

Window = tuple[slice, slice]  # rows and columns of a slice
WINDOW_MARGIN = 2  # pixels of a slice that are looked at around the heads
CHANNELS = {"neighbours": 2, "mirror": 1}  # how many each adds for one channel of the scan


def network_channels(in_channels: int, context: Sequence[str]) -> int:
    return in_channels * (1 + sum(CHANNELS[name] for name in context))


def with_context(
    image: np.ndarray, below: np.ndarray | None, above: np.ndarray | None, context: Sequence[str]
) -> np.ndarray:
    """A slice with the channels that `context` names behind its own.

    The mirror image stands in for the difference between the halves of the head: the first convolution takes
    differences by itself, and an image in [0, 1] goes through the same augmentations as the slice.

    Args:
        image: (C, H, W) in [0, 1], H from left to right.
        below, above: the neighbouring slices; None, where there is no brain, counts as air.
        context: names of `CHANNELS`.
    """
    channels = [image]
    if "neighbours" in context:
        channels += [np.zeros_like(image) if neighbour is None else neighbour for neighbour in (below, above)]
    if "mirror" in context:
        channels.append(mirrored(image))
    return np.concatenate(channels)


def mirrored(image: np.ndarray) -> np.ndarray:
    """The slice (C, H, W) with left and right exchanged about the middle of its head (what is above 0)."""
    inside = np.flatnonzero((image > 0).any((0, 2)))
    if not len(inside):
        return image
    return np.roll(image[:, ::-1], int(inside[0] + inside[-1]) - image.shape[1] + 1, axis=1)


def network_slices(scan: np.ndarray, brain: np.ndarray, context: Sequence[str]) -> dict[int, np.ndarray]:
    """What stage 1 sees of every slice with brain, (C, H, W) float32 with its context, by the slice's index.

    Args:
        scan: (C, D, H, W) in [0, 1].
        brain: (D, H, W) bool.
    """
    slices = {z: scan[:, z].astype(np.float32) for z in np.flatnonzero(brain.any((1, 2))).tolist()}
    return {z: with_context(image, slices.get(z - 1), slices.get(z + 1), context) for z, image in slices.items()}


def head_window(heads: np.ndarray) -> Window:
    """The rows and columns that hold what is True of an (H, W) mask, with a margin; all of them where nothing is."""
    return _span(heads.any(1)), _span(heads.any(0))


def _span(occupied: np.ndarray) -> slice:
    inside = np.flatnonzero(occupied)
    if not len(inside):
        return slice(0, len(occupied))
    return slice(max(int(inside[0]) - WINDOW_MARGIN, 0), min(int(inside[-1]) + 1 + WINDOW_MARGIN, len(occupied)))


# --- windows -------------------------------------------------------------------------------------------

POSITION_CHANNELS = 3  # along D, away from the midline, along W
Start = tuple[int, int, int]  # first voxel (D, H, W) of a window


def window_channels(in_channels: int, context: Sequence[str]) -> int:
    """Channels of a window with its context (``mirror``, ``position``), of scans with `in_channels`."""
    return in_channels * (1 + ("mirror" in context)) + POSITION_CHANNELS * ("position" in context)


def read_window(
    scan: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...], context: Sequence[str], brain: Region | None
) -> dict[str, np.ndarray]:
    """A window of a scan and what `context` asks for beside it; no more of the scan is read than that.

    Args:
        scan: (C, D, H, W) in [0, 1].
        start, shape: first voxel and size (D, H, W) of the window, zero-padded where it leaves the scan.
        brain: the brain's bounding box; None will do without context.

    Returns:
        ``image`` (C, *shape) float32, its ``mirror`` image behind it as C further channels, and ``position``
        (3, *shape) float32 by itself, since no change of contrast may touch it.
    """
    images = [cut(scan, start, shape)]
    if "mirror" in context:
        images.append(cut_mirrored(scan, start, shape, brain))
    window = {"image": np.concatenate(images).astype(np.float32)}
    if "position" in context:
        window["position"] = position_in(brain, start, shape)
    return window


def join_channels(window: dict[str, np.ndarray]) -> np.ndarray:
    """All channels of a window that `read_window` gave, (`window_channels`, *shape)."""
    return np.concatenate([window[key] for key in ("image", "position") if key in window])


def cut_mirrored(array: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...], brain: Region) -> np.ndarray:
    """What lies opposite a window (..., D, H, W) in the head, left and right exchanged about the brain's middle.

    So each voxel has its counterpart of the other half in the same place: a stroke makes the halves differ. The middle
    of the brain's extent stands for the mid-sagittal plane.
    """
    side = brain.slices[1]
    opposite = side.start + side.stop - start[1] - shape[1]
    return cut(array, (start[0], opposite, start[2]), shape)[..., ::-1, :]


def position_in(brain: Region, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Where each voxel of a window lies in the brain's bounding box, (3, *shape) float32.

    Along D and W from -1 at the first voxel of the brain to 1 at the last, along H from 0 in the middle to 1 on either
    side: left and right are alike. Beyond the brain as at its border.
    """
    lines = []
    for span, first, size in zip(brain.slices, start, shape, strict=True):
        middle, half = (span.start + span.stop - 1) / 2, max((span.stop - span.start - 1) / 2, 1)
        lines.append(((np.arange(first, first + size) - middle) / half).clip(-1, 1).astype(np.float32))
    d, h, w = lines
    return np.stack(np.meshgrid(d, np.abs(h), w, indexing="ij"))
