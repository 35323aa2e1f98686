"""Random augmentations of training data by name (``--transforms``), for slices and windows alike.

Each acts on a dict of (C, ...) arrays: ``image`` in [0, 1], and beside it label maps, which move with it.
"""

from collections.abc import Sequence

import numpy as np
from monai import transforms

from data.batches.tissue import surrounding_tissue

LABELS = ("mask", "region")
EVERYTHING = ("image", *LABELS)
PROBABILITY = 0.5


def build_transforms(names: Sequence[str] | None, spatial_dims: int) -> transforms.Compose:
    """Random transforms for `spatial_dims` 2 (H, W) or 3 (D, H, W); `names` are those of the functions below."""
    return transforms.Compose([globals()[name](spatial_dims) for name in names or []])


def flip(spatial_dims: int):
    # Left and right are alike enough to swap; front and back or top and bottom are not.
    return transforms.RandFlipd(EVERYTHING, PROBABILITY, spatial_axis=spatial_dims - 2, allow_missing_keys=True)


def affine(spatial_dims: int):
    # Rotation within the axial plane alone: in 3D that is about the depth axis.
    angle = np.deg2rad(10)
    return transforms.RandAffined(
        EVERYTHING,
        prob=PROBABILITY,
        rotate_range=(angle, 0, 0) if spatial_dims == 3 else angle,
        scale_range=(0.1,) * spatial_dims,
        mode=("bilinear", *["nearest"] * len(LABELS)),
        padding_mode="zeros",
        allow_missing_keys=True,
    )


def contrast(spatial_dims: int):
    return transforms.RandAdjustContrastd("image", prob=PROBABILITY, gamma=(0.7, 1.5))


def noise(spatial_dims: int):
    return transforms.RandGaussianNoised("image", prob=PROBABILITY, std=0.05)


def bias_field(spatial_dims: int):
    return transforms.RandBiasFieldd("image", prob=PROBABILITY, coeff_range=(0.0, 0.2))


def resolution(spatial_dims: int):
    mode = "trilinear" if spatial_dims == 3 else "bilinear"
    return transforms.RandSimulateLowResolutiond("image", PROBABILITY, upsample_mode=mode, zoom_range=(0.5, 1))


def lesion_contrast(spatial_dims: int):
    return RandLesionContrastd(prob=PROBABILITY, factor=(0.3, 1.2))


class RandLesionContrastd(transforms.RandomizableTransform, transforms.MapTransform):
    """Scales the difference of lesions from the tissue around them (`surrounding_tissue`).

    Args:
        factor: range of the scale, 0 for lesions that vanish and 1 for lesions as they are.
    """

    def __init__(self, prob: float, factor: tuple[float, float]) -> None:
        transforms.RandomizableTransform.__init__(self, prob)
        transforms.MapTransform.__init__(self, ("image",))
        self.factor = factor

    def __call__(self, item: dict) -> dict:
        self.randomize(None)
        image, lesion = np.asarray(item["image"]), np.asarray(item["mask"][0]) > 0.5
        if not self._do_transform or not lesion.any() or lesion.all():
            return item
        tissue = np.stack([surrounding_tissue(channel, lesion, ~lesion & (channel > 0)) for channel in image])
        scaled = tissue + self.R.uniform(*self.factor) * (image - tissue)
        return {**item, "image": np.where(lesion, scaled, image).clip(0, 1)}


def apply_transforms(compose: transforms.Compose, item: dict, rng: np.random.Generator) -> dict:
    """Apply with the randomness of `rng` alone, so that an item is the same whichever process makes it."""
    compose.set_random_state(seed=int(rng.integers(2**31)))
    return {key: np.asarray(value) for key, value in compose(item).items()}
