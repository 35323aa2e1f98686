"""Random augmentations of training data by name (``--transforms``), for slices and regions alike.

Each acts on a dict of (C, ...) arrays: ``image`` in [0, 1], and beside it label maps and the ``position`` in the head.
What moves voxels moves all of them, and what changes contrast changes the image alone, its mirror image included.
"""

import numpy as np
from monai import transforms

from data.batches.tissue import surrounding_tissue

LABELS = ("mask", "mirror_mask", "region")
EVERYTHING = ("image", "position", *LABELS)
PROBABILITY = 0.5


def build_transforms(names: list[str] | None, spatial_dims: int) -> transforms.Compose:
    """Compose MONAI's random transforms for `spatial_dims` 2 (H, W) or 3 (D, H, W)."""
    makers = {
        "flip": _flip,
        "affine": _affine,
        "contrast": lambda _: transforms.RandAdjustContrastd("image", prob=PROBABILITY, gamma=(0.7, 1.5)),
        "noise": lambda _: transforms.RandGaussianNoised("image", prob=PROBABILITY, std=0.05),
        "lesion_contrast": lambda _: RandLesionContrastd(prob=PROBABILITY, factor=(0.3, 1.2)),
        "bias_field": lambda _: transforms.RandBiasFieldd("image", prob=PROBABILITY, coeff_range=(0.0, 0.2)),
        "resolution": _resolution,
    }
    return transforms.Compose([makers[name](spatial_dims) for name in names or []])


class RandLesionContrastd(transforms.RandomizableTransform, transforms.MapTransform):
    """Fades or deepens the lesions of an item: scales what they differ by from the tissue around them.

    That tissue is what `tissue` interpolates over the lesion. Where there is a ``mirror_mask``, the second half of
    the channels is the mirror image and its lesions are those of that mask.

    Args:
        factor: range of the scale, 0 for lesions that vanish and 1 for lesions as they are.
    """

    def __init__(self, prob: float, factor: tuple[float, float]) -> None:
        transforms.RandomizableTransform.__init__(self, prob)
        transforms.MapTransform.__init__(self, ("image",))
        self.factor = factor

    def __call__(self, item: dict) -> dict:
        self.randomize(None)
        if not self._do_transform:
            return item
        lesions = [np.asarray(item[key][0]) > 0.5 for key in ("mask", "mirror_mask") if key in item]
        parts, factor = np.split(np.asarray(item["image"]), len(lesions)), self.R.uniform(*self.factor)
        scaled = [_scale_lesion(part, lesion, factor) for part, lesion in zip(parts, lesions, strict=True)]
        return {**item, "image": np.concatenate(scaled)}


def _scale_lesion(image: np.ndarray, lesion: np.ndarray, factor: float) -> np.ndarray:
    """Channels (C, ...) in [0, 1] whose difference from the tissue around a lesion (...) is scaled in it."""
    if not lesion.any() or lesion.all():
        return image
    tissue = np.stack([surrounding_tissue(channel, lesion, ~lesion & (channel > 0)) for channel in image])
    return np.where(lesion, tissue + factor * (image - tissue), image).clip(0, 1)


def _flip(spatial_dims: int):
    # Left and right are alike enough to swap; front and back or top and bottom are not.
    left_right = spatial_dims - 2
    return transforms.RandFlipd(EVERYTHING, PROBABILITY, left_right, allow_missing_keys=True)


def _resolution(spatial_dims: int):
    return transforms.RandSimulateLowResolutiond(
        "image", PROBABILITY, upsample_mode="trilinear" if spatial_dims == 3 else "bilinear", zoom_range=(0.5, 1)
    )


def _affine(spatial_dims: int):
    # Rotation within the axial plane alone: in 3D that is about the depth axis.
    angle = np.deg2rad(10)
    return transforms.RandAffined(
        EVERYTHING,
        prob=PROBABILITY,
        rotate_range=(angle, 0, 0) if spatial_dims == 3 else angle,
        scale_range=(0.1,) * spatial_dims,
        mode=("bilinear", "bilinear", *["nearest"] * len(LABELS)),
        padding_mode=("zeros", "border", *["zeros"] * len(LABELS)),  # position 0 is the middle of the head
        allow_missing_keys=True,
    )


def apply_transforms(compose: transforms.Compose, item: dict, rng: np.random.Generator) -> dict:
    """Apply with the randomness of `rng` alone, so that an item is the same whichever process makes it."""
    compose.set_random_state(seed=int(rng.integers(2**31)))
    return {key: np.asarray(value) for key, value in compose(item).items()}
