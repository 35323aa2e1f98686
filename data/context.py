"""Further channels of a slice for stage 1: its neighbours in the volume (2.5D) and its mirror image (``--context``)."""

from collections.abc import Sequence

import numpy as np

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
