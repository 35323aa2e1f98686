"""Random augmentations of training data by name (``--transforms``), for slices and regions alike.

Each acts on a dict of (C, ...) arrays: ``image`` in [0, 1] and the label maps beside it.
"""

import numpy as np
from monai import transforms

from data.tissue import surrounding_tissue

LABELS = ("mask", "region")
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
    }
    return transforms.Compose([makers[name](spatial_dims) for name in names or []])


class RandLesionContrastd(transforms.RandomizableTransform, transforms.MapTransform):
    """Fades or deepens the lesions of an item: scales what they differ by from the tissue around them.

    That tissue is what `data.tissue` interpolates over the lesion.

    Args:
        factor: range of the scale, 0 for lesions that vanish and 1 for lesions as they are.
    """

    def __init__(self, prob: float, factor: tuple[float, float]) -> None:
        transforms.RandomizableTransform.__init__(self, prob)
        transforms.MapTransform.__init__(self, ("image",))
        self.factor = factor

    def __call__(self, item: dict) -> dict:
        self.randomize(None)
        lesion = np.asarray(item["mask"][0]) > 0.5
        if not self._do_transform or not lesion.any() or lesion.all():
            return item
        image, factor = np.asarray(item["image"]), self.R.uniform(*self.factor)
        tissue = np.stack([surrounding_tissue(channel, lesion, ~lesion & (channel > 0)) for channel in image])
        return {**item, "image": np.where(lesion, tissue + factor * (image - tissue), image).clip(0, 1)}


def _flip(spatial_dims: int):
    # Left and right are alike enough to swap; front and back or top and bottom are not.
    left_right = spatial_dims - 2
    return transforms.RandFlipd(("image", *LABELS), PROBABILITY, left_right, allow_missing_keys=True)


def _affine(spatial_dims: int):
    # Rotation within the axial plane alone: in 3D that is about the depth axis.
    angle = np.deg2rad(10)
    return transforms.RandAffined(
        ("image", *LABELS),
        prob=PROBABILITY,
        rotate_range=(angle, 0, 0) if spatial_dims == 3 else angle,
        scale_range=(0.1,) * spatial_dims,
        mode=("bilinear", "nearest", "nearest"),
        padding_mode="zeros",
        allow_missing_keys=True,
    )


def apply_transforms(compose: transforms.Compose, item: dict, rng: np.random.Generator) -> dict:
    """Apply with the randomness of `rng` alone, so that an item is the same whichever process makes it."""
    compose.set_random_state(seed=int(rng.integers(2**31)))
    return {key: np.asarray(value) for key, value in compose(item).items()}
